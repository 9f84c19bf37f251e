"""What is computed once of the quantization of an integer layer: a value of each kind for each output channel.

Layers of every kind (products, convolutions, depthwise convolutions) share it. Scales are multiplied in float64 and rounded once;
zero-points and bias become what int32 sums begin with. mvit_kernels/reference/qgemm.py says how kernels use the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mvit_kernels.messages import shown
from mvit_kernels.reference.activation_curve import CURVE_SHIFT, CURVE_SIZE
from mvit_kernels.reference.qgemm import FLOATS, OVERFLOW, Channels, wrap
from mvit_kernels.reference.quantize import single

from . import checks, qchecks
from .pack_weight import QPANEL

Tensor = torch.Tensor

OUT_DTYPES = (torch.uint8, torch.int16, *FLOATS)
_FAR = 2**30  # zero-points of residuals: what is left once they are subtracted is an int32
_SMALLEST, _LARGEST = 2.0**-64, 2.0**64  # multipliers: products with int32 stay normal numbers


class Settings(NamedTuple):
    """How results leave: everything that is not a value for each channel."""

    out_dtype: torch.dtype
    activation: str
    plain: bool
    residual_scale: float  # 0: none was given
    residual_zero_point: int


class Quantization(NamedTuple):
    """channels (7, N rounded up to 16) int32: the rows of `Channels`, floats by their bits."""

    channels: Tensor
    settings: Settings


def for_bytes(channels: Tensor, out_scale: float, out_zero_point: int, out_bits: int) -> Tensor:
    """The channels of a layer to floats with a quantization of these, which something may stand in front of."""
    inverse = float((1.0 / single(out_scale).double()).float())
    rows = channels.clone()
    bounds = [[inverse], [float(-out_zero_point)], [float(2**out_bits - 1 - out_zero_point)]]
    rows[3:6] = torch.tensor(bounds, dtype=torch.float32).view(torch.int32)
    rows[6] = out_zero_point
    return rows


def unpack_channels(channels: Tensor, columns: int) -> Channels:
    init, *floats, zero_point = channels[:, :columns].unbind(0)
    scale, bias, inverse, low, high = (row.view(torch.float32) for row in floats)
    return Channels(init, scale, bias, inverse, low, high, zero_point)


def quantization(
    op: str, weight: Tensor, *, a_scale: Any, a_zero_point: Any, w_scale: Any, bias: Tensor | None, activation: str | None,
    residual_scale: Any, residual_zero_point: Any, out_dtype: torch.dtype, out_scale: Any, out_zero_point: Any, a_bits: int, out_bits: int,
    table: Tensor | None = None, depthwise: bool = False,
) -> Quantization:  # fmt: skip
    """Checks all and computes it once. weight (N, K) int8, as a matrix; a_scale None: of each row, when the layer is called. depthwise:
    an input channel, and its zero-point, meets the output channel of the same number alone. table: a curve has its own steps of results.
    """
    columns, depth = weight.shape
    activation = activation or "none"
    qchecks.activation(op, activation, qchecks.OF_PRODUCTS)
    if table is not None and qchecks.is_curve(table):
        qchecks.table(op, table, out_dtype)
        if activation != "none" or a_scale is None or residual_scale is not None or qchecks.tensor(op, "out_scale", out_scale).numel() != 1:
            raise ValueError(f"{op}: table: expected no activation, no scales of rows, no residual and one out_scale beside a curve")
        out_scale = qchecks.scale(op, "out_scale", out_scale) / 2 ** int(table[CURVE_SHIFT])
    if out_dtype not in OUT_DTYPES:
        raise ValueError(f"{op}: out_dtype: expected one of {', '.join(map(str, OUT_DTYPES))}, got {out_dtype}")
    a_most, out_most = 2 ** qchecks.bits(op, "a_bits", a_bits) - 1, 2 ** qchecks.bits(op, "out_bits", out_bits) - 1
    w_scale = qchecks.scales(op, "w_scale", w_scale, columns).double()
    dynamic = a_scale is None
    narrow = out_dtype in (torch.uint8, torch.int16)
    if narrow != (out_scale is not None):
        raise ValueError(f"{op}: out_scale: expected {'a scale' if narrow else 'None'} for out_dtype {out_dtype}, got {shown(out_scale)}")
    if out_dtype == torch.int16 and (dynamic or activation != "none"):
        raise ValueError(f"{op}: out_dtype: expected another than int16 with scales of rows or an activation, got {out_dtype}")

    if bias is None:
        bias = torch.zeros(columns)
    real_bias = qchecks.reals(op, "bias", bias, columns).double()
    if dynamic:
        if a_zero_point is not None:
            raise ValueError(
                f"{op}: a_zero_point: expected None where a_scale is None (both are given at the call), got {shown(a_zero_point)}"
            )
        init, total = torch.zeros(columns, dtype=torch.int32), w_scale
    else:
        total = qchecks.scale(op, "a_scale", a_scale) * w_scale
        z = qchecks.zero_points(op, "a_zero_point", a_zero_point, columns if depthwise else depth)
        init = _initial_sums(op, weight, total, real_bias, z[:, None] if depthwise else z[None, :], a_most)

    residual = residual_scale is not None
    if residual and out_dtype == torch.int16:
        raise ValueError(
            f"{op}: residual_scale: expected None, as an int16 residual has the scale of the result, got {shown(residual_scale)}"
        )
    # Floats are never plain: a residual of floats may come, of which nothing is known here.
    simple = not dynamic and not residual and activation in ("none", "relu", "relu6")
    if activation == "relu6" and not (simple and out_dtype == torch.uint8):
        raise ValueError(f"{op}: activation: expected relu6 for bytes only, without scales of rows or a residual, got {out_dtype}")
    plain = out_dtype == torch.int16 or (out_dtype == torch.uint8 and simple)
    inverse = torch.ones(columns, dtype=torch.float64)
    low = high = torch.zeros(columns, dtype=torch.float64)
    zero = torch.zeros(columns, dtype=torch.int32)
    if narrow:
        y_scale = qchecks.scales(op, "out_scale", out_scale, columns).double()
        if plain:
            total = total / y_scale
        else:
            inverse = 1.0 / y_scale
    if out_dtype == torch.uint8:
        zero = qchecks.zero_points(op, "out_zero_point", out_zero_point, columns, near=True)
        low, high = -zero.double(), out_most - zero.double()
        if plain and activation in ("relu", "relu6"):
            low = torch.minimum(torch.maximum(low, torch.zeros_like(low)), high)
        if activation == "relu6":
            high = torch.maximum(torch.minimum(high, (6.0 / y_scale).round()), low)
    elif out_zero_point is not None and bool(qchecks.tensor(op, "out_zero_point", out_zero_point).count_nonzero()):
        raise ValueError(f"{op}: out_zero_point: expected None or 0 for out_dtype {out_dtype}, got {shown(out_zero_point)}")
    _check_ratios(op, total)
    _check_ratios(op, inverse)
    rows = (init, *(each.float().view(torch.int32) for each in (total, real_bias, inverse, low, high)), zero)
    channels = F.pad(torch.stack(rows), (0, -columns % QPANEL))
    scale = qchecks.scale(op, "residual_scale", residual_scale) if residual else 0.0
    zero_point = 0 if residual_zero_point is None else qchecks.zero_point(op, "residual_zero_point", residual_zero_point)
    if abs(zero_point) > _FAR:
        raise ValueError(f"{op}: residual_zero_point: expected |zero_point| <= 2^30, got {zero_point}")
    settings = Settings(out_dtype, activation, plain, scale, zero_point)
    return Quantization(channels.contiguous(), settings)


def _initial_sums(op: str, weight: Tensor, total: Tensor, bias: Tensor, a_zero_point: Tensor, a_most: int) -> Tensor:
    """bias / (s_a s_w) - sum_k z_a w, modulo 2^32; nothing may overflow. a_zero_point (1, K), or (N, 1) of depthwise convolutions."""
    quantized = (bias / total).round()
    fits = quantized.abs() < OVERFLOW
    if not bool(fits.all()):
        n = int((~fits).nonzero()[0])
        raise ValueError(
            f"{op}: bias: expected |bias| < 2^31 a_scale w_scale, got {float(bias[n]):g} with a_scale w_scale = {float(total[n]):g} in"
            f" channel {n}: a larger w_scale keeps it within int32"
        )
    z = a_zero_point.to(torch.int64)
    sums = (weight.to(torch.int64).abs() * torch.maximum(z.abs(), (a_most - z).abs())).sum(1)
    most = int(sums.max()) if sums.numel() else 0
    if most + int(quantized.abs().max() if quantized.numel() else 0) >= OVERFLOW:
        raise ValueError(
            f"{op}: a_zero_point: expected sums below 2^31, got up to {most} with zero-points in [{int(z.min())}, {int(z.max())}] and"
            f" K = {weight.shape[1]}, and a bias up to {int(quantized.abs().max())}"
        )
    return wrap(quantized.to(torch.int64) - (weight.to(torch.int64) * z).sum(1))


def check_channels(
    op: str, channels: Tensor, table: Tensor | None, columns: int, out_dtype: torch.dtype, activation: str, device: torch.device
) -> None:  # fmt: skip
    """What `quantization` computed is what kernels read without a look at it."""
    checks.prepared(op, "channels", channels, torch.int32, (7, columns + -columns % QPANEL), device)
    if out_dtype not in OUT_DTYPES:
        raise TypeError(f"{op}: out_dtype: expected one of {', '.join(map(str, OUT_DTYPES))}, got {out_dtype}")
    qchecks.activation(op, activation, qchecks.OF_PRODUCTS)
    if table is not None:
        if table.dtype == torch.int16:
            checks.prepared(op, "table", table, torch.int16, (CURVE_SIZE,), device)
        else:
            checks.prepared(op, "table", table, torch.uint8, (256,), device)
        if out_dtype != torch.uint8:
            raise ValueError(f"{op}: table: expected None for out_dtype {out_dtype}, got a table")


def _check_ratios(op: str, values: Tensor) -> None:
    good = (values >= _SMALLEST) & (values <= _LARGEST)
    if not bool(good.all()):
        raise ValueError(f"{op}: scales: expected ratios of scales between 2^-64 and 2^64, got {float(values[~good][0])}")
