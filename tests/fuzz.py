"""Seeds of random networks: a few for `make test`, more for `make test-all`, as many as MVIT_KERNELS_FUZZ says for `make fuzz`."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

_COUNT = int(os.environ.get("MVIT_KERNELS_FUZZ", "0"))
wanted = pytest.mark.skipif(_COUNT == 0, reason="make fuzz says how many")


def run(check: Callable[[int], None], start: int, count: int = _COUNT) -> None:
    for seed in range(start, start + count):
        check(seed)
