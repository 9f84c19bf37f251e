"""Bits of the Triton kernel are those of plain torch (which test_qavg_pool.py holds against NumPy)."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from q_checks import random_bytes
from triton_checks import DEVICE, FORMATS, views

from mvit_kernels import ops

Tensor = torch.Tensor
POOL = {"a_scale": 0.03, "a_zero_point": 117, "out_scale": 0.017, "out_zero_point": 100}


def check(x: Tensor, **changes) -> None:
    arguments = {name: value for name, value in {**POOL, **changes}.items() if value is not None}
    y, expected = (ops.qavg_pool(x, backend=backend, **arguments) for backend in ("triton", "reference"))
    assert torch.equal(y, expected)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 4, 5), (2, 65, 7, 3), (1, 40, 1, 9), (2, 1, 5, 3), slow((1, 640, 8, 8))], ids=str)
def test_pool(size, fmt: str) -> None:
    x = random_bytes(*size).to(DEVICE).contiguous(memory_format=FORMATS[fmt])
    pixels = size[2] * size[3]
    for a_zero_point in (117, -300, 2**31 // pixels - 1, -(2**31) // pixels + 256):
        check(x, a_zero_point=a_zero_point, out_bits=6)
        check(x, a_zero_point=a_zero_point, out_scale=None, out_zero_point=None, out_dtype=torch.float32)


def test_many_pixels() -> None:
    for fmt in FORMATS.values():
        x = torch.full((1, 3, 70, 50), 255, dtype=torch.uint8, device=DEVICE).contiguous(memory_format=fmt)
        x[0, 1] = 0
        for a_zero_point in (0, 127, 255):
            check(x, a_zero_point=a_zero_point, out_scale=None, out_zero_point=None, out_dtype=torch.float32)


def test_any_strides_and_empty() -> None:
    for x in views(5, 4, 6).values():
        check((x * 100).to(torch.uint8), out_zero_point=-(2**20), out_scale=1e-6)
    check(random_bytes(0, 5, 2, 2).to(DEVICE))
