"""Convolution of bytes with zero-points, in plain torch: the rows that output pixels see, exact in int64, and `qgemm` on them."""

from __future__ import annotations

import torch

from .qgemm import Channels, epilogue, matmul, wrap

Tensor = torch.Tensor


def qconv2d_rows(x: Tensor, zero_point: Tensor, kernel: int, stride: int) -> Tensor:
    """(B Ho Wo, k k C) int64: what each output pixel sees, columns in the order (ky, kx, c); outside of the map, where real values are 0,
    the zero-point of each channel.

    x (B, C, H, W) uint8, zero_point (C,), any int32; Ho = ceil(H / stride), padding k // 2.
    """
    (batch, channels, height, width), half = x.shape, kernel // 2
    padded = zero_point.to(torch.int64)[:, None, None].expand(batch, channels, height + 2 * half, width + 2 * half).clone()
    padded[:, :, half : half + height, half : half + width] = x
    taps = padded.unfold(2, kernel, stride).unfold(3, kernel, stride)  # (B, C, Ho, Wo, k, k)
    return taps.permute(0, 2, 3, 4, 5, 1).reshape(-1, kernel * kernel * channels)


def qconv2d(
    x: Tensor, weight: Tensor, zero_point: Tensor, channels: Channels, *, kernel: int, stride: int, second: Tensor | None = None,
    residual: Tensor | None = None, **settings: object,
) -> Tensor:  # fmt: skip
    """(B, N, Ho, Wo): `epilogue` of the exact convolution of cat([x, second]) by weight (N, k k C), in memory (B, Ho, Wo, N).

    The init of the channels has minus the zero-points' part of all taps, in the map or not.
    """
    both = x if second is None else torch.cat([x, second], dim=1)
    batch, _, height, width = x.shape
    size = batch, (height - 1) // stride + 1, (width - 1) // stride + 1, weight.shape[0]
    if residual is not None:
        residual = residual.permute(0, 2, 3, 1).reshape(-1, size[3])
    sums = matmul(qconv2d_rows(both, zero_point, kernel, stride), weight)
    return epilogue(sums, channels, residual=residual, **settings).reshape(size).permute(0, 3, 1, 2)  # type: ignore[arg-type]


def qconv2d_border(weight: Tensor, zero_point: Tensor, init: Tensor) -> Tensor:
    """(16, N) int32, modulo 2^32: what sums begin with where bytes outside of the map are 0: init + sum z w over the taps outside.

    The classes of the first axis are those of csrc/cpu/ops/qconv2d.h. weight (N, 9 C), zero_point (C,), init (N,).
    """
    taps = (weight.to(torch.int64).reshape(weight.shape[0], 9, -1) * zero_point.to(torch.int64)).sum(2)
    classes, tap = torch.arange(16), torch.arange(3)

    def outside(bits: Tensor) -> Tensor:  # (16, 3): the first tap where bit 0 is set, the last where bit 1 is
        return (bits[:, None] & 1 > 0) & (tap == 0) | (bits[:, None] & 2 > 0) & (tap == 2)

    beyond = outside(classes >> 2)[:, :, None] | outside(classes)[:, None, :]
    return wrap(beyond.flatten(1).to(torch.int64) @ taps.T + init.to(torch.int64))
