"""Depthwise 3x3 convolution (MobileNet, arXiv 1704.04861, equation 3) with activation, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .activation import activate, activate_backward
from .conv2d import convolution_backward

Tensor = torch.Tensor


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, activation: str = "none") -> Tensor:
    """act(conv2d(x, weight, padding=1, groups=C) + bias) of x (B, C, H, W), weight (m C, 1, 3, 3), bias (m C,)."""
    return activate(F.conv2d(x, weight, bias, stride, 1, groups=x.shape[1]), activation)


def depthwise_conv2d_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, activation: str = "none"
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `depthwise_conv2d` with respect to x, weight and bias."""
    if activation != "none":
        dy = activate_backward(dy, F.conv2d(x, weight, bias, stride, 1, groups=x.shape[1]), activation)
    return convolution_backward(dy, x, weight, stride, x.shape[1])
