"""Bilinear resizing of a quantized map, in plain torch; scale and zero-point stay what they are."""

from __future__ import annotations

import torch

from .resize import between

Tensor = torch.Tensor
ONE = 2**11


def taps(size: int, out: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(first, second, weight), int64, of each output along an axis: it lies between the inputs first and second, and weight / 2^11 is what
    it takes of second, rounded to nearest even."""
    first, second, share = between(size, out, align_corners)
    return first, second, (share * ONE).round().to(torch.int64)


def qresize(x: Tensor, output_size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """x (B, C, H, W) uint8: rint(float32(sum of four bytes times weights) * 2^-22), the sum exact; at most 5/8 from the exact result."""
    (top, bottom, down), (left, right, across) = (
        (each.to(x.device) for each in taps(size, out, align_corners)) for size, out in zip(x.shape[2:], output_size, strict=True)
    )
    x = x.to(torch.int64)
    rows = torch.stack([x[:, :, top], x[:, :, bottom]]), torch.stack([ONE - down, down])
    sums = sum(
        part[..., column] * (weight[:, None] * share)
        for part, weight in zip(*rows, strict=True)
        for column, share in ((left, ONE - across), (right, across))
    )
    return (torch.as_tensor(sums).float() * 2.0**-22).round().to(torch.uint8)
