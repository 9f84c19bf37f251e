"""The same linear map at every position of a map (B, C, H, W): a 1x1 convolution, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
_PART = 64  # rows, at least


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (B, C, H, W), weight (O, C) or (O, C, 1, 1) -> (B, O, H, W)."""
    if x.numel() == 0:  # conv2d takes no map without pixels
        y = torch.einsum("bchw,oc->bohw", x, weight.flatten(1))
        return y if bias is None else y + bias[:, None, None]
    return F.conv2d(x, weight.reshape(*weight.shape[:2], 1, 1), bias)


def pointwise_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to x, weight and bias, whose sum stays in float32 of 16-bit floats."""
    matrix = weight.flatten(1)
    rows_dy, rows_x = (each.permute(0, 2, 3, 1).reshape(-1, each.shape[1]) for each in (dy, x))
    dx = (rows_dy @ matrix).reshape(dy.shape[0], *dy.shape[2:], matrix.shape[1]).permute(0, 3, 1, 2)
    return dx, weight_gradient(rows_dy, rows_x).reshape(weight.shape), rows_dy.sum(0, dtype=torch.promote_types(dy.dtype, torch.float32))


def weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """dy (M, O), x (M, C) -> (O, C), the sum over rows of dy^T x.

    In parts of some rows, whose products are added by pairs: on some processors torch's own product of narrow matrices adds all rows
    one after the other, with several times the error. Parts are so long that their products take no more memory than the rows. 16-bit
    floats are one product, whose sums are float32 inside, while parts would be rounded.
    """
    rows, part = x.shape[0], max(_PART, min(dy.shape[1], x.shape[1]))
    whole = rows // part * part
    if whole <= part or x.dtype not in (torch.float32, torch.float64):
        return dy.T @ x
    parts = (each[:whole].reshape(-1, part, each.shape[1]) for each in (dy, x))
    total = torch.bmm(next(parts).mT, next(parts)).sum(0)
    return total if whole == rows else total + dy[whole:].T @ x[whole:]
