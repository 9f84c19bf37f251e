"""Convolutions of bytes, 1x1 and 3x3: products of the rows that output pixels see, by the kernel of `qgemm.py`."""

from __future__ import annotations

import torch

from .pinned import Finish
from .qgemm import Weight, launch_product

Tensor = torch.Tensor


def qconv2d(
    x: Tensor, second: Tensor | None, weight: Weight, finish: Finish, y: Tensor, kernel: int, stride: int, zero_point: Tensor,
    border: Tensor | None,
) -> None:  # fmt: skip
    """y (B, N, Ho, Wo) of x (B, C, H, W) and second, whose channels have stride 1; y and the residual are dense in channels_last.
    border (16, N rounded up): what sums begin with where zero-points are no bytes."""
    (image, _, row, column), size = x.stride(), (*x.shape[2:], *y.shape[2:])
    beside = (0, 0, 0) if second is None else (second.stride(0), *second.stride()[2:])
    launch_product(x, second, weight, finish, y, (image, row, column), beside, size, kernel, stride, zero_point=zero_point, border=border)
