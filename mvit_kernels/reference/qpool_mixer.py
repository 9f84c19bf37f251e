"""`pool_mixer` of bytes, in plain torch."""

from __future__ import annotations

import torch

from .pool_mixer import _sums
from .quantize import quantize, single

Tensor = torch.Tensor


def pool_factors(scale: Tensor, a_scale: float, out_scale: float) -> tuple[Tensor, Tensor]:
    """(C,) float32 each: (1 - scale) a_scale / out_scale and scale a_scale / out_scale, in float64 and rounded once."""
    ratio = single(a_scale).double() / single(out_scale).double()
    exact = scale.double()
    return ((1.0 - exact) * ratio).float(), (exact * ratio).float()


def qpool_mixer(x: Tensor, a_zero_point: int, keep: Tensor, move: Tensor, out_zero_point: int, out_bits: int = 8) -> Tensor:
    """x (B, C, H, W) uint8 to the same: t = float(x - z) keep + (float(sum of n neighbours - n z) * float32(1 / n)) move, each operation
    rounded once; rint(t) + out_zero_point clamped to 0 .. 2^out_bits - 1. keep and move: (C,) float32 of `pool_factors`."""
    difference = (x.to(torch.int32) - a_zero_point).float()
    count = _sums(torch.ones_like(difference[:1, :1]))  # small whole numbers, as are the differences: exact
    mean = _sums(difference) * (1.0 / count)
    t = difference * keep[:, None, None] + mean * move[:, None, None]
    return quantize(t, single(1.0), torch.tensor(out_zero_point), out_bits)
