"""Global average pooling (arXiv 1312.4400, section 3.2), in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Tensor = torch.Tensor


def avg_pool(x: Tensor) -> Tensor:
    """The mean of each channel over all pixels: (B, C) of x (B, C, H, W)."""
    return x.mean((2, 3))


def avg_pool_backward(dy: Tensor, size: Sequence[int]) -> Tensor:
    """The gradient with respect to x of that size, a view of (B, C): every pixel has the same."""
    return (dy / (size[2] * size[3]))[:, :, None, None].expand(*size)
