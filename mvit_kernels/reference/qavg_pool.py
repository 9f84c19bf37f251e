"""Global average pooling of a quantized map, in plain torch."""

from __future__ import annotations

import torch

from .quantize import quantize, single

Tensor = torch.Tensor


def qavg_pool(
    x: Tensor, a_scale: float, a_zero_point: int, out_scale: float = 1.0, out_zero_point: int = 0,
    out_dtype: torch.dtype = torch.float32, out_bits: int = 8,
) -> Tensor:  # fmt: skip
    """x (B, C, H, W) uint8 to (B, C): t = float(sum of x - H W a_zero_point) * float32(a_scale / (H W out_scale)), the sum exact and the
    quotient in float64; t itself as float32, or rint(t) + out_zero_point clamped to 0 .. 2^out_bits - 1."""
    pixels = x.shape[2] * x.shape[3]
    scale = single(float(single(a_scale)) / (pixels * float(single(out_scale))))
    t = (x.to(torch.int64).sum((2, 3)) - pixels * a_zero_point).float() * scale
    return t if out_dtype == torch.float32 else quantize(t, single(1.0), torch.tensor(out_zero_point), out_bits)
