"""Bilinear resizing of a map with an activation behind it, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .activation import activate, activate_backward

Tensor = torch.Tensor


def resize(x: Tensor, output_size: Sequence[int], align_corners: bool = False, activation: str = "none") -> Tensor:
    """act(torch.nn.functional.interpolate(x, output_size, mode="bilinear")) of x (B, C, H, W)."""
    return activate(F.interpolate(x, tuple(output_size), mode="bilinear", align_corners=align_corners), activation)


def resize_backward(dy: Tensor, x: Tensor, align_corners: bool = False, activation: str = "none") -> Tensor:
    """The gradient with respect to x; dy has the size of the result."""
    size = dy.shape[2:]
    if activation != "none":
        dy = activate_backward(dy, resize(x, size, align_corners), activation)
    return torch.ops.aten.upsample_bilinear2d_backward(dy, size, x.shape, align_corners)
