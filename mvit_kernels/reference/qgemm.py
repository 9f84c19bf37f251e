"""Integer matrix product with zero-points, in plain torch: exact sums, and the pinned float operations that follow them.

Every float operation below is one correctly rounded operation of IEEE 754 in the order given; the kernels repeat them (csrc/cpu/core/
qepilogue.h), so results are equal bit for bit. Scheme: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", eq. 1 to 7, with a float multiplier instead of a fixed-point one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .activation_curve import apply_curve
from .activation_segments import SEGMENTS

Tensor = torch.Tensor

QACTIVATIONS = ("none", "relu", *SEGMENTS)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
OVERFLOW = 2**31


class Channels(NamedTuple):
    """What each of N output channels needs to leave int32 again: a row of N values each, in the order of csrc/cpu/core/qtile.h."""

    init: Tensor  # int32: what sums begin with
    scale: Tensor  # float32, as all below
    bias: Tensor
    inverse: Tensor
    low: Tensor
    high: Tensor
    zero_point: Tensor  # int32


def segments(activation: str) -> Tensor:
    """(3, 32) float32: the coefficients of x^0, x^1 and x^2 on each segment."""
    return torch.tensor(SEGMENTS[activation], dtype=torch.float32)


def qactivate(x: Tensor, activation: str) -> Tensor:
    """none, relu, or one of silu, gelu and hard_swish as max(x, 0) + e(|x|) with e a quadratic polynomial on each of 32 segments (at most
    7e-5 from the function) and 0 beyond 16: the same bits everywhere, as it takes no exponential."""
    if activation == "none":
        return x
    positive = torch.maximum(x, torch.zeros_like(x))
    if activation == "relu":
        return positive
    size = x.abs()
    line = torch.minimum(torch.minimum(size * 4, size * 2 + 8), size + 16).nan_to_num(31.0)
    c0, c1, c2 = segments(activation).to(x.device)[:, line.clamp(max=31).to(torch.int64)]
    e = (c2 * size + c1) * size + c0
    return positive + torch.where(size > 16, torch.zeros_like(e), e)


def qgemm_accumulate(a: Tensor, weight: Tensor, a_zero_point: Tensor) -> Tensor:
    """sum_k (a[m, k] - a_zero_point) weight[n, k] as int32, exact wherever it fits.

    a (M, K) uint8, weight (N, K) int8, a_zero_point int32: a scalar, (M, 1) for one each row or (1, K) for one each input channel.
    """
    return wrap(matmul(a.to(torch.int64) - a_zero_point.to(torch.int64), weight))


def matmul(a: Tensor, weight: Tensor) -> Tensor:
    """a (M, K) of integers below 2^33 in size, weight (N, K) int8: exact int64, by doubles where all sums fit them."""
    a = a.to(torch.int64)
    if a.numel() == 0 or weight.numel() == 0:
        return a.new_zeros(a.shape[0], weight.shape[0])
    if int(a.abs().max()) * 128 * weight.shape[1] < 2**53:
        return (a.double() @ weight.double().T).to(torch.int64)
    return (a[:, None, :] * weight.to(torch.int64)).sum(-1)


def wrap(x: Tensor) -> Tensor:
    """int64 to int32 modulo 2^32."""
    return ((x + OVERFLOW) % (2 * OVERFLOW) - OVERFLOW).to(torch.int32)


def largest_sum(weight: Tensor, a_zero_point: Tensor, a_bits: int) -> int:
    """max_n sum_k |w[n, k]| max(|z|, |2^bits - 1 - z|), a_zero_point a scalar, (1, K) or anything else to take the largest of."""
    z = a_zero_point.to(torch.int64)
    distance = torch.maximum(z.abs(), (2**a_bits - 1 - z).abs())
    if weight.numel() == 0 or z.numel() == 0:
        return 0
    if distance.ndim != 2 or distance.shape[0] != 1:
        distance = distance.max()
    return int((weight.to(torch.int64).abs() * distance).sum(1).max())


def epilogue(
    sums: Tensor, channels: Channels, *, plain: bool, activation: str, out_dtype: torch.dtype, residual: Tensor | None = None,
    residual_scale: float = 1.0, residual_zero_point: int = 0, table: Tensor | None = None, row_scale: Tensor | None = None,
    row_zero_point: Tensor | None = None, column_sum: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """From exact sums (int64, before init is added) to y. Rows are all but the last axis, channels the last one."""
    sums = sums + channels.init.to(torch.int64)
    if row_zero_point is not None:
        assert column_sum is not None
        sums = sums - row_zero_point.to(torch.int64)[:, None] * column_sum.to(torch.int64)
    sums = wrap(sums)
    if out_dtype == torch.int32:
        return sums
    x = sums.float()
    x = x * channels.scale if row_scale is None else x * (row_scale[:, None] * channels.scale) + channels.bias
    if out_dtype == torch.int16:
        q = x.clamp(-(2.0**17), 2.0**17).round().to(torch.int64)
        return (q if residual is None else q + residual.to(torch.int64)).clamp(-(2**15), 2**15 - 1).to(torch.int16)
    if table is not None and table.dtype == torch.int16:
        return apply_curve(x, table)
    if not plain:
        if residual is not None:
            x = x + _real(residual, residual_scale, residual_zero_point)
        x = qactivate(x, activation)
    if out_dtype != torch.uint8:
        return x.to(out_dtype)
    if not plain:
        x = x * channels.inverse
    y = to_byte(x, channels)
    return y if table is None else table[y.to(torch.int64)]


def to_byte(x: Tensor, channels: Channels) -> Tensor:
    """rint(min(max(x, low), high)) + zero_point; NaN becomes low."""
    x = torch.where(x.isnan(), channels.low, torch.minimum(torch.maximum(x, channels.low), channels.high))
    return (x.round().to(torch.int64) + channels.zero_point.to(torch.int64)).to(torch.uint8)


def _real(residual: Tensor, scale: float, zero_point: int) -> Tensor:
    if residual.is_floating_point():
        return residual.float()
    return (residual.to(torch.int64) - zero_point).float() * torch.tensor(scale, dtype=torch.float32)


def qgemm(a: Tensor, weight: Tensor, channels: Channels, **settings: object) -> Tensor:
    """a (M, K) uint8, weight (N, K) int8: `epilogue` of the exact product."""
    return epilogue(matmul(a, weight), channels, column_sum=weight.to(torch.int64).sum(1), **settings)  # type: ignore[arg-type]
