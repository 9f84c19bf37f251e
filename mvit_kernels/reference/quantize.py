"""Bytes for real numbers and back, in plain torch: real = scale * (q - zero_point), zero_point any int32."""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor
_FAR = 2.0**22  # beyond it nothing but the clamp is left to do, and the conversion to int32 is safe


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8) -> Tensor:
    """q = min(max(rint(x * float32(1 / scale)) + zero_point, 0), 2^bits - 1), ties to even; uint8.

    x of any float type, in float32. scale (float32) and zero_point (int32) are scalars or broadcast against x. NaN becomes some byte.
    """
    inverse = (1.0 / scale.double()).float()
    t = (x.float() * inverse).clamp(-_FAR, _FAR).nan_to_num(-_FAR).round()
    return (t.to(torch.int64) + zero_point.to(torch.int64)).clamp(0, 2**bits - 1).to(torch.uint8)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """scale * float(q - zero_point), float32; the difference is exact while |zero_point| < 2^24."""
    return scale.float() * (q.to(torch.int64) - zero_point.to(torch.int64)).float()


class Rows(NamedTuple):
    """A matrix of bytes whose rows have a scale (M,) float32 and a zero-point (M,) int32 each."""

    q: Tensor
    scale: Tensor
    zero_point: Tensor


def quantize_rows(x: Tensor, bits: int = 8) -> Rows:
    """Each row of x (M, K) over the range of its values and 0, so that 0 has a byte of its own and the zero-point is one too.

    low = min(row, 0), high = max(row, 0), scale = (high - low) * float32(1 / (2^bits - 1)), at least 2^-100;
    zero_point = rint(-low / scale)
    by one division; then as `quantize`. Values must be finite.
    """
    most = 2**bits - 1
    x = x.float()
    zeros = x.new_zeros(x.shape[0])
    low, high = (torch.minimum(x.amin(1), zeros), torch.maximum(x.amax(1), zeros)) if x.shape[1] else (zeros, zeros)
    scale = ((high - low) * torch.tensor(1 / most, dtype=torch.float32)).clamp_min(2.0**-100)
    zero_point = (-low / scale).round().clamp(0, most).to(torch.int32)
    return Rows(quantize(x, scale[:, None], zero_point[:, None], bits), scale, zero_point)
