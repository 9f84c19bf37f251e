"""Which tile a kernel runs with: the fastest that was measured for calls of this size, or else what the kernel itself takes for it.

Nothing is measured while a network runs. `benchmarks/gpu_tune.py` times the candidates of every kernel on the networks' calls and writes
`tuned.json`, which comes with the package: capability, kernel, dtype and sizes -> tile. The first size is how much there is to do (rows,
pixels, images); those within a factor of two are one class. Whether a CUDA kernel runs a call, or Triton's, is a choice like that of a tile
(`mvit_kernels/ops/fastest.py`).
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .launch import capability, power_of_two

Tensor = torch.Tensor
Tile = dict[str, Any]  # settings of a launch
IN_TWO: Tile = {}  # two launches in place of one
Key = tuple[str, ...]  # capability, kernel, call
Watch = Callable[[Key, Tile, Callable[[], Sequence[Tile]]], Tile]
TABLE = Path(__file__).with_name("tuned.json")
_watch: Watch | None = None


def choose(kernel: str, x: Tensor, sizes: tuple[Any, ...], guess: Tile, candidates: Callable[[], Sequence[Tile]]) -> Tile:
    """The tile for a call with x on sizes (the first by its class, the others as they are). candidates: what to measure, `guess` apart."""
    name = " ".join(map(str, (_NAMES.get(x.dtype, x.dtype), power_of_two(sizes[0]), *sizes[1:])))
    key = f"sm_{capability(x)}", kernel, name
    if _watch is not None:
        return _watch(key, guess, candidates)
    return table().get(key, guess)


_NAMES = {torch.float16: "float16", torch.bfloat16: "float16", torch.uint8: "uint8"}  # both 16-bit floats take the same time


@functools.cache
def table() -> dict[Key, Tile]:
    """What was measured."""
    return read(TABLE)


def read(path: Path) -> dict[Key, Tile]:
    devices = json.loads(path.read_text(encoding="utf-8"))
    return {
        (device, kernel, call): tile
        for device, kernels in devices.items()
        for kernel, calls in kernels.items()
        for call, tile in calls.items()
    }


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Inside, `watch` sees every choice and makes it: for the search, on one thread."""
    global _watch
    _watch = watch
    try:
        yield
    finally:
        _watch = None


def is_watched() -> bool:
    return _watch is not None
