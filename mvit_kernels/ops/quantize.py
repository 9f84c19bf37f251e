"""Bytes for real numbers and back (Jacob et al., arXiv 1712.05877, equation 1), and of rows: schemas, checks, fakes and backends."""

from __future__ import annotations

import math
from typing import Any

import torch

from mvit_kernels import reference

from . import checks, qchecks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .gemm import walkable_rows
from .library import (
    FLOAT_CODES,
    dense,
    dense_in_own_format,
    direct,
    empty_in_format,
    empty_in_own_format,
    in_format,
    in_format_of,
    is_channels_last,
    raise_status,
    register,
)

Tensor = torch.Tensor
Optional = torch.Tensor | None
FLOATS = tuple(FLOAT_CODES)
_kernels = triton_support.Kernels("quantize")


def quantize(
    x: Tensor, scale: Any, zero_point: Any, *, bits: int = 8, axis: int | None = None, channels_last: bool = False,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """q = min(max(rint(x * float32(1 / scale)) + zero_point, 0), 2^bits - 1), in float32, ties to even.

    Args:
        x: float32, bfloat16 or float16 of any shape. Dense NCHW and channels_last maps are read in place, other strides are copied.
        scale: a number or a tensor of one, or a tensor (C,) of one for each channel; between 2^-126 and 2^126.
        zero_point: an integer likewise, |zero_point| <= 2^20. Values in tensors on a GPU are not checked, as that would wait for it.
        bits: 8 or 6.
        axis: the axis of the channels. None: axis 1 of a 4-D map, whatever its memory format, and the last axis of anything else.
        channels_last: bytes of a map lie in channels_last memory whatever x does, as convolutions read them.
        backend: None for automatic choice, or the name of one.

    Returns:
        uint8, shape and, unless channels_last is set, memory format of x. What lies beyond the range takes its end; NaN becomes 0.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take them.
    """
    op = "quantize"
    checks.is_tensor(op, "x", x)
    scales, scale = _split_scale(op, scale)
    zero_points, zero_point = _split_zero_point(op, zero_point, near=True)
    checks.backend(op, backend)
    bits = qchecks.bits(op, "bits", bits)
    return _quantize_call(x, scales, zero_points, scale, zero_point, _axis(op, x, axis), bits, channels_last, backend=backend)


def dequantize(
    q: Tensor, scale: Any, zero_point: Any, dtype: torch.dtype = torch.float32, *, axis: int | None = None, backend: str | None = None
) -> Tensor:
    """scale * float(q - zero_point), in float32 and then rounded to dtype.

    Args:
        q: uint8 of any shape; as x of `quantize`.
        scale, zero_point, axis, backend: as of `quantize`; the zero-point is any int32.
        dtype: float32, bfloat16 or float16.
    """
    op = "dequantize"
    checks.is_tensor(op, "q", q)
    scales, scale = _split_scale(op, scale)
    zero_points, zero_point = _split_zero_point(op, zero_point, near=False)
    checks.backend(op, backend)
    return _dequantize_call(q, scales, zero_points, scale, zero_point, _axis(op, q, axis), dtype, backend=backend)


def quantize_rows(x: Tensor, *, bits: int = 8, backend: str | None = None) -> reference.Rows:
    """Quantize each row over its own range, as `qgemm` takes rows: real = scale[m] * (q[m, k] - zero_point[m]).

    low = min(row, 0) and high = max(row, 0), so that 0 has a byte of its own; scale = (high - low) / (2^bits - 1), at least 2^-100,
    zero_point = rint(-low / scale), and then as `quantize`. `reference.quantize_rows` has the operations in their order.

    Args:
        x: (M, K) float32, bfloat16 or float16; rows of stride 1 are read in place. Values must be finite: NaN counts as nothing and becomes
            byte 0, a row with infinity gets an infinite scale.
        bits: 8 or 6.
        backend: None for automatic choice, or the name of one.

    Returns:
        q (M, K) uint8, scale (M,) float32, zero_point (M,) int32 in 0 .. 2^bits - 1.
    """
    op = "quantize_rows"
    checks.is_tensor(op, "x", x)
    checks.backend(op, backend)
    return reference.Rows(*_rows_call(x, qchecks.bits(op, "bits", bits), backend=backend))


# --- arguments ---


def _split_scale(op: str, scale: Any) -> tuple[Optional, Any]:
    """(a tensor, or None for one number; the number): what is in a tensor can only be looked at when the op runs."""
    return (scale, 1.0) if isinstance(scale, Tensor) else (None, qchecks.scale(op, "scale", scale))


def _split_zero_point(op: str, zero_point: Any, near: bool) -> tuple[Optional, Any]:
    return (zero_point, 0) if isinstance(zero_point, Tensor) else (None, qchecks.zero_point(op, "zero_point", zero_point, near))


def _axis(op: str, x: Tensor, axis: int | None) -> int:
    if axis is None:
        return 1 if x.ndim == 4 else -1
    checks.integer(op, "axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{op}: axis: expected an axis of shape {tuple(x.shape)}, got {axis}")
    return axis


def _check(op: str, x: Tensor, name: str, dtypes: tuple[torch.dtype, ...], scales: Optional, zero_points: Optional, axis: int) -> None:
    """What a fake can check too."""
    checks.tensor(op, name, x, x.ndim, dtypes)
    if (scales is not None or zero_points is not None) and x.ndim and not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{op}: axis: expected an axis of shape {tuple(x.shape)}, got {axis}")
    for what, values in (("scale", scales), ("zero_point", zero_points)):
        if values is None:
            continue
        kind = values.is_floating_point() if what == "scale" else not values.is_floating_point() and values.dtype != torch.bool
        if not kind:
            raise TypeError(f"{op}: {what}: expected {'floats' if what == 'scale' else 'integers'}, got {values.dtype}")
        channels = x.shape[axis] if x.ndim else 1
        if values.ndim > 1 or values.numel() not in (1, channels):
            raise ValueError(f"{op}: {what}: expected one value or {channels} of axis {axis}, got shape {tuple(values.shape)}")
        if values.device != x.device:
            raise ValueError(f"{op}: {what}: expected device {x.device}, got {values.device}")


def _check_float(op: str, dtype: torch.dtype) -> None:
    if dtype not in FLOATS:
        raise TypeError(f"{op}: dtype: expected float32, bfloat16 or float16, got {dtype}")


def _check_values(op: str, scales: Optional, zero_points: Optional, near: bool) -> tuple[Optional, Optional]:
    """The tensors as float32 and int32, after a look at what is in them; not where they are on a GPU, for which it would wait."""
    if scales is not None and scales.numel():
        scales = scales.detach().to(torch.float32).contiguous()
        if not scales.is_cuda:
            qchecks.in_range(op, "scale", scales)
    if zero_points is not None and zero_points.numel():
        if not zero_points.is_cuda:
            low, high = map(int, torch.aminmax(zero_points))
            qchecks.zero_point(op, "zero_point", low, near)
            qchecks.zero_point(op, "zero_point", high, near)
        zero_points = zero_points.to(torch.int32).contiguous()
    return scales, zero_points


# --- backends ---


def _span(x: Tensor, axis: int, channels_last: bool) -> tuple[int, int, int]:
    """How many elements lie before, along and after the axis in dense memory."""
    if not x.ndim:
        return 1, 1, 1
    size: tuple[int, ...] = tuple(x.shape)
    if channels_last:
        size, axis = (size[0], size[2], size[3], size[1]), (0, 3, 1, 2)[axis]
    axis %= len(size)
    return math.prod(size[:axis]), size[axis], math.prod(size[axis + 1 :])


def _values(values: Optional, number: Any) -> tuple[int, Any]:
    """(address of the values of many channels, or 0; the one of all)."""
    if values is None:
        return 0, number
    return (0, values.item()) if values.numel() == 1 else (values.data_ptr(), number)


def _run(
    op: str, kernel: Any, x: Tensor, y: Tensor, code: int, scales: Optional, zero_points: Optional, scale: float, zero_point: int,
    axis: int, bits: int, channels_last: bool,
) -> Tensor:  # fmt: skip
    if x.numel():
        span = (1, 1, x.numel()) if scales is None and zero_points is None else _span(x, axis, channels_last)
        status = kernel(
            code, span, *_values(scales, scale), *_values(zero_points, zero_point), bits, x.data_ptr(), y.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        if status:
            raise_status(op, status)
    return y


def _cpu_quantize(
    x: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int, bits: int, channels_last: bool
) -> Tensor:
    y = empty_in_own_format(x, torch.uint8)
    x, is_last = dense_in_own_format(x)
    code = FLOAT_CODES[x.dtype]
    y = _run("quantize", native.quantize, x, y, code, scales, zero_points, scale, zero_point, axis, bits, is_last)
    return dense(y, channels_last=True) if channels_last else y


def _cpu_dequantize(
    q: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    y = empty_in_own_format(q, dtype)
    q, channels_last = dense_in_own_format(q)
    return _run("dequantize", native.dequantize, q, y, FLOAT_CODES[dtype], scales, zero_points, scale, zero_point, axis, 8, channels_last)


def _tensors(
    x: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scales = torch.tensor(scale, dtype=torch.float32) if scales is None else scales
    zero_points = torch.tensor(zero_point) if zero_points is None else zero_points
    return reference.along(scales, x, axis), reference.along(zero_points, x, axis)


def _reference_quantize(
    x: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int, bits: int, channels_last: bool
) -> Tensor:
    y = in_format_of(x, reference.quantize(x, *_tensors(x, scales, zero_points, scale, zero_point, axis), bits))
    return dense(y, channels_last=True) if channels_last else y


def _reference_dequantize(
    q: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    return in_format_of(q, reference.dequantize(q, *_tensors(q, scales, zero_points, scale, zero_point, axis), dtype))


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse(x, (torch.uint8, *FLOATS))


def _triton_quantize(
    x: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int, bits: int, channels_last: bool
) -> Tensor:
    values = scales, zero_points, scale, zero_point
    if channels_last and not is_channels_last(x) and (axis % 4 == 1 or (scales is None and zero_points is None)):
        x, y = dense(x, channels_last=False), empty_in_format(x, tuple(x.shape), channels_last=True, dtype=torch.uint8)
        _kernels.quantize_image(x, *values, bits, y)
        return y
    x, is_last = dense_in_own_format(in_format(x, channels_last=True) if channels_last else x)
    y = empty_in_own_format(x, torch.uint8)
    _kernels.quantize(x, *values, _span(x, axis, is_last)[1:], bits, y)
    return y


def _triton_dequantize(
    q: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    y = empty_in_own_format(q, dtype)
    q, channels_last = dense_in_own_format(q)
    _kernels.dequantize(q, scales, zero_points, scale, zero_point, _span(q, axis, channels_last)[1:], y)
    return y


def _triton_rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    x = walkable_rows(x)
    q, scale, zero_point = (x.new_empty(size, dtype=dtype) for size, dtype in _rows_results(*x.shape))
    _kernels.quantize_rows(x, bits, q, scale, zero_point)
    return q, scale, zero_point


def _cpu_rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    x = walkable_rows(x)
    rows, depth = x.shape
    q, scale, zero_point = (torch.empty(size, dtype=dtype) for size, dtype in _rows_results(rows, depth))
    status = native.quantize_rows(
        FLOAT_CODES[x.dtype], rows, depth, x.stride(0), bits, x.data_ptr(), q.data_ptr(), scale.data_ptr(), zero_point.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status("quantize_rows", status)
    return q, scale, zero_point


def _rows_results(rows: int, depth: int) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    return ((rows, depth), torch.uint8), ((rows,), torch.float32), ((rows,), torch.int32)


def _reference_rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    q, scale, zero_point = reference.quantize_rows(x, bits)
    return q.contiguous(), scale, zero_point


choose_quantize = Choice(
    "quantize",
    triton=Implementation(_triton_quantize, refuse=_triton_refuse),
    cpu=Implementation(_cpu_quantize, refuse=refuse_off_cpu),
    reference=Implementation(_reference_quantize),
)
choose_dequantize = Choice(
    "dequantize",
    triton=Implementation(_triton_dequantize, refuse=_triton_refuse),
    cpu=Implementation(_cpu_dequantize, refuse=refuse_off_cpu),
    reference=Implementation(_reference_dequantize),
)
choose_rows = Choice(
    "quantize_rows",
    triton=Implementation(_triton_rows, refuse=_triton_refuse),
    cpu=Implementation(_cpu_rows, refuse=refuse_off_cpu),
    reference=Implementation(_reference_rows),
)


# --- registration ---


def _check_quantize(x: Tensor, scales: Optional, zero_points: Optional, axis: int, bits: int, channels_last: bool) -> None:
    _check("quantize", x, "x", FLOATS, scales, zero_points, axis)
    qchecks.bits("quantize", "bits", bits)
    if channels_last and x.ndim != 4:
        raise ValueError(f"quantize: channels_last: expected False of x that is no map (B, C, H, W), got True and shape {tuple(x.shape)}")


def _quantize(
    x: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int, bits: int, channels_last: bool = False,
    *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check_quantize(x, scales, zero_points, axis, bits, channels_last)
    scales, zero_points = _check_values("quantize", scales, zero_points, near=True)
    return choose_quantize(backend, x).forward(x, scales, zero_points, scale, zero_point, axis, bits, channels_last)


def _quantize_fake(
    x: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int, bits: int, channels_last: bool = False,
    *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check_quantize(x, scales, zero_points, axis, bits, channels_last)
    if channels_last:
        return empty_in_format(x, tuple(x.shape), channels_last=True, dtype=torch.uint8)
    return empty_in_own_format(x, torch.uint8)


def _dequantize(
    q: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int, dtype: torch.dtype, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check("dequantize", q, "q", (torch.uint8,), scales, zero_points, axis)
    _check_float("dequantize", dtype)
    scales, zero_points = _check_values("dequantize", scales, zero_points, near=False)
    return choose_dequantize(backend, q).forward(q, scales, zero_points, scale, zero_point, axis, dtype)


def _dequantize_fake(
    q: Tensor, scales: Optional, zero_points: Optional, scale: float, zero_point: int, axis: int, dtype: torch.dtype, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check("dequantize", q, "q", (torch.uint8,), scales, zero_points, axis)
    _check_float("dequantize", dtype)
    return empty_in_own_format(q, dtype)


def _rows(x: Tensor, bits: int, *, backend: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    checks.tensor("quantize_rows", "x", x, 2, FLOATS)
    qchecks.bits("quantize_rows", "bits", bits)
    return choose_rows(backend, x).forward(x, bits)


def _rows_fake(x: Tensor, bits: int, *, backend: str | None = None) -> tuple[Tensor, ...]:
    checks.tensor("quantize_rows", "x", x, 2, FLOATS)
    qchecks.bits("quantize_rows", "bits", bits)
    return tuple(x.new_empty(size, dtype=dtype) for size, dtype in _rows_results(*x.shape))


_VALUES = "Tensor? scales, Tensor? zero_points, float scale, int zero_point, int axis"
_quantize_op = register(
    "quantize", f"(Tensor x, {_VALUES}, int bits, bool channels_last=False, *, str? backend=None) -> Tensor", _quantize, _quantize_fake
)
_quantize_call = direct(_quantize_op, _quantize, tensors=3)
_dequantize_op = register(
    "dequantize", f"(Tensor q, {_VALUES}, ScalarType dtype, *, str? backend=None) -> Tensor", _dequantize, _dequantize_fake
)
_dequantize_call = direct(_dequantize_op, _dequantize, tensors=3)
_rows_op = register("quantize_rows", "(Tensor x, int bits, *, str? backend=None) -> (Tensor, Tensor, Tensor)", _rows, _rows_fake)
_rows_call = direct(_rows_op, _rows)
