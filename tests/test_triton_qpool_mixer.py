"""Bits of the Triton kernel are those of plain torch."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from q_checks import random_bytes
from triton_checks import DEVICE, FORMATS, views

from mvit_kernels import ops

Tensor = torch.Tensor
MIXER = {"a_scale": 0.03, "a_zero_point": 117, "out_scale": 0.021, "out_zero_point": 100}


def check(x: Tensor, **changes) -> None:
    scale = torch.randn(x.shape[1])
    y, expected = (ops.prepare_qpool_mixer(scale, backend=backend, **{**MIXER, **changes})(x) for backend in ("triton", "reference"))
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride() or y.numel() == 0
    assert torch.equal(y, ops.qpool_mixer(x, scale.to(DEVICE), backend="triton", **{**MIXER, **changes}))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 4, 5), (1, 17, 1, 9), (1, 5, 7, 1), slow((2, 70, 6, 9))], ids=str)
def test_maps(size, fmt: str) -> None:
    x = random_bytes(*size).to(DEVICE).contiguous(memory_format=FORMATS[fmt])
    for changes in ({"out_bits": 6}, {"a_zero_point": -(2**20), "out_scale": 30.0}, {"a_zero_point": 2**20, "out_zero_point": 2**20}):
        check(x, **changes)


def test_any_strides_and_empty() -> None:
    for x in views(5, 4, 6).values():
        check((x * 100).to(torch.uint8))
    check(random_bytes(0, 5, 2, 2).to(DEVICE))
