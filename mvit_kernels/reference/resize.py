"""Bilinear resizing of a map with an activation behind it, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .activation import activate, activate_backward

Tensor = torch.Tensor


def resize(x: Tensor, output_size: Sequence[int], align_corners: bool = False, activation: str = "none") -> Tensor:
    """act(torch.nn.functional.interpolate(x, output_size, mode="bilinear")) of x (B, C, H, W).

    Each operation by itself and in one order, so that quantized networks, which resize their streams by it, have the same bits anywhere:
    weights are products in float64, rounded to the dtype of x; then four products are added, from the upper left to the lower right.
    """
    (top, bottom, down), (left, right, across) = (
        between(size, out, align_corners, x.device) for size, out in zip(x.shape[2:], output_size, strict=True)
    )
    upper, lower = x[:, :, top], x[:, :, bottom]
    total = upper[..., left] * _outer(1 - down, 1 - across, x)
    total = total + upper[..., right] * _outer(1 - down, across, x)
    total = total + lower[..., left] * _outer(down, 1 - across, x)
    total = total + lower[..., right] * _outer(down, across, x)
    return activate(total, activation)


def between(size: int, out: int, align_corners: bool, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(first, second, share) of each output along an axis, which lies between the inputs first and second (int64) and takes share (float64)
    of second: the coordinates of torch.nn.functional.interpolate."""
    i = torch.arange(out, dtype=torch.float64, device=device)
    corners = (size - 1) / (out - 1) if out > 1 else 0.0
    at = i * corners if align_corners else ((i + 0.5) * (size / out) - 0.5).clamp_min(0.0)
    first = at.floor().clamp_max(size - 1)
    index = first.to(torch.int64)
    return index, (index + 1).clamp_max(size - 1), (at - first).clamp_max(1.0)


def _outer(down: Tensor, across: Tensor, x: Tensor) -> Tensor:
    return (down[:, None] * across).to(x.dtype)


def resize_backward(dy: Tensor, x: Tensor, align_corners: bool = False, activation: str = "none") -> Tensor:
    """The gradient with respect to x; dy has the size of the result."""
    size = dy.shape[2:]
    if activation != "none":
        dy = activate_backward(dy, resize(x, size, align_corners), activation)
    return torch.ops.aten.upsample_bilinear2d_backward(dy, size, x.shape, align_corners)
