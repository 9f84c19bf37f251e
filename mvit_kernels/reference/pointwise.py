"""The same linear map at every position of a map (B, C, H, W): a 1x1 convolution, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (B, C, H, W), weight (O, C) or (O, C, 1, 1) -> (B, O, H, W)."""
    if x.numel() == 0:  # conv2d takes no map without pixels
        y = torch.einsum("bchw,oc->bohw", x, weight.flatten(1))
        return y if bias is None else y + bias[:, None, None]
    return F.conv2d(x, weight.reshape(*weight.shape[:2], 1, 1), bias)


def pointwise_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to x, weight and bias."""
    matrix = weight.flatten(1)
    rows_dy, rows_x = (each.permute(0, 2, 3, 1).reshape(-1, each.shape[1]) for each in (dy, x))
    dx = (rows_dy @ matrix).reshape(dy.shape[0], *dy.shape[2:], matrix.shape[1]).permute(0, 3, 1, 2)
    return dx, (rows_dy.T @ rows_x).reshape(weight.shape), rows_dy.sum(0)
