"""Integer matrix product with zero-points: schema, checks, fakes, backends, and what is prepared once for many calls."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, overload

import torch

from mvit_kernels import reference

from . import checks, cuda_support, qchecks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .gemm import walkable_rows
from .library import OVERFLOWED, QTYPE_CODES, direct, fresh, is_compiling, raise_status, register
from .pack_weight import QPANEL, PackedWeight, check_packed, unpack_bytes
from .packing import packed
from .placed import Placed
from .qchannels import Settings, check_channels, quantization, unpack_channels
from .qcurve import step_curve
from .qfragments import PackFragments
from .replay import Replays

OP = "qgemm"
Tensor = torch.Tensor
Optional = torch.Tensor | None
_kernels, _norms, _pinned = (triton_support.Kernels(each) for each in (OP, "qnorm", "pinned"))
SEGMENTS = {name: reference.segments(name) for name in reference.QACTIVATIONS if name not in ("none", "relu")}


class QGemm:
    """A product whose quantization is computed: call it with a (M, K) uint8, and with what `prepare_qgemm` left to the call."""

    def __init__(
        self, weight: PackedWeight, channels: Tensor, settings: Settings, table: Optional, backend: str | None, dynamic: bool
    ) -> None:
        self.weight, self.channels, self.settings, self.table, self.backend = weight, channels, settings, table, backend
        self.dynamic = dynamic  # scales and zero-points of rows come with the call
        self._sizes = weight.columns, weight.depth, weight.bits
        self._placed = Placed(channels, table)
        self._replays = Replays(OP)

    @overload
    def __call__(self, a: Tensor, residual: Optional = None, *, a_scale: Optional = None, a_zero_point: Optional = None) -> Tensor: ...
    @overload
    def __call__(self, a: Tensor, residual: Optional = None, *, collect: int) -> tuple[Tensor, Tensor]: ...
    def __call__(
        self, a: Tensor, residual: Optional = None, *, a_scale: Optional = None, a_zero_point: Optional = None, collect: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """y (M, N), with `collect` (y, sums (collect, 2)). a_scale (M,) float32 and a_zero_point (M,) int32: of rows, for what was prepared
        with a_scale=None. What was prepared is copied to the device of `a` by the first call there."""
        if collect is None and a_scale is None and a_zero_point is None and not self.dynamic:
            y: Optional = None if is_compiling() else self._replays.again(a, residual)
            return y if y is not None else self._replays(self._run, (a, residual), read=self._read)
        if collect is not None:
            checks.integer(OP, "collect", collect)
            if self.settings.out_dtype != torch.int16:
                raise ValueError(f"{OP}: collect: expected None for out_dtype {self.settings.out_dtype}, got {collect}")
            if a_scale is not None or a_zero_point is not None:
                raise ValueError(f"{OP}: a_scale: expected None with collect, got {type(a_scale).__name__}")
            weight, channels, _ = self._prepared_on(a.device)
            return _collect_call(a, weight, channels, residual, *self._sizes, collect, backend=self.backend)
        self._check_rows(a_scale, a_zero_point)
        return self._run(a, residual, a_scale, a_zero_point)

    def _prepared_on(self, device: torch.device) -> tuple[Tensor, Tensor, Optional]:
        if device.type == "cpu":
            return self.weight.data, self.channels, self.table
        channels, table = self._placed.on(device)
        return self.weight.on(device), channels, table  # type: ignore[return-value]

    def _read(self) -> tuple[Optional, ...]:
        return self.weight.data, self.channels, self.table, *SEGMENTS.values()

    def _run(self, a: Tensor, residual: Optional, a_scale: Optional = None, a_zero_point: Optional = None) -> Tensor:
        if type(a) is not torch.Tensor:
            checks.is_tensor(OP, "a", a)
        weight, channels, table = self._prepared_on(a.device)
        y: Tensor = _call(
            a, weight, channels, residual, a_scale, a_zero_point, table, *self._sizes, *self.settings, backend=self.backend
        )  # fmt: skip
        return y

    def _check_rows(self, a_scale: object, a_zero_point: object) -> None:
        for name, x in (("a_scale", a_scale), ("a_zero_point", a_zero_point)):
            if not self.dynamic and x is not None:
                raise ValueError(f"{OP}: {name}: expected None, as it was given when the product was prepared, got {type(x).__name__}")
            if self.dynamic and x is None:
                raise ValueError(f"{OP}: {name}: expected both a_scale and a_zero_point of rows, as none were prepared, got None")
            checks.tensors(OP, **{name: x})


def prepare_qgemm(
    weight: PackedWeight, a_scale: Any = None, a_zero_point: Any = None, w_scale: Any = 1.0, bias: Tensor | None = None, *,
    activation: str | None = None, residual_scale: Any = None, residual_zero_point: Any = None, out_dtype: torch.dtype = torch.float32,
    out_scale: Any = None, out_zero_point: Any = None, table: Tensor | None = None, a_bits: int = 8, out_bits: int = 8,
    backend: str | None = None,
) -> QGemm:  # fmt: skip
    """Compute once what calls of `qgemm` with the same quantization need: multipliers, and the bias with zero-points folded in.

    Arguments as of `qgemm`. Without a_scale it and a_zero_point, of each row, are given at the call. Where out_dtype is uint8, a residual
    can only be given at the call if residual_scale is given here.
    """
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"{OP}: weight: expected a PackedWeight, got {type(weight).__name__}")
    checks.backend(OP, backend)
    settled = quantization(
        OP, weight.unpack(), a_scale=a_scale, a_zero_point=a_zero_point, w_scale=w_scale, bias=bias, activation=activation,
        residual_scale=residual_scale, residual_zero_point=residual_zero_point, out_dtype=out_dtype, out_scale=out_scale,
        out_zero_point=out_zero_point, a_bits=a_bits, out_bits=out_bits, table=table,
    )  # fmt: skip
    return QGemm(weight, *settled, qchecks.table(OP, table, out_dtype), backend, a_scale is None)


def qgemm(
    a: Tensor, weight: PackedWeight, *, a_scale: Any, a_zero_point: Any, w_scale: Any, bias: Tensor | None = None,
    activation: str | None = None, residual: Tensor | None = None, residual_scale: Any = None, residual_zero_point: Any = None,
    out_dtype: torch.dtype = torch.float32, out_scale: Any = None, out_zero_point: Any = None, table: Tensor | None = None, a_bits: int = 8,
    out_bits: int = 8, collect: int | None = None, backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """y = act(s_a s_w (a - z_a) w^T + bias + residual), exact in int32 and then in a pinned order of float32 operations.

    Real values are scale * (q - zero_point). For many calls with the same quantization `prepare_qgemm` computes its part once.

    Args:
        a: (M, K) uint8, rows of stride 1 are read in place.
        weight: (N, K) from `pack_weight`; zero-point 0.
        a_scale, a_zero_point: a number each (the zero-point any int32, or (1, K) of them, one for each input channel), or a scale and a
            zero-point of each row, (M,) float32 and (M,) int32.
        w_scale: a number or (N,).
        bias: (N,) real, or None; rounded to a multiple of a_scale w_scale, except with scales of rows.
        activation: None, "relu", or "silu", "gelu" or "hard_swish" by `reference.qactivate`; after the residual. "relu6" of bytes without
            residual.
        residual: (M, N): uint8 with residual_scale and residual_zero_point; int16 with residual_scale; for out_dtype int16, int16 of the
            scale of y; for floats of the same dtype.
        out_dtype: uint8 or int16, which need an out_scale, or float32, bfloat16, float16.
        out_scale, out_zero_point: a number or (N,) each; |out_zero_point| <= 2^20.
        table: (256,) uint8, through which every byte of y goes last: an activation function on quantized values. Or a curve, int16 of
            `reference.activation_curve` for this out_scale and out_zero_point: the activation in finer steps than bytes.
        a_bits, out_bits: 8 or 6: bytes of a are at most 2^a_bits - 1, those of y are.
        collect: of an int16 y, how many groups of rows to give the sums of, for the norm that follows (`qnorm`).
        backend: None for automatic choice, or the name of one. CUDA kernels do not wait for the device, so zero-points of rows that let a
            sum overflow are not seen there.

    Returns:
        y (M, N), out_dtype; with `collect`, (y, sums (collect, 2) int64): the exact sum and sum of squares of each group.

    Raises:
        TypeError, ValueError: wrong arguments, scales that are not positive and finite, an int32 that could overflow, or the requested
            backend cannot take the call.
    """
    checks.all_tensors(OP, a=a)
    checks.tensors(OP, residual=residual)
    rows = isinstance(a_scale, Tensor) and a_scale.ndim == 1 and a_scale.shape[0] == a.shape[0] and a_scale.numel() != 1
    cuda_support.unprepared(OP, a)
    prepared = prepare_qgemm(
        weight, None if rows else a_scale, None if rows else a_zero_point, w_scale, bias, activation=activation,
        residual_scale=residual_scale, residual_zero_point=residual_zero_point, out_dtype=out_dtype, out_scale=out_scale,
        out_zero_point=out_zero_point, table=table, a_bits=a_bits, out_bits=out_bits, backend=backend,
    )  # fmt: skip
    if collect is not None:
        return prepared(a, residual, collect=collect)
    return prepared(a, residual, a_scale=a_scale, a_zero_point=a_zero_point) if rows else prepared(a, residual)


def qgemm_accumulate(a: Tensor, weight: PackedWeight, a_zero_point: Any, *, backend: str | None = None) -> Tensor:
    """(M, N) int32: sum_k (a[m, k] - z) weight[n, k], exact.

    Args:
        a: (M, K) uint8.
        weight: (N, K) from `pack_weight`.
        a_zero_point: any int32: one, (M,) for one of each row, or (1, K) for one of each input channel.

    Raises:
        TypeError, ValueError: wrong arguments, or a sum might not fit in int32.
    """
    checks.all_tensors(OP, a=a)
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"{OP}_accumulate: weight: expected a PackedWeight, got {type(weight).__name__}")
    checks.backend(OP, backend)
    z = torch.as_tensor(a_zero_point)
    rows = z.ndim == 1 and z.numel() != 1
    if rows:
        z = qchecks.zero_points(f"{OP}_accumulate", "a_zero_point", z, a.shape[0])
    else:
        z = qchecks.zero_points(f"{OP}_accumulate", "a_zero_point", z, weight.depth)[None, :]
    most = reference.largest_sum(weight.unpack(), z[:, None] if rows else z, 8)
    if most >= reference.OVERFLOW:
        raise ValueError(f"{OP}_accumulate: a_zero_point: expected sums below 2^31, got up to {most} with K = {weight.depth}")
    return _accumulate_call(a, weight.on(a.device), z.contiguous().to(a.device), weight.columns, weight.depth, weight.bits, backend=backend)


# --- checks ---


def _check_a(op: str, a: Tensor, depth: int) -> None:
    checks.tensor(op, "a", a, 2, (torch.uint8,))
    if a.shape[1] != depth:
        raise ValueError(f"{op}: a: expected shape (M, {depth}), got {tuple(a.shape)}")


def check_residual(
    op: str, residual: Tensor, size: tuple[int, ...], out_dtype: torch.dtype, plain: bool, scale: float, device: torch.device
) -> None:  # fmt: skip
    checks.tensor(op, "residual", residual, residual.ndim)
    if residual.shape != size:
        raise ValueError(f"{op}: residual: expected shape {size}, got {tuple(residual.shape)}")
    allowed: tuple[torch.dtype, ...] = (torch.uint8, torch.int16) if out_dtype == torch.uint8 else (out_dtype, torch.uint8, torch.int16)
    if out_dtype == torch.int16:
        allowed = (torch.int16,)
    if residual.dtype not in allowed:
        raise TypeError(f"{op}: residual: expected dtype {', '.join(map(str, allowed))} for results of {out_dtype}, got {residual.dtype}")
    if (plain or (scale == 0 and not residual.is_floating_point())) and out_dtype != torch.int16:
        raise ValueError(f"{op}: residual: expected a residual_scale with it, got None")
    if residual.device != device:
        raise ValueError(f"{op}: residual: expected device {device}, got {residual.device}")


def _check_prepared(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, row_scale: Optional, row_zero_point: Optional, table: Optional,
    columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, *_: object, **__: object,
) -> None:  # fmt: skip
    check_packed(OP, weight, columns, depth, bits, a.device)
    check_channels(OP, channels, table, columns, out_dtype, activation, a.device)


def _check_collect_prepared(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, columns: int, depth: int, bits: int, *_: object, **__: object
) -> None:
    _check_prepared(a, weight, channels, residual, None, None, None, columns, depth, bits, torch.int16, "none")


def _check(
    a: Tensor, residual: Optional, row_scale: Optional, row_zero_point: Optional, columns: int, depth: int, out_dtype: torch.dtype,
    plain: bool, residual_scale: float,
) -> None:  # fmt: skip
    _check_a(OP, a, depth)
    rows = a.shape[0]
    if residual is not None:
        check_residual(OP, residual, (rows, columns), out_dtype, plain, residual_scale, a.device)
    if row_scale is None and row_zero_point is None:
        return
    for name, x, dtype in (("a_scale", row_scale, torch.float32), ("a_zero_point", row_zero_point, torch.int32)):
        if x is None:
            raise ValueError(f"{OP}: {name}: expected both a_scale and a_zero_point of rows, or neither, got None")
        checks.tensor(OP, name, x, 1, (dtype,))
        if x.shape[0] != rows:
            raise ValueError(f"{OP}: {name}: expected one value for each of {rows} rows, got {x.shape[0]}")
        if x.device != a.device:
            raise ValueError(f"{OP}: {name}: expected device {a.device}, got {x.device}")
    if plain:
        raise ValueError(f"{OP}: a_scale: expected None, as it was given when the product was prepared, got a tensor")


def _check_accumulate(a: Tensor, weight: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int) -> None:
    op = f"{OP}_accumulate"
    _check_a(op, a, depth)
    check_packed(op, weight, columns, depth, bits, a.device)
    size = (a.shape[0],) if zero_point.ndim == 1 else (1, 1) if zero_point.numel() == 1 else (1, depth)
    checks.prepared(op, "a_zero_point", zero_point, torch.int32, size, a.device)


def _check_row_zero_points(op: str, weight: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int) -> None:
    """What the kernel checks too, which therefore calls this only where sums do not fit."""
    most = reference.largest_sum(unpack_bytes(weight, columns, depth, bits), zero_point[:, None], 8)
    if most >= reference.OVERFLOW:
        raise ValueError(f"{op}: a_zero_point: expected sums below 2^31, got up to {most} with K = {depth}")


# --- backends ---


def _cpu_forward(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, row_scale: Optional, row_zero_point: Optional, table: Optional,
    columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float,
    residual_zero_point: int,
) -> Tensor:  # fmt: skip
    a = walkable_rows(a)
    rows = a.shape[0]
    y = fresh(torch.empty(rows, columns, dtype=out_dtype))
    if residual is not None:
        residual = walkable_rows(residual)
    if row_scale is not None and row_zero_point is not None:
        row_scale, row_zero_point = row_scale.contiguous(), row_zero_point.contiguous()
    status = native.qgemm(
        rows, a.data_ptr(), a.stride(0), weight.data_ptr(), weight.shape[0],
        (columns, depth, bits), channels.data_ptr(), channels.shape[1], QTYPE_CODES[out_dtype],
        plain, *activation_code(activation), *table_addresses(table),
        0 if residual is None else residual.data_ptr(), 0 if residual is None else QTYPE_CODES[residual.dtype],
        0 if residual is None else residual.stride(0), residual_scale, residual_zero_point,
        0 if row_scale is None else row_scale.data_ptr(), 0 if row_zero_point is None else row_zero_point.data_ptr(),
        y.data_ptr(), columns, torch.get_num_threads(),
    )  # fmt: skip
    if status == OVERFLOWED and row_zero_point is not None:
        _check_row_zero_points(OP, weight, row_zero_point, columns, depth, bits)
    if status:
        raise_status(OP, status)
    return y


def _cpu_collect(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, columns: int, depth: int, bits: int, collect: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    a = walkable_rows(a)
    rows = a.shape[0]
    y, sums = torch.empty(rows, columns, dtype=torch.int16), torch.empty(collect, 2, dtype=torch.int64)
    if residual is not None:
        residual = walkable_rows(residual)
    status = native.qgemm_collect(
        rows, a.data_ptr(), a.stride(0), weight.data_ptr(), weight.shape[0], (columns, depth, bits), channels.data_ptr(), channels.shape[1],
        0 if residual is None else residual.data_ptr(), 0 if residual is None else residual.stride(0), y.data_ptr(), columns, collect,
        sums.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y, sums


def _reference_collect(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, columns: int, depth: int, bits: int, collect: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y = reference.qgemm(
        a, unpack_bytes(weight, columns, depth, bits), unpack_channels(channels, columns), plain=True, activation="none",
        out_dtype=torch.int16, residual=residual,
    )  # fmt: skip
    return y, reference.stream_sums(y, collect)


def table_addresses(table: Optional) -> tuple[int, int]:
    """Of a table of bytes and of a curve: at most one of them is one."""
    if table is None:
        return 0, 0
    return (table.data_ptr(), 0) if table.dtype == torch.uint8 else (0, table.data_ptr())


def activation_code(activation: str) -> tuple[int, int]:
    """(QActivation of csrc/cpu/core/qepilogue_types.h, address of the segments)."""
    table = SEGMENTS.get(activation)
    return (2, table.data_ptr()) if table is not None else (int(activation == "relu"), 0)


def _reference_forward(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, row_scale: Optional, row_zero_point: Optional, table: Optional,
    columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float,
    residual_zero_point: int,
) -> Tensor:  # fmt: skip
    if row_zero_point is not None:
        _check_row_zero_points(OP, weight, row_zero_point, columns, depth, bits)
    return reference.qgemm(
        a, unpack_bytes(weight, columns, depth, bits), unpack_channels(channels, columns), plain=plain, activation=activation,
        out_dtype=out_dtype, residual=residual, residual_scale=residual_scale, residual_zero_point=residual_zero_point, table=table,
        row_scale=row_scale, row_zero_point=row_zero_point,
    )  # fmt: skip


def _cpu_accumulate(a: Tensor, weight: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int) -> Tensor:
    a = walkable_rows(a)
    y = torch.empty(a.shape[0], columns, dtype=torch.int32)
    rows = zero_point.ndim == 1
    channels = torch.zeros(7, -(-columns // 16) * 16, dtype=torch.int32)
    if not rows:
        w = unpack_bytes(weight, columns, depth, bits)
        channels[0, :columns] = reference.wrap(-(w.to(torch.int64) * zero_point).sum(1))
    status = native.qgemm(
        a.shape[0], a.data_ptr(), a.stride(0), weight.data_ptr(), weight.shape[0],
        (columns, depth, bits), channels.data_ptr(), channels.shape[1], 0, True, 0, 0, 0, 0,
        0, 0, 0, 1.0, 0, 0, zero_point.data_ptr() if rows else 0, y.data_ptr(), columns, torch.get_num_threads(),
    )  # fmt: skip
    if status == OVERFLOWED and rows:
        _check_row_zero_points(f"{OP}_accumulate", weight, zero_point, columns, depth, bits)
    if status:
        raise_status(f"{OP}_accumulate", status)
    return y


def _reference_accumulate(a: Tensor, weight: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int) -> Tensor:
    if zero_point.ndim == 1:
        _check_row_zero_points(f"{OP}_accumulate", weight, zero_point, columns, depth, bits)
    z = zero_point[:, None] if zero_point.ndim == 1 else zero_point
    return reference.qgemm_accumulate(a, unpack_bytes(weight, columns, depth, bits), z)


# --- backend triton ---

_DEEPEST_SIX_BITS = 2**17  # four times such a sum is an int32, see mvit_kernels/triton_kernels/qgemm.py


@dataclass(frozen=True)
class TritonWeight:
    """The recipe of `mvit_kernels.triton_kernels.qgemm.Weight` of the bytes of a packed weight."""

    columns: int
    depth: int
    bits: int
    taps: int = 1
    second_channels: int = 0

    def __call__(self, weight: Tensor) -> Any:
        matrix = unpack_bytes(weight, self.columns, self.depth, self.bits)
        return _kernels.arrange(matrix, self.bits, self.taps, self.second_channels)


@functools.cache
def segments_on(activation: str, device: torch.device) -> Tensor:
    def copied() -> Tensor:
        with torch.inference_mode(False):
            return SEGMENTS[activation].to(device)

    cuda_support.once("activation", device)
    return cuda_support.made_to_stay(copied, device)


def triton_finish(
    channels: Tensor, out_dtype: torch.dtype, plain: bool, activation: str, table: Optional, residual: Optional, residual_scale: float,
    residual_zero_point: int,
) -> Any:  # fmt: skip
    segments = segments_on(activation, channels.device) if activation in SEGMENTS else None
    if table is not None and table.dtype == torch.int16:
        table = packed(_packed_curve, table)
    return _kernels.Finish(channels, out_dtype, plain, activation, segments, table, residual, residual_scale, residual_zero_point)


def _packed_curve(table: Tensor) -> Any:
    return _pinned.packed_curve(table)


def refuse_depth(depth: int, bits: int) -> str | None:
    """Why Triton's product is too deep."""
    if bits == 6 and depth > _DEEPEST_SIX_BITS:
        return f"it takes 6-bit weights up to a depth of {_DEEPEST_SIX_BITS}, got {depth}"
    return None


