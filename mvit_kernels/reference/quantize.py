"""Bytes for real numbers and back, in plain torch: real = scale * (q - zero_point), zero_point any int32.

Every float operation is one correctly rounded operation in the order given; the kernels repeat them (csrc/cpu/ops/quantize.h).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor
_FAR = 2.0**22  # beyond it nothing but the clamp is left to do, and the conversion to int32 is safe
_LEAST = 2.0**-100  # scale of rows: its inverse and what is multiplied by it stay finite


def single(number: float) -> Tensor:
    """A number as float32."""
    return torch.tensor(number, dtype=torch.float32)


def along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """One value, or one for each index of that axis of x, so that it broadcasts against x."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if each == axis % x.ndim else 1 for each in range(x.ndim)])


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8) -> Tensor:
    """q = min(max(rint(x * float32(1 / scale)) + zero_point, 0), 2^bits - 1), ties to even; uint8.

    x of any float type, in float32. scale (float32) and zero_point (int32) are scalars or broadcast against x. NaN becomes 0.
    """
    inverse = (1.0 / scale.double()).float()
    t = (x.float() * inverse).clamp(-_FAR, _FAR).nan_to_num(-_FAR).round()
    return (t.to(torch.int64) + zero_point.to(torch.int64)).clamp(0, 2**bits - 1).to(torch.uint8)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """scale * float(q - zero_point) in float32, then as dtype; the difference is exact while |zero_point| < 2^24, else rounded once."""
    return (scale.float() * (q.to(torch.int64) - zero_point.to(torch.int64)).float()).to(dtype)


class Rows(NamedTuple):
    """A matrix of bytes whose rows have a scale (M,) float32 and a zero-point (M,) int32 each."""

    q: Tensor
    scale: Tensor
    zero_point: Tensor


def quantize_rows(x: Tensor, bits: int = 8) -> Rows:
    """Each row of x (M, K) over the range of its values and 0, so that 0 has a byte of its own and the zero-point is one too.

    low = min(row, 0), high = max(row, 0); scale = high * float32(1 / (2^bits - 1)) - low * float32(1 / (2^bits - 1)), at least 2^-100
    (high - low itself may be infinite); zero_point = rint(-low / scale) by one division; then as `quantize`. Rows that are all zero, or
    smaller than 2^-101, are all zero-point. Values must be finite: NaN counts as nothing and becomes 0, rows with infinity get an infinite
    scale.
    """
    most = 2**bits - 1
    x = x.float()
    zeros = x.new_zeros(x.shape[0])
    some = x.where(~x.isnan(), 0.0)
    low, high = (torch.minimum(some.amin(1), zeros), torch.maximum(some.amax(1), zeros)) if x.shape[1] else (zeros, zeros)
    step = single(1 / most).to(x.device)
    scale = (high * step - low * step).clamp_min(_LEAST)
    zero_point = (-low / scale).nan_to_num(0.0).round().clamp(0, most).to(torch.int32)
    return Rows(quantize(x, scale[:, None], zero_point[:, None], bits), scale, zero_point)
