"""Bits of the Triton kernel are those of plain torch (which test_qresize.py holds against torch's interpolation)."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from q_checks import byte_map
from triton_checks import DEVICE, views

from mvit_kernels import ops

Tensor = torch.Tensor


def check(x: Tensor, size: tuple[int, int]) -> None:
    for align_corners in (False, True):
        y, expected = (ops.qresize(x, size, align_corners=align_corners, backend=backend) for backend in ("triton", "reference"))
        assert torch.equal(y, expected)
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 5, slow(70)])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), slow((3, 40)), (14, 6), slow((8, 8))], ids=str)
def test_sizes(size, channels: int) -> None:
    for height, width in ((8, 8), (7, 3), (1, 5)):
        check(byte_map(2, channels, height, width).to(DEVICE), size)


def test_any_strides_and_empty() -> None:
    for x in views(5, 4, 6).values():
        check((x * 100).to(torch.uint8), (5, 5))
    check(byte_map(0, 3, 4, 4).to(DEVICE), (2, 2))