def triton_refuse(a: Tensor, depth: int, bits: int, *_: object) -> str | None:
    return refuse_depth(depth, bits) or triton_support.refuse_rows(a, (torch.uint8,))


def _triton_forward(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, row_scale: Optional, row_zero_point: Optional, table: Optional,
    columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float,
    residual_zero_point: int,
) -> Tensor:  # fmt: skip
    y = a.new_empty(a.shape[0], columns, dtype=out_dtype)
    residual = None if residual is None else walkable_rows(residual)
    finish = triton_finish(channels, out_dtype, plain, activation, table, residual, residual_scale, residual_zero_point)
    rows = [None if x is None else x.contiguous() for x in (row_scale, row_zero_point)]
    _kernels.qgemm(walkable_rows(a), packed(TritonWeight(columns, depth, bits), weight), finish, y, *rows)
    return y


def _triton_collect(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, columns: int, depth: int, bits: int, collect: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y = _triton_forward(a, weight, channels, residual, None, None, None, columns, depth, bits, torch.int16, "none", True, 0.0, 0)
    return y, _norms.stream_sums(y, collect).sum(1) if y.numel() else y.new_zeros(collect, 2, dtype=torch.int64)


def _triton_accumulate(a: Tensor, weight: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int) -> Tensor:
    y = a.new_empty(a.shape[0], columns, dtype=torch.int32)
    channels = a.new_zeros(7, columns + -columns % QPANEL, dtype=torch.int32)
    rows = zero_point.ndim == 1
    if not rows:
        w = unpack_bytes(weight, columns, depth, bits)
        channels[0, :columns] = reference.wrap(-(w.to(torch.int64) * zero_point).sum(1))
    finish = triton_finish(channels, torch.int32, True, "none", None, None, 0.0, 0)
    matrix = packed(TritonWeight(columns, depth, bits), weight)
    _kernels.qgemm(walkable_rows(a), matrix, finish, y, None, zero_point if rows else None)
    return y


# --- backend cuda ---


def cuda_epilogue(
    op: str, channels: Tensor, out_dtype: torch.dtype, plain: bool, activation: str, table: Optional, residual: Optional,
    residual_stride: int, residual_scale: float, residual_zero_point: int, y: Tensor, y_stride: int,
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of `epilogue` in python/bind_qepilogue.h."""
    cuda_support.aligned(op, "channels", channels)
    code, _ = activation_code(activation)
    if table is not None and table.dtype == torch.int16:
        table = packed(step_curve, table).numbers
    segments = segments_on(activation, y.device).data_ptr() if activation in SEGMENTS else 0
    return (
        channels.data_ptr(), channels.shape[1], QTYPE_CODES[out_dtype], plain, code, segments, *table_addresses(table),
        0 if residual is None else residual.data_ptr(), 0 if residual is None else QTYPE_CODES[residual.dtype], residual_stride,
        residual_scale, residual_zero_point, y.data_ptr(), y_stride,
    )  # fmt: skip


def _refuse_cuda(a: Tensor, depth: int, bits: int) -> str | None:
    return cuda_support.refuse(a) or cuda_support.refuse_deep_int6(depth, bits)


def _cuda_product(
    a: Tensor, weight: Tensor, form: tuple[int, int, int], epilogue: tuple[Any, ...], row_scale: Optional, row_zero_point: Optional
) -> None:  # fmt: skip
    fragments = packed(PackFragments(*form), weight)
    if row_zero_point is not None:
        row_zero_point = row_zero_point.contiguous()
    if row_scale is not None:
        row_scale = row_scale.contiguous()
    cuda_support.native.qgemm(
        *cuda_support.place(a), a.shape[0], a.data_ptr(), a.stride(0), fragments.tiles.data_ptr(), form, epilogue,
        0 if row_scale is None else row_scale.data_ptr(), 0 if row_zero_point is None else row_zero_point.data_ptr(),
        fragments.column_sum.data_ptr(),
    )  # fmt: skip


def _cuda_forward(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, row_scale: Optional, row_zero_point: Optional, table: Optional,
    columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float,
    residual_zero_point: int,
) -> Tensor:  # fmt: skip
    a = walkable_rows(a)
    y = a.new_empty(a.shape[0], columns, dtype=out_dtype)
    if residual is not None:
        residual = walkable_rows(residual)
    epilogue = cuda_epilogue(
        OP, channels, out_dtype, plain, activation, table, residual, 0 if residual is None else residual.stride(0), residual_scale,
        residual_zero_point, y, columns,
    )  # fmt: skip
    _cuda_product(a, weight, (columns, depth, bits), epilogue, row_scale, row_zero_point)
    return y


def _cuda_accumulate(a: Tensor, weight: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int) -> Tensor:
    op = f"{OP}_accumulate"
    a = walkable_rows(a)
    y = a.new_empty(a.shape[0], columns, dtype=torch.int32)
    rows = zero_point.ndim == 1
    channels = a.new_zeros(7, columns + -columns % QPANEL, dtype=torch.int32)
    if not rows:
        w = unpack_bytes(weight, columns, depth, bits)
        channels[0, :columns] = reference.wrap(-(w.to(torch.int64) * zero_point).sum(1))
    epilogue = cuda_epilogue(op, channels, torch.int32, True, "none", None, None, 0, 1.0, 0, y, columns)
    _cuda_product(a, weight, (columns, depth, bits), epilogue, None, zero_point if rows else None)
    return y


choose = Choice(
    OP,
    cuda=Implementation(_cuda_forward, refuse=_refuse_cuda),
    triton=Implementation(_triton_forward, refuse=triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)
choose_accumulate = Choice(
    f"{OP}_accumulate",
    cuda=Implementation(_cuda_accumulate, refuse=_refuse_cuda),
    triton=Implementation(_triton_accumulate, refuse=triton_refuse),
    cpu=Implementation(_cpu_accumulate, refuse=refuse_off_cpu),
    reference=Implementation(_reference_accumulate),
)
choose_collect = Choice(
    f"{OP}_collect",
    triton=Implementation(_triton_collect, refuse=triton_refuse),
    cpu=Implementation(_cpu_collect, refuse=refuse_off_cpu),
    reference=Implementation(_reference_collect),
)


# --- registration ---


def _forward(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, row_scale: Optional, row_zero_point: Optional, table: Optional,
    columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float = 1.0,
    residual_zero_point: int = 0, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(a, residual, row_scale, row_zero_point, columns, depth, out_dtype, plain, residual_scale)
    return choose(backend, a, depth, bits).forward(
        a, weight, channels, residual, row_scale, row_zero_point, table, columns, depth, bits, out_dtype, activation, plain, residual_scale,
        residual_zero_point,
    )  # fmt: skip


def _forward_fake(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, row_scale: Optional, row_zero_point: Optional, table: Optional,
    columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float = 1.0,
    residual_zero_point: int = 0, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(a, residual, row_scale, row_zero_point, columns, depth, out_dtype, plain, residual_scale)
    return a.new_empty(a.shape[0], columns, dtype=out_dtype)


def _collect(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, columns: int, depth: int, bits: int, collect: int, *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(a, residual, None, None, columns, depth, torch.int16, True, 1.0)
    checks.whole_groups(OP, "collect", collect, a.shape[0])
    return choose_collect(backend, a, depth, bits).forward(a, weight, channels, residual, columns, depth, bits, collect)


def _collect_fake(
    a: Tensor, weight: Tensor, channels: Tensor, residual: Optional, columns: int, depth: int, bits: int, collect: int, *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(a, residual, None, None, columns, depth, torch.int16, True, 1.0)
    checks.whole_groups(OP, "collect", collect, a.shape[0])
    return a.new_empty(a.shape[0], columns, dtype=torch.int16), a.new_empty(collect, 2, dtype=torch.int64)


def _accumulate(
    a: Tensor, weight: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int, *, backend: str | None = None
) -> Tensor:  # fmt: skip
    _check_accumulate(a, weight, zero_point, columns, depth, bits)
    return choose_accumulate(backend, a, depth, bits).forward(a, weight, zero_point, columns, depth, bits)


def _accumulate_fake(
    a: Tensor, weight: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int, *, backend: str | None = None
) -> Tensor:  # fmt: skip
    _check_accumulate(a, weight, zero_point, columns, depth, bits)
    return a.new_empty(a.shape[0], columns, dtype=torch.int32)


_op = register(
    OP,
    "(Tensor a, Tensor weight, Tensor channels, Tensor? residual, Tensor? row_scale, Tensor? row_zero_point, Tensor? table, int columns,"
    " int depth, int bits, ScalarType out_dtype, str activation, bool plain, float residual_scale=1.0, int residual_zero_point=0, *,"
    " str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
    _check_prepared,
)
_call = direct(_op, _forward, tensors=7)
_collect_op = register(
    f"{OP}_collect",
    "(Tensor a, Tensor weight, Tensor channels, Tensor? residual, int columns, int depth, int bits, int collect, *, str? backend=None)"
    " -> (Tensor, Tensor)",
    _collect,
    _collect_fake,
    _check_collect_prepared,
)
_collect_call = direct(_collect_op, _collect, tensors=4)
_accumulate_op = register(
    f"{OP}_accumulate",
    "(Tensor a, Tensor weight, Tensor zero_point, int columns, int depth, int bits, *, str? backend=None) -> Tensor",
    _accumulate,
    _accumulate_fake,
)
_accumulate_call = direct(_accumulate_op, _accumulate, tensors=3)
