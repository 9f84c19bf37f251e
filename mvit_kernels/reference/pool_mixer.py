"""How EfficientFormer mixes pixels without attention (arXiv 2206.01191, section 4; PoolFormer, arXiv 2111.11418), in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def pool_mixer(x: Tensor, scale: Tensor) -> Tensor:
    """Every pixel, moved towards the mean of its 3x3 neighbourhood by a factor for each channel: x + scale (mean(x) - x).

    x (B, C, H, W), scale (C,). At the border the mean is of those neighbours that exist.
    """
    return x + scale[:, None, None] * (neighbours(x) - x)


def pool_mixer_backward(dy: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and scale. A pixel is in the means of its neighbours, each divided by its own number of them."""
    moved = scale[:, None, None] * dy
    count = _sums(torch.ones_like(x[:1, :1]))
    dx = dy - moved + _sums(moved / count)
    return dx, (dy * (neighbours(x) - x)).sum((0, 2, 3))


def neighbours(x: Tensor) -> Tensor:
    """The mean of the 3x3 neighbourhood of every pixel of (B, C, H, W), as far as the map goes."""
    return _sums(x) / _sums(torch.ones_like(x[:1, :1]))


def _sums(x: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1))
    rows = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
