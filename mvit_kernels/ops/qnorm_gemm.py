"""Norm of an int16 residual stream and the integer product behind it in one pass: schema, checks, fake, backends, preparation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mvit_kernels import reference

from . import checks, counts, cuda_support, qchecks
from .backend import Choice, Implementation, native, refuse_off_cpu
from .gemm import walkable_rows
from .library import QTYPE_CODES, direct, raise_status, register
from .pack_weight import PackedWeight, check_packed, unpack_bytes
from .packing import packed
from .placed import Placed
from .qchannels import Settings, check_channels, quantization, unpack_channels
from .qconv2d import QConv2d, check_pointwise
from .qcurve import step_curve
from .qfragments import product_order, stream_order, tiles
from .qgemm import activation_code, cuda_epilogue, refuse_depth, table_addresses
from .qgemm import choose as choose_product
from .qnorm import Norm, QNorm, check_known, check_stream, combined_sums, cuda_norm, norm_of, whole_sums
from .qnorm import choose as choose_norm

OP = "qnorm_gemm"
Tensor = torch.Tensor
Optional = torch.Tensor | None


class QNormGemm:
    """A norm and a product whose quantization is computed: call it with a stream x (M, K) int16 and the sums of its groups, or None.

    kind: of the norm, where it is settled: "group", which asks for sums, or "layer", which takes none."""

    def __init__(
        self, norm: Norm, weight: PackedWeight, channels: Tensor, settings: Settings, table: Optional, backend: str | None,
        kind: str | None = None,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.norm, self.weight, self.channels, self.settings, self.table, self.backend = norm, weight, channels, settings, table, backend
        self._settled = *norm, weight.columns, weight.depth, weight.bits, settings.out_dtype, settings.activation, settings.plain
        self._placed = Placed(channels, table)

    @classmethod
    def of(cls, norm: QNorm, layer: QConv2d) -> QNormGemm:
        """Of the rows of maps, what the norm and the 1x1 convolution behind it give one after another, on the backend that either was
        prepared with. Rows do not tell where images end: a norm of images needs their sums."""
        check_pointwise(OP, "layer", layer)
        if norm.affine:
            raise ValueError(f"{OP}: norm: expected one without weight and bias, got one with them")
        if norm.backend != layer.backend and None not in (norm.backend, layer.backend):
            raise ValueError(f"{OP}: layer: expected the backend of the norm, {norm.backend!r}, got {layer.backend!r}")
        backend = layer.backend if norm.backend is None else norm.backend
        return cls(norm.norm, layer.weight, layer.channels, layer.settings, layer.table, backend, norm.kind)

    def __call__(self, x: Tensor, sums: Optional = None) -> Tensor:
        """y (M, N). What was prepared is copied to the device of x by the first call there."""
        if type(x) is not torch.Tensor:
            checks.is_tensor(OP, "x", x)
        if self.kind is not None:
            check_known(OP, sums, self.kind)
            if sums is None and self.kind == "group":
                raise ValueError(f"{OP}: sums: expected those of images with a norm of images, got None")
        weight, channels, table = self.weight.data, self.channels, self.table
        if not x.is_cpu:
            weight, (channels, table) = self.weight.on(x.device), self._placed.on(x.device)  # type: ignore[assignment]
        return _call(x, weight, channels, sums, table, *self._settled, backend=self.backend)


def prepare_qnorm_gemm(
    weight: PackedWeight, w_scale: Any = 1.0, bias: Tensor | None = None, *, scale: Any, a_scale: Any, a_zero_point: Any, eps: float = 1e-5,
    a_bits: int = 8, activation: str | None = None, out_dtype: torch.dtype = torch.float32, out_scale: Any = None,
    out_zero_point: Any = None, table: Tensor | None = None, out_bits: int = 8, backend: str | None = None,
) -> QNormGemm:  # fmt: skip
    """Compute once what calls of `qnorm_gemm` with the same quantization need; arguments as there."""
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"{OP}: weight: expected a PackedWeight, got {type(weight).__name__}")
    checks.backend(OP, backend)
    norm = norm_of(OP, scale, a_scale, a_zero_point, eps, a_bits, prefix="a")
    settled = quantization(
        OP, weight.unpack(), a_scale=norm.out_scale, a_zero_point=norm.out_zero_point, w_scale=w_scale, bias=bias, activation=activation,
        residual_scale=None, residual_zero_point=None, out_dtype=out_dtype, out_scale=out_scale, out_zero_point=out_zero_point,
        a_bits=a_bits, out_bits=out_bits, table=table,
    )  # fmt: skip
    return QNormGemm(norm, weight, *settled, qchecks.table(OP, table, out_dtype), backend)


def qnorm_gemm(
    x: Tensor, weight: PackedWeight, sums: Tensor | None = None, *, scale: Any, a_scale: Any, a_zero_point: Any, eps: float = 1e-5,
    a_bits: int = 8, w_scale: Any, bias: Tensor | None = None, activation: str | None = None, out_dtype: torch.dtype = torch.float32,
    out_scale: Any = None, out_zero_point: Any = None, table: Tensor | None = None, out_bits: int = 8, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """`qgemm` of what `qnorm` makes of a residual stream, bit for bit, without its bytes in memory.

    Args:
        x, sums, scale, eps: as of `qnorm`; x (M, K) int16.
        a_scale, a_zero_point, a_bits: of the normalised bytes, which `qnorm` calls out_scale and so on.
        weight, w_scale, bias, activation, out_dtype, out_scale, out_zero_point, table, out_bits: as of `qgemm`, gamma and beta of the norm
            being in weight and bias.
        backend: None for automatic choice, or the name of one. By Triton the bytes do pass through memory.

    Returns:
        (M, N), out_dtype.

    Raises:
        TypeError, ValueError: as `qnorm` and `qgemm`.
    """
    checks.all_tensors(OP, x=x)
    checks.tensors(OP, sums=sums)
    cuda_support.unprepared(OP, x)
    prepared = prepare_qnorm_gemm(
        weight, w_scale, bias, scale=scale, a_scale=a_scale, a_zero_point=a_zero_point, eps=eps, a_bits=a_bits, activation=activation,
        out_dtype=out_dtype, out_scale=out_scale, out_zero_point=out_zero_point, table=table, out_bits=out_bits, backend=backend,
    )  # fmt: skip
    return prepared(x, sums)


def _check_prepared(
    x: Tensor, weight: Tensor, channels: Tensor, sums: Optional, table: Optional, scale: float, a_scale: float, a_zero_point: int,
    eps: float, a_bits: int, columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, *_: object, **__: object,
) -> None:  # fmt: skip
    qchecks.bits(OP, "a_bits", a_bits)
    check_packed(OP, weight, columns, depth, bits, x.device)
    check_channels(OP, channels, table, columns, out_dtype, activation, x.device)


def _check(x: Tensor, sums: Optional, depth: int) -> None:
    check_stream(OP, x, sums)
    if x.shape[1] != depth:
        raise ValueError(f"{OP}: x: expected shape (M, {depth}), got {tuple(x.shape)}")


# --- backends ---


def _cpu_forward(
    x: Tensor, weight: Tensor, channels: Tensor, sums: Optional, table: Optional, scale: float, a_scale: float, a_zero_point: int,
    eps: float, a_bits: int, columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool,
) -> Tensor:  # fmt: skip
    x = walkable_rows(x)
    rows = x.shape[0]
    y = torch.empty(rows, columns, dtype=out_dtype)
    sums = whole_sums(sums)
    if sums is not None:
        sums = sums.contiguous()
    status = native.qnorm_gemm(
        rows, x.data_ptr(), x.stride(0), 0 if sums is None else sums.shape[0], 0 if sums is None else sums.data_ptr(), scale, a_scale,
        a_zero_point, eps, a_bits, weight.data_ptr(), weight.shape[0],
        (columns, depth, bits), channels.data_ptr(), channels.shape[1], QTYPE_CODES[out_dtype],
        plain, *activation_code(activation), *table_addresses(table), y.data_ptr(), columns, torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _reference_forward(
    x: Tensor, weight: Tensor, channels: Tensor, sums: Optional, table: Optional, scale: float, a_scale: float, a_zero_point: int,
    eps: float, a_bits: int, columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool,
) -> Tensor:  # fmt: skip
    a = reference.qnorm(x, whole_sums(sums), scale, a_scale, a_zero_point, eps, a_bits)
    return reference.qgemm(
        a, unpack_bytes(weight, columns, depth, bits), unpack_channels(channels, columns), plain=plain, activation=activation,
        out_dtype=out_dtype, table=table,
    )  # fmt: skip


_SLICE = 32  # of csrc/cuda/ops/qnorm_gemm.h: columns at once


def _cuda_refuse(x: Tensor, depth: int, bits: int, out_dtype: torch.dtype, plain: bool, table: Optional) -> str | None:
    if (reason := cuda_support.refuse(x)) is not None:
        return reason
    if out_dtype != torch.uint8 or not plain:
        return "its kernel makes bytes, without an activation or by a curve"
    if table is not None and (table.dtype != torch.int16 or packed(step_curve, table).entries == 0):
        return "its kernel takes no table of bytes, and no curve without steps"
    if depth > cuda_support.native.qnorm_gemm_channels:
        return f"its kernel takes up to {cuda_support.native.qnorm_gemm_channels} channels, got {depth}"
    return counts.refuse(x.shape[0])


@dataclass(frozen=True)
class _PackSlices:
    """Slices of 32 columns: csrc/cuda/ops/qnorm_gemm.h."""

    form: tuple[int, int, int]

    def __call__(self, weight: Tensor, channels: Tensor) -> Tensor:
        matrix, columns = unpack_bytes(weight.cpu(), *self.form), self.form[0]
        slices = -(-columns // _SLICE)
        init = F.pad(channels.cpu()[0, :columns], (0, -columns % _SLICE)).unflatten(
            0, (slices, 4, 2, 2, 1, 2)
        )  # t, half, product, one of two
        twice = init.transpose(1, 2).expand(-1, -1, -1, -1, 2, -1).reshape(slices, -1).contiguous()
        parts = twice.view(torch.uint8), tiles(stream_order(product_order(matrix)), 8, (_SLICE, _SLICE)).reshape(slices, -1)
        return torch.cat(parts, dim=1).to(weight.device)


def _cuda_forward(
    x: Tensor, weight: Tensor, channels: Tensor, sums: Optional, table: Optional, scale: float, a_scale: float, a_zero_point: int,
    eps: float, a_bits: int, columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool,
) -> Tensor:  # fmt: skip
    x, rows, groups = x.contiguous(), x.shape[0], 1 if sums is None else sums.shape[0]
    sums = combined_sums(sums)
    y = x.new_empty(rows, columns, dtype=out_dtype)
    slices = packed(_PackSlices((columns, depth, bits)), weight, channels)
    epilogue = cuda_epilogue(OP, channels, out_dtype, plain, activation, table, None, columns, 0.0, 0, y, columns)
    cuda_support.native.qnorm_gemm(
        *cuda_support.place(x), groups, rows // max(groups, 1), depth, columns, x.data_ptr(),
        cuda_norm(sums, scale, a_scale, a_zero_point, eps, a_bits), slices.data_ptr(), epilogue,
    )  # fmt: skip
    return y


def _triton_refuse(x: Tensor, depth: int, bits: int, *_: object) -> str | None:
    return choose_norm.implementations["triton"].refuse(x) or refuse_depth(depth, bits)


def _triton_forward(
    x: Tensor, weight: Tensor, channels: Tensor, sums: Optional, table: Optional, scale: float, a_scale: float, a_zero_point: int,
    eps: float, a_bits: int, columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool,
) -> Tensor:  # fmt: skip
    norm, product = (each.implementations["triton"].forward for each in (choose_norm, choose_product))
    a = norm(x, sums, scale, a_scale, a_zero_point, eps, a_bits, None)
    return product(a, weight, channels, None, None, None, table, columns, depth, bits, out_dtype, activation, plain, 0.0, 0)


choose = Choice(
    OP,
    cuda=Implementation(_cuda_forward, refuse=_cuda_refuse),
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(
    x: Tensor, weight: Tensor, channels: Tensor, sums: Optional, table: Optional, scale: float, a_scale: float, a_zero_point: int,
    eps: float, a_bits: int, columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, sums, depth)
    return choose(backend, x, depth, bits, out_dtype, plain, table).forward(
        x, weight, channels, sums, table, scale, a_scale, a_zero_point, eps, a_bits, columns, depth, bits, out_dtype, activation, plain
    )  # fmt: skip


def _forward_fake(
    x: Tensor, weight: Tensor, channels: Tensor, sums: Optional, table: Optional, scale: float, a_scale: float, a_zero_point: int,
    eps: float, a_bits: int, columns: int, depth: int, bits: int, out_dtype: torch.dtype, activation: str, plain: bool, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, sums, depth)
    return x.new_empty(x.shape[0], columns, dtype=out_dtype)


_op = register(
    OP,
    "(Tensor x, Tensor weight, Tensor channels, Tensor? sums, Tensor? table, float scale, float a_scale, int a_zero_point, float eps,"
    " int a_bits, int columns, int depth, int bits, ScalarType out_dtype, str activation, bool plain, *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
    _check_prepared,
)
_call = direct(_op, _forward, tensors=5)
