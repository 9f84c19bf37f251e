"""Float operations whose bits are pinned (csrc/INTEGERS.md): what follows exact integer sums, and quantization.

Every operation is one correctly rounded operation of IEEE 754 in the order of `mvit_kernels/reference/qgemm.py`; kernels that use them are
launched without contraction into fused multiply-adds."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

Tensor = torch.Tensor


@triton.jit
def rint(x):
    """To the nearest integer, ties to even, of |x| <= 2^22: beyond 2^23 floats are integers."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def clamp(x, low, high):
    """min(max(x, low), high); NaN becomes low."""
    return tl.where(x >= low, tl.where(x <= high, x, high), low)


@triton.jit
def to_byte(x, zero_point, most):
    """rint(x) + zero_point, from 0 to most, of float32 x and |zero_point| <= 2^20; NaN becomes 0."""
    q = rint(clamp(x, -4194304.0, 4194304.0)).to(tl.int32) + zero_point
    return tl.minimum(tl.maximum(q, 0), most).to(tl.uint8)


@triton.jit
def double(bits):
    """The float64 that `double_bits` made a number of: Triton passes a float as a float32."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def rint_double(x):
    """`rint` of float64, of |x| <= 2^51."""
    return (x + 6755399441055744.0) - 6755399441055744.0


@triton.jit
def polynomial(x, segments):
    """max(x, 0) + e(|x|), e a quadratic polynomial on each of 32 segments and 0 beyond 16; segments (3, 32) float32."""
    size = tl.abs(x)
    line = tl.minimum(tl.minimum(size * 4.0, size * 2.0 + 8.0), size + 16.0)
    at = segments + tl.where(line < 31.0, line, 31.0).to(tl.int32)  # of NaN too
    e = (tl.load(at + 64) * size + tl.load(at + 32)) * size + tl.load(at)
    return tl.where(x < 0, 0.0, x) + tl.where(size > 16.0, 0.0, e)


@triton.jit
def curve(x, table):
    """A byte of x: `reference.apply_curve`, in int32; table as `packed_curve` makes it. |x| is rounded by a sum whose last place is 1, and
    factors of two cancel: csrc/cuda/primitives/qcurve.cuh."""
    size = tl.abs(x)
    bits = (tl.where(size < 32767.0, size, 32767.0) + 12582912.0).to(tl.int32, bitcast=True)  # of NaN too
    segment, m = tl.load(table + ((bits >> 9) & 63)), bits & 511
    low, square = segment.to(tl.int32), (segment >> 32).to(tl.int32)
    slope = (low >> 16) + ((m * square + 256) >> 9)
    e = ((low << 16) >> 16) + ((m * slope + 256) >> 9)
    shift, added, most = tl.load(table + 64).to(tl.int32), tl.load(table + 65).to(tl.int32), tl.load(table + 66).to(tl.int32)
    y = tl.minimum(tl.where(x > 0, bits & 0x7FFF, 0) + ((e + added) >> 5), 32767) >> shift
    return tl.minimum(tl.maximum(y, 0), most)


@triton.jit
def _real_sums(sums, n, known, channels, stride, row_scale, ROW_SCALE: tl.constexpr):
    scale = tl.load(channels + stride + n, mask=known, other=0).to(tl.float32, bitcast=True)[None, :]
    if ROW_SCALE:
        bias = tl.load(channels + 2 * stride + n, mask=known, other=0).to(tl.float32, bitcast=True)[None, :]
        x = sums.to(tl.float32) * (row_scale[:, None] * scale) + bias
    else:
        x = sums.to(tl.float32) * scale
    return x


@triton.jit
def _stream(x, residual, inside, RESIDUAL: tl.constexpr):
    q = rint(clamp(x, -131072.0, 131072.0)).to(tl.int32)
    if RESIDUAL:
        q += tl.load(residual, mask=inside, other=0).to(tl.int32)
    return tl.minimum(tl.maximum(q, -32768), 32767)


@triton.jit
def _activated(
    x, segments, residual, inside, residual_scale, residual_zero_point, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr
):  # fmt: skip
    if RESIDUAL:
        beside = tl.load(residual, mask=inside, other=0)
        if beside.dtype == tl.uint8 or beside.dtype == tl.int16:
            x = x + (beside.to(tl.int32) - residual_zero_point).to(tl.float32) * residual_scale
        else:
            x = x + beside.to(tl.float32)
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "polynomial":
        x = polynomial(x, segments)
    return x


@triton.jit
def _byte(x, n, known, channels, stride):
    low = tl.load(channels + 4 * stride + n, mask=known, other=0).to(tl.float32, bitcast=True)
    high = tl.load(channels + 5 * stride + n, mask=known, other=0).to(tl.float32, bitcast=True)
    zero_point = tl.load(channels + 6 * stride + n, mask=known, other=0)
    return rint(clamp(x, low[None, :], high[None, :])).to(tl.int32) + zero_point[None, :]


@triton.jit
def floats_to_byte(x, n, columns, channels, stride):
    """A byte of floats (rows, columns n), as `quantize` makes it: `for_bytes` of mvit_kernels/ops/qchannels.py."""
    known = n < columns
    inverse = tl.load(channels + 3 * stride + n, mask=known, other=0).to(tl.float32, bitcast=True)
    return _byte(x * inverse[None, :], n, known, channels, stride)


@triton.jit
def epilogue(
    sums, n, columns, channels, stride, table, segments, residual, inside, row_scale, residual_scale, residual_zero_point,
    OUT: tl.constexpr, PLAIN: tl.constexpr, ACTIVATION: tl.constexpr, TABLE: tl.constexpr, RESIDUAL: tl.constexpr,
    ROW_SCALE: tl.constexpr,
):  # fmt: skip
    """What leaves of exact sums (rows, columns n) int32, init added: `reference.epilogue`, in the type of its last operation.

    channels (7, stride) as in `Channels`; residual: addresses (rows, n); row_scale (rows,). OUT: int32, stream (int16), bytes or floats;
    ACTIVATION: none, relu or polynomial; TABLE: none, bytes or curve.
    """
    known = n < columns
    if OUT == "int32":
        y = sums
    else:
        x = _real_sums(sums, n, known, channels, stride, row_scale, ROW_SCALE)
        if OUT == "stream":
            y = _stream(x, residual, inside, RESIDUAL)
        elif TABLE == "curve":
            y = curve(x, table)
        else:
            if not PLAIN:
                x = _activated(x, segments, residual, inside, residual_scale, residual_zero_point, ACTIVATION, RESIDUAL)
            if OUT == "floats":
                y = x
            else:
                if not PLAIN:
                    x = x * tl.load(channels + 3 * stride + n, mask=known, other=0).to(tl.float32, bitcast=True)[None, :]
                y = _byte(x, n, known, channels, stride)
                if TABLE == "bytes":
                    y = tl.load(table + y)  # beyond the last column the zero-point and both ends are 0
    return y


# --- what launches it ---


def double_bits(number: float) -> int:
    """A number as the argument of a kernel, which calls it `double`."""
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits


def packed_curve(table: Tensor) -> Tensor:
    """A curve (196,) int16 as kernels read it, with one load for a value: (67,) int64. Of each segment the coefficients of 1, m and m^2 in
    the words of 16, 16 and 32 bits from the lowest on; then f, 16 + 32 offset, most."""
    wide = table.long()
    constant, slope, square = wide[:192].unflatten(0, (3, 64))
    segments = (constant & 0xFFFF) | (slope & 0xFFFF) << 16 | square << 32
    return torch.cat([segments, torch.stack([wide[192], 16 + 32 * wide[193], wide[194]])])


class Finish(NamedTuple):
    """How results of an integer product leave; tensors on the device of y."""

    channels: Tensor  # (7, columns rounded up) int32
    out_dtype: torch.dtype
    plain: bool
    activation: str
    segments: Tensor | None  # (3, 32) float32, of an activation that is neither none nor relu
    table: Tensor | None  # (256,) uint8, or of `packed_curve`
    residual: Tensor | None
    residual_scale: float
    residual_zero_point: int
    u: Tensor | None = None  # (B, 2 columns) float32, of a dynamic ReLU between the floats of convolutions and their bytes

    def arguments(self) -> tuple[Any, ...]:
        """channels, stride, table, segments, residual, residual_scale, residual_zero_point, u; anything for what is not there."""
        spare = self.channels
        table, segments, residual, u = (spare if x is None else x for x in (self.table, self.segments, self.residual, self.u))
        return self.channels, self.channels.stride(0), table, segments, residual, self.residual_scale, self.residual_zero_point, u

    def settings(self) -> dict[str, Any]:
        out = (
            "floats"
            if self.u is not None
            else {torch.int32: "int32", torch.int16: "stream", torch.uint8: "bytes"}.get(self.out_dtype, "floats")
        )
        table = "none" if self.table is None else "bytes" if self.table.dtype == torch.uint8 else "curve"
        activation = self.activation if self.segments is None else "polynomial"
        return {
            "OUT": out, "PLAIN": self.plain, "ACTIVATION": activation, "TABLE": table, "RESIDUAL": self.residual is not None,
            "DYNAMIC": self.u is not None,
        }  # fmt: skip
