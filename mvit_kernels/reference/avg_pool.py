"""Global average pooling (arXiv 1312.4400, section 3.2), of a map or of its GroupNorm, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .activation import activate, activate_backward
from .gemm import layer_norm_rows_backward, moments_of

Tensor = torch.Tensor


def avg_pool(x: Tensor, moments: Tensor | None = None, eps: float = 1e-5, activation: str = "none") -> Tensor:
    """act(the mean of each channel over all pixels): (B, C) of x (B, C, H, W), or of (x - mean) / sqrt(variance + eps), where `moments`
    (B, 2) holds mean and variance of each image."""
    if moments is not None:
        mean, variance = (each.to(x.dtype)[:, None, None, None] for each in moments.unbind(1))
        x = (x - mean) * torch.rsqrt(variance + eps)
    return activate(x.mean((2, 3)), activation)


def avg_pool_backward(dy: Tensor, size: Sequence[int]) -> Tensor:
    """The gradient of the mean alone with respect to x of that size, a view of (B, C): every pixel has the same."""
    return (dy / (size[2] * size[3]))[:, :, None, None].expand(*size)


def avg_pool_norm_backward(dy: Tensor, x: Tensor, norm: bool, eps: float, activation: str) -> Tensor:
    """The same with a norm and an activation. Moments are those of x, and change with it."""
    moments = moments_of(x, x.shape[0]) if norm else None
    dx = avg_pool_backward(activate_backward(dy, avg_pool(x, moments, eps), activation), x.shape)
    return layer_norm_rows_backward(dx.flatten(1), x.flatten(1), eps).reshape(x.shape) if norm else dx
