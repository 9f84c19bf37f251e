"""Convolution with a second input, activation and residual, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .activation import activate, activate_backward

Tensor = torch.Tensor


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, second: Tensor | None = None, residual: Tensor | None = None, stride: int = 1,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    """act(conv2d(cat(x, second), weight, padding=k // 2) + bias) + residual.

    x (B, C, H, W), second (B, C2, H, W), weight (N, C + C2, k, k) with odd k, bias (N,), residual (B, N, ceil(H / s), ceil(W / s)).
    """
    y = activate(F.conv2d(beside(x, second), weight, bias, stride, weight.shape[2] // 2), activation)
    return y if residual is None else y + residual


def beside(x: Tensor, second: Tensor | None) -> Tensor:
    """The input of the convolution: x, with the channels of `second` behind its own."""
    return x if second is None else torch.cat([x, second], dim=1)


def conv2d_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, second: Tensor | None = None, stride: int = 1,
    activation: str = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `conv2d` with respect to x, weight, bias and second (empty without one); that of residual is dy."""
    both = beside(x, second)
    if activation != "none":
        dy = activate_backward(dy, F.conv2d(both, weight, bias, stride, weight.shape[2] // 2), activation)
    dboth, dweight, dbias = convolution_backward(dy, both, weight, stride)
    return dboth[:, : x.shape[1]], dweight, dbias, dboth[:, x.shape[1] :]


def convolution_backward(dy: Tensor, x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a convolution with padding k // 2 with respect to x, weight and bias: torch's."""
    padding, size = weight.shape[2] // 2, [weight.shape[0]]
    return torch.ops.aten.convolution_backward(
        dy, x, weight, size, [stride, stride], [padding, padding], [1, 1], False, [0, 0], groups, [True, True, True]
    )
