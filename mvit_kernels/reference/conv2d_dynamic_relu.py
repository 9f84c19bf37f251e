"""A convolution whose result goes through a dynamic ReLU, as Mobile-Former (arXiv 2108.05895) has them, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .conv2d import convolution_backward
from .dynamic_relu import dynamic_relu, dynamic_relu_backward

Tensor = torch.Tensor


def conv2d_dynamic_relu(x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, stride: int = 1) -> Tensor:
    """dynamic_relu(conv2d(x, weight, padding=k // 2) + bias, u) of x (B, C, H, W), weight (N, C, 1, 1), or (m C, 1, 3, 3) of a depthwise
    convolution, bias (N,), u (B, 2 N)."""
    return dynamic_relu(_conv2d(x, weight, bias, stride), u)


def conv2d_dynamic_relu_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, stride: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to x, weight, bias and u."""
    between, du = dynamic_relu_backward(dy, _conv2d(x, weight, bias, stride), u)
    return *convolution_backward(between, x, weight, stride, _groups(x, weight)), du


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return F.conv2d(x, weight, bias, stride, weight.shape[2] // 2, groups=_groups(x, weight))


def _groups(x: Tensor, weight: Tensor) -> int:
    return x.shape[1] if weight.shape[2] == 3 else 1
