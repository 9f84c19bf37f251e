"""Pixels whose channels stay in registers while a product goes over its columns. Channels are two powers of two, C1 + C2, of which nearly
all widths of MobileViT are sums: 144 = 128 + 16, 192 = 128 + 64, 384 = 256 + 128."""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import power_of_two


def widths(dim: int) -> tuple[int, int]:
    """(C1, C2), powers of two from 16 or 0, that cover so many channels."""
    whole = power_of_two(dim, 16)
    if whole == dim or whole == 16:
        return whole, 0
    rest = power_of_two(dim - whole // 2, 16)
    return (whole, 0) if rest >= whole // 2 else (whole // 2, rest)


@triton.jit
def load_pixels(x, rows, c, dim):
    """Channels c of the pixels that begin `rows` (t, 1) values behind x, float32; zeros beyond the last channel."""
    return tl.load(x + rows + c[None, :], mask=(c < dim)[None, :], other=0.0).to(tl.float32)


@triton.jit
def squares(value, mean, c, dim):
    """(t,) sums of squared distances from the mean."""
    distance = tl.where((c < dim)[None, :], value - mean, 0.0)
    return tl.sum(distance * distance, 1)


@triton.jit
def normal(value, mean, inverse, c, dim):
    """Centred and scaled; zeros beyond the last channel, where -mean / sigma might not be finite in 16 bits."""
    return tl.where((c < dim)[None, :], (value - mean) * inverse, 0.0)
