"""Integer depthwise 3x3 convolution with zero-points, in plain torch: exact sums, and the epilogue of `qgemm`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .qgemm import Channels, epilogue

Tensor = torch.Tensor


def qdepthwise_conv2d(
    x: Tensor, weight: Tensor, a_zero_point: Tensor, channels: Channels, stride: int, *, residual: Tensor | None = None, **settings: Any
) -> Tensor:
    """`epilogue` of the depthwise convolution of x - a_zero_point, padded with one 0 (the zero-point of x) on each side.

    x (B, C, H, W) uint8, weight (C, 1, 3, 3) int8, a_zero_point (C,) int32; residual like the result, (B, C, ceil(H / s), ceil(W / s)).
    """
    z, w = a_zero_point.to(torch.int64), weight.to(torch.int64)[:, 0]
    padded = F.pad(x.to(torch.int64) - z[:, None, None], (1, 1, 1, 1))
    height, width = (padded.shape[2] - 3) // stride + 1, (padded.shape[3] - 3) // stride + 1
    sums = (z * w.sum((1, 2)))[:, None, None].expand(x.shape[0], -1, height, width).clone()  # what channels.init takes away
    for ky in range(3):
        for kx in range(3):
            taps = padded[:, :, ky : ky + stride * (height - 1) + 1 : stride, kx : kx + stride * (width - 1) + 1 : stride]
            sums += taps * w[:, ky, kx, None, None]
    last = None if residual is None else residual.permute(0, 2, 3, 1)
    return epilogue(sums.permute(0, 2, 3, 1), channels, residual=last, **settings).permute(0, 3, 1, 2)
