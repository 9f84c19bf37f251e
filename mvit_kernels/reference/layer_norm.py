"""LayerNorm over the last axis (arXiv 1607.06450, equation 4), the norm of MobileViT's transformers, in plain torch."""

from __future__ import annotations

import torch


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over the last axis.

    x: (..., C); weight, bias: (C,).
    """
    return torch.layer_norm(x, weight.shape, weight, bias, eps)


def layer_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `layer_norm` with respect to x, weight and bias; dy has the shape of x.

    With xhat = (x - mean) / sigma and g = dy weight: dx = (g - mean(g) - xhat mean(g xhat)) / sigma.
    """
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + eps)
    normal = (x - mean) * inverse
    gradient = dy * weight
    dx = (gradient - gradient.mean(-1, keepdim=True) - normal * (gradient * normal).mean(-1, keepdim=True)) * inverse
    return dx, (dy * normal).sum_to_size(weight.shape), dy.sum_to_size(weight.shape)
