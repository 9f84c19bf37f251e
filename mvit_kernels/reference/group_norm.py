"""GroupNorm with one group (arXiv 1803.08494, equation 2), the "layer_norm_2d" of MobileViTv2, in plain torch."""

from __future__ import annotations

import torch


def group_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over all channels and positions of an image.

    x: (B, C, H, W); weight, bias: (C,).
    """
    return torch.group_norm(x, 1, weight, bias, eps)


def group_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-5, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `group_norm` with respect to x, weight and bias; dy has the shape of x. residual: what is added to that of x.

    With xhat = (x - mean) / sigma and g = dy weight: dx = (g - mean(g) - xhat mean(g xhat)) / sigma.
    """
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + eps)
    normal = (x - mean) * inverse
    gradient = dy * weight[:, None, None]
    over = (1, 2, 3)
    dx = (gradient - gradient.mean(over, keepdim=True) - normal * (gradient * normal).mean(over, keepdim=True)) * inverse
    return dx if residual is None else dx + residual, (dy * normal).sum((0, 2, 3)), dy.sum((0, 2, 3))
