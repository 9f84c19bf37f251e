"""SiLU and GELU on int16 numbers, in plain torch: what csrc/cpu/core/qcurve.h repeats bit for bit, and its tables.

Both are max(x, 0) + e(|x|), e(u) = -u sigmoid(-u) for SiLU and -u Phi(-u) for GELU. A curve is int16: three tables of 64, the coefficients
of a quadratic polynomial of e on each segment, then f, offset and most.
"""

from __future__ import annotations

import math

import torch

from .quantize import single

Tensor = torch.Tensor

CURVES = {"silu": 12.0, "gelu": 5.5}  # where e has become nothing, and the coefficients of a step still fit in int16
CURVE_SIZE, CURVE_SHIFT = 196, 192  # int16 values, and which of them is f
_SEGMENTS, _WIDTH, _FINE = 64, 512, 32


def curve_shift(name: str, out_scale: float) -> int | None:
    """f: 2^f steps of the argument to one of the result, at most 7; None where even one step does not reach far enough."""
    reach = math.floor(math.log2(2**15 * float(single(out_scale)) / CURVES[name]))
    return min(reach, 7) if reach >= 0 else None


def activation_curve(name: str, out_scale: float, out_zero_point: int, bits: int = 8) -> Tensor:
    """(196,) int16 for bytes of out_scale and out_zero_point (0 .. 2^bits - 1): what `table` of the integer products may be.

    Raises ValueError for other functions, zero-points that are no such bytes, and scales below 12 / 2^15 (GELU: 5.5 / 2^15).
    """
    if name not in CURVES:
        raise ValueError(f"activation_curve: name: expected one of {', '.join(CURVES)}, got {name!r}")
    if not 0 <= out_zero_point < 2**bits:
        raise ValueError(f"activation_curve: out_zero_point: expected one in [0, {2**bits - 1}], got {out_zero_point}")
    shift = curve_shift(name, out_scale)
    if shift is None:
        raise ValueError(f"activation_curve: out_scale: expected at least {CURVES[name] / 2**15:g}, got {out_scale:g}")
    step = float(single(out_scale)) / 2**shift  # of X
    # Each polynomial goes through e at the ends and in the middle of its segment.
    at = torch.arange(2 * _SEGMENTS + 1, dtype=torch.float64) * (_WIDTH / 2 * step)
    e = -at * (torch.sigmoid(-at) if name == "silu" else 0.5 * torch.erfc(at / math.sqrt(2))) * (_FINE / step)
    left, middle, right = e[:-2:2], e[1:-1:2], e[2::2]
    parts = left, 4 * middle - 3 * left - right, 2 * left + 2 * right - 4 * middle
    rest = [shift, (out_zero_point << shift) + (1 << shift >> 1), 2**bits - 1, 0]
    return torch.cat([*(part.round().to(torch.int16) for part in parts), torch.tensor(rest, dtype=torch.int16)])


def apply_curve(x: Tensor, curve: Tensor) -> Tensor:
    """uint8 of x, float32: sums times the scale of the curve's argument."""
    x = x.clamp(-(2.0**17), 2.0**17).round().to(torch.int64).clamp(-(2**15), 2**15 - 1)
    t0, t1, t2 = curve.to(torch.int64)[: 3 * _SEGMENTS].reshape(3, _SEGMENTS)
    shift, offset, most = curve[3 * _SEGMENTS : 3 * _SEGMENTS + 3].tolist()
    size = x.abs().clamp(max=2**15 - 1)
    i, r = size >> 9, (size & (_WIDTH - 1)) << 6
    e = t0[i] + _times(r, t1[i] + _times(r, t2[i]))
    y = (x.clamp(min=0) + _times(e, torch.tensor(1024)) + offset).clamp(max=2**15 - 1) >> shift
    return y.clamp(0, most).to(torch.uint8)


def _times(a: Tensor, b: Tensor) -> Tensor:
    return (a * b + 2**14) >> 15
