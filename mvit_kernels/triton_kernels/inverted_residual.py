"""Inverted residual on channels_last maps in three launches: expansion, depthwise convolution, and projection with the residual. Without an
expansion the last two are all there is.

Both hidden maps go through memory, of few images through L2. A kernel that filters while it projects writes one of them less, but loads its
nine pixels through L1 and filters again for every block of columns: it was two to four times as slow on an H100 (256 images, 32 x 32 x 512
with stride 2 to 384 channels: 6.0 us an image). csrc/cuda/ops/inverted_residual.h keeps both maps inside of a multiprocessor.

Floor on an H100: memory at 3.0 TB/s, each map written and read once."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import depthwise_conv2d, gemm
from . import moments as moments_

Tensor = torch.Tensor


class Weights(NamedTuple):
    expand: gemm.Weight | None
    depthwise: depthwise_conv2d.Weight
    reduce: gemm.Weight


def arrange(
    expand_w: Tensor | None, expand_b: Tensor | None, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Tensor | None,
    dtype: torch.dtype,
) -> Weights:  # fmt: skip
    """expand_w (E, C, 1, 1) or None, depthwise_w (E, 1, 3, 3), reduce_w (O, E, 1, 1), for x of `dtype`."""
    expand = None if expand_w is None else gemm.arrange(expand_w, expand_b, dtype)
    return Weights(expand, depthwise_conv2d.arrange(depthwise_w, depthwise_b), gemm.arrange(reduce_w, reduce_b, dtype))


def forward(
    x: Tensor, weights: Weights, y: Tensor, *, stride: int, residual: bool, activation: str, collect: bool
) -> Tensor:  # fmt: skip
    """y (B, O, Ho, Wo) of x (B, C, H, W), both dense in channels_last; the moments (B, 2) float64 of images of y, (0, 2) unless they are to
    be collected."""
    wanted = x.shape[0] if collect else 0
    if y.numel() == 0:
        return moments_.collect(y, wanted)
    expanded = x
    if weights.expand is not None:
        expanded = _map(x, weights.expand.bias.shape[0], x.shape[2:])
        gemm.gemm(_rows(x), weights.expand, _rows(expanded), activation=activation)
    filtered = _map(x, expanded.shape[1], y.shape[2:])
    depthwise_conv2d.forward(expanded, weights.depthwise, filtered, stride=stride, activation=activation)
    return gemm.gemm(_rows(filtered), weights.reduce, _rows(y), residual=_rows(x) if residual else None, collect=wanted)


def _map(like: Tensor, channels: int, size: torch.Size) -> Tensor:
    """(B, channels, H, W), dense in channels_last."""
    return like.new_empty(like.shape[0], *size, channels).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W), dense in channels_last, as (B H W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)
