"""The attention half of a MobileViTv2 layer in integers, on an int16 stream: schema, checks, fake, backends, what is prepared once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from . import checks, counts, cuda_support, qchecks
from .backend import Choice, Implementation, refuse_off_cpu
from .library import dense, direct, empty_in_format, register
from .moments import collected_sums
from .pack_weight import check_packed, unpack_bytes
from .packing import packed
from .placed import Placed
from .qchannels import check_channels
from .qconv2d import QConv2d, check_pointwise
from .qconv2d import choose as choose_qconv2d
from .qgemm import cuda_epilogue, refuse_depth
from .qnorm import QNorm, combined_sums, cuda_norm, pieces_of_sums
from .qnorm import choose as choose_qnorm
from .qpair import PackPair, attention_pays, check_images, no_sums, pointwise, rows_of
from .qseparable_attention import QSeparableContext, QSeparableGate, choose_context, choose_gate

OP = "qseparable_attention_block"
Tensor = torch.Tensor
Optional = torch.Tensor | None


class QSeparableAttentionBlock:
    """The half of a layer whose quantization is computed: call it with a stream x (B, d, H, W) int16."""

    def __init__(
        self, norm: QNorm, qkv: QConv2d, context: QSeparableContext, key: QConv2d, gate: QSeparableGate, out: QConv2d, backend: str | None
    ) -> None:  # fmt: skip
        self.norm, self.qkv, self.context, self.key, self.gate, self.out, self.backend = norm, qkv, context, key, gate, out, backend
        self._placed = Placed(qkv.channels, context.table, key.channels, out.channels)
        bits = [each.weight.bits for each in (qkv, key, out)]
        self._settings = out.weight.columns, bits, context.patch_size, *norm.norm, *context.settings[2:], *gate.settings, _bits_of(qkv)

    def __call__(self, x: Tensor, sums: Optional = None, *, collect: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """y like x, in channels_last memory; with `collect`, (y, sums (B, 2) int64 of its images).

        sums: of the images of x, if they are known: (B, 2) or (B, pieces, 2) int64, sum and sum of squares. What was prepared is copied to
        the device of x by the first call there."""
        checks.all_tensors(OP, x=x)
        checks.tensors(OP, sums=sums)
        qkv, key, out = (each.weight.on(x.device) for each in (self.qkv, self.key, self.out))
        channels, table, key_channels, out_channels = self._placed.on(x.device)
        y, collected = _call(
            x, sums, qkv, channels, table, key, key_channels, out, out_channels, *self._settings, collect, backend=self.backend
        )  # fmt: skip
        return (y, collected) if collect else y


def prepare_qseparable_attention_block(
    norm: QNorm, qkv: QConv2d, context: QSeparableContext, key: QConv2d, gate: QSeparableGate, out: QConv2d, *, backend: str | None = None
) -> QSeparableAttentionBlock:  # fmt: skip
    """out(gate(v, key(context(q, n))), residual=x) with n = norm(x) and (q, v) = qkv(n), bit for bit; on a GPU in three launches, between
    which only the contexts and what key makes of them lie in memory, where x has up to 256 channels, a multiple of eight, more than a few
    pixels, and a phase of an image fits in shared memory.

    Args:
        norm: of `prepare_qnorm`, of images and without weight and bias, which belong in qkv and key.
        qkv, key, out: 1x1 convolutions of stride 1 and one input without an activation, of `prepare_qconv2d`: from d channels to uint8,
            first scores and then d values; from d to d of float32; from d to d of int16.
        context, gate: of `prepare_qseparable_context` and `prepare_qseparable_gate`, on bytes with the scales and zero-points that norm
            and qkv give them; the context to uint8.
        backend: None for automatic choice, or the name of one.

    Raises:
        TypeError, ValueError: other layers, or layers that do not fit each other.

    Source: MobileViTv2, arXiv 2206.02680, section 3, equation 3 and figure 3.
    """
    checks.layers(
        OP, norm=(norm, QNorm), qkv=(qkv, QConv2d), context=(context, QSeparableContext), key=(key, QConv2d), gate=(gate, QSeparableGate),
        out=(out, QConv2d),
    )  # fmt: skip
    checks.backend(OP, backend)
    if norm.kind != "group" or norm.affine:
        got = f"one of {'images' if norm.kind == 'group' else 'pixels'} with{'' if norm.affine else 'out'} weight and bias"
        raise ValueError(f"{OP}: norm: expected one of images without weight and bias, got {got}")
    dim = out.weight.columns
    for name, layer, columns, dtype in (
        ("qkv", qkv, 1 + dim, torch.uint8), ("key", key, dim, torch.float32), ("out", out, dim, torch.int16)
    ):  # fmt: skip
        check_pointwise(OP, name, layer)
        checks.layer_gives(OP, name, layer.settings.out_dtype, dtype)
        if (layer.weight.columns, layer.weight.depth) != (columns, dim):
            got = f"one from {layer.weight.depth} to {layer.weight.columns}"
            raise ValueError(f"{OP}: {name}: expected a layer from {dim} to {columns} channels, as out has {dim}, got {got}")
        if layer.settings.activation != "none" or layer.table is not None or layer.settings.residual_scale:
            raise ValueError(f"{OP}: {name}: expected a layer without an activation, a table and a residual_scale, got one with them")
    checks.layer_gives(OP, "context", torch.float32 if context.settings.out_scale is None else torch.uint8, torch.uint8)
    if context.settings[:2] != norm.norm[1:3]:
        raise ValueError(f"{OP}: context: expected scale and zero-point of the norm, {norm.norm[1:3]}, got {context.settings[:2]}")
    if context.patch_size != gate.patch_size:
        raise ValueError(f"{OP}: gate: expected the patch_size of the context, {context.patch_size}, got {gate.patch_size}")
    zero_points = set(qkv.channels[-1, 1 : 1 + dim].tolist())
    if zero_points != {gate.settings.v_zero_point}:
        raise ValueError(f"{OP}: gate: expected the zero-point of values, {sorted(zero_points)}, got {gate.settings.v_zero_point}")
    return QSeparableAttentionBlock(norm, qkv, context, key, gate, out, backend)


def _bits_of(layer: QConv2d) -> int:
    """Of the bytes that a layer without an activation gives."""
    low, high = layer.channels[4:6, :1].view(torch.float32)
    return 8 if float(high - low) == 255 else 6


# --- checks ---


def _check_prepared(
    x: Tensor, sums: Optional, qkv_weight: Tensor, qkv_channels: Tensor, table: Tensor, key_weight: Tensor, key_channels: Tensor,
    out_weight: Tensor, out_channels: Tensor, dim: int, bits: list[int], patch_size: list[int], scale: float, norm_scale: float,
    norm_zero_point: int, eps: float, norm_bits: int, context_scale: float, context_zero_point: int, context_bits: int, v_scale: float,
    v_zero_point: int, gate_scale: float, gate_zero_point: int, gate_bits: int, v_bits: int, *_: object, **__: object,
) -> None:  # fmt: skip
    if len(bits) != 3:
        raise ValueError(f"{OP}: bits: expected those of three weights, got {bits}")
    for name, weight, channels, columns, dtype, own_bits in (
        ("qkv", qkv_weight, qkv_channels, 1 + dim, torch.uint8, bits[0]),
        ("key", key_weight, key_channels, dim, torch.float32, bits[1]),
        ("out", out_weight, out_channels, dim, torch.int16, bits[2]),
    ):  # fmt: skip
        check_packed(f"{OP}: {name}", weight, columns, dim, own_bits, x.device)
        check_channels(f"{OP}: {name}", channels, None, columns, dtype, "none", x.device)
    checks.prepared(OP, "table", table, torch.int32, (256,), x.device)
    for name, value in (("norm", norm_bits), ("context", context_bits), ("gate", gate_bits), ("v", v_bits)):
        qchecks.bits(OP, f"{name}_bits", value)


def _check(x: Tensor, sums: Optional, dim: int, patch_size: list[int]) -> tuple[int, int]:
    check_images(OP, x, dim, sums)
    patch = checks.patch_size(OP, patch_size)
    checks.whole_patches(OP, "x", x.shape[2], x.shape[3], patch)
    return patch


# --- backends ---


def _one_by_one(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The six ops as the backend has them, one after another; those that it does not have by another one on that device."""
    product = choose_qconv2d.implementations[backend].forward

    def forward(
        x: Tensor, sums: Optional, qkv_weight: Tensor, qkv_channels: Tensor, table: Tensor, key_weight: Tensor, key_channels: Tensor,
        out_weight: Tensor, out_channels: Tensor, dim: int, bits: list[int], patch: tuple[int, int], scale: float, norm_scale: float,
        norm_zero_point: int, eps: float, norm_bits: int, context_scale: float, context_zero_point: int, context_bits: int, v_scale: float,
        v_zero_point: int, gate_scale: float, gate_zero_point: int, gate_bits: int, v_bits: int, collect: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        def pixels(x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

        def by(choice: Choice, operand: Tensor) -> Implementation:
            return choice.implementations.get(backend) or choice("auto", operand, None)

        rows = rows_of(x)
        groups = x.shape[0] if sums is None else None
        normal = by(choose_qnorm, rows).forward(rows, sums, scale, norm_scale, norm_zero_point, eps, norm_bits, groups, None, None)
        normal = normal.reshape(x.shape[0], *x.shape[2:], dim).permute(0, 3, 1, 2)
        qkv = pointwise(product, normal, qkv_weight, qkv_channels, [1 + dim, dim, bits[0]], torch.uint8)
        mixed = by(choose_context, pixels(normal)).forward(
            qkv[:, 0], pixels(normal), table, patch, norm_scale, norm_zero_point, context_scale, context_zero_point, context_bits
        )  # fmt: skip
        key = _projected(product, mixed, patch, key_weight, key_channels, bits[1])
        values = pixels(qkv[:, 1:])
        gated = by(choose_gate, values).forward(values, key, patch, v_scale, v_zero_point, gate_scale, gate_zero_point, gate_bits)
        y = pointwise(product, gated.permute(0, 3, 1, 2), out_weight, out_channels, [dim, dim, bits[2]], torch.int16, residual=x)
        return y, collected_sums(pieces_of_sums(rows_of(y), y.shape[0])) if collect else no_sums(x)

    return forward


def _projected(
    product: Callable[..., Tensor], context: Tensor, patch: tuple[int, int], weight: Tensor, channels: Tensor, bits: int
) -> Tensor:  # fmt: skip
    """(B, phases, d) float32, of bytes (B, phases, d)."""
    dim, small_map = context.shape[2], context.unflatten(1, patch).permute(0, 3, 1, 2)
    return rows_of(pointwise(product, small_map, weight, channels, [dim, dim, bits], torch.float32)).view(context.shape)


_CHANNELS = 8  # that are read at once

_by_cuda_kernels = _one_by_one("cuda")


def _cuda_refuse(x: Tensor, dim: int, bits: list[int]) -> str | None:
    reasons = (cuda_support.refuse_deep_int6(dim, each) for each in bits)
    return cuda_support.refuse(x) or counts.refuse(counts.rows(x)) or next((reason for reason in reasons if reason is not None), None)


def _is_three_launches(x: Tensor, patch: tuple[int, int], collect: bool) -> bool:
    """Whether there are kernels, and they pay."""
    channels, points = x.shape[1], x.shape[2] * x.shape[3] // (patch[0] * patch[1])
    native = cuda_support.native
    if channels % _CHANNELS or native.qattention_pieces(channels, 1, points) == 0:
        return False
    if cuda_support.refuse_shared(x, native.qattention_context_shared(channels, points)) is not None:
        return False
    return attention_pays(x, patch[0] * patch[1], collect)


@dataclass(frozen=True)
class _PackQuery:
    """The first row of a weight, int8 with zeros up to a multiple of 32."""

    form: tuple[int, ...]

    def __call__(self, weight: Tensor) -> Tensor:
        row = unpack_bytes(weight.cpu(), *self.form)[0]
        return F.pad(row, (0, -len(row) % 32)).to(weight.device)


def _cuda_forward(
    x: Tensor, sums: Optional, qkv_weight: Tensor, qkv_channels: Tensor, table: Tensor, key_weight: Tensor, key_channels: Tensor,
    out_weight: Tensor, out_channels: Tensor, dim: int, bits: list[int], patch: tuple[int, int], scale: float, norm_scale: float,
    norm_zero_point: int, eps: float, norm_bits: int, context_scale: float, context_zero_point: int, context_bits: int, v_scale: float,
    v_zero_point: int, gate_scale: float, gate_zero_point: int, gate_bits: int, v_bits: int, collect: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if not _is_three_launches(x, patch, collect):
        return _by_cuda_kernels(
            x, sums, qkv_weight, qkv_channels, table, key_weight, key_channels, out_weight, out_channels, dim, bits, patch, scale,
            norm_scale, norm_zero_point, eps, norm_bits, context_scale, context_zero_point, context_bits, v_scale, v_zero_point, gate_scale,
            gate_zero_point, gate_bits, v_bits, collect,
        )  # fmt: skip
    native, place = cuda_support.native, cuda_support.place(x)
    x = cuda_support.aligned_copy(dense(x, channels_last=True))
    batch, phases, points = x.shape[0], patch[0] * patch[1], x.shape[2] * x.shape[3] // (patch[0] * patch[1])
    sums = combined_sums(pieces_of_sums(rows_of(x), batch) if sums is None else sums)
    stream = x.shape, patch, x.data_ptr(), cuda_norm(sums, scale, norm_scale, norm_zero_point, eps, norm_bits)
    form = 1 + dim, dim, bits[0]

    context = x.new_empty(batch, phases, dim, dtype=torch.uint8)
    native.qattention_context(
        *place, *stream, packed(_PackQuery(form), qkv_weight).data_ptr(), qkv_channels.data_ptr(), qkv_channels.shape[1], table.data_ptr(),
        norm_scale / context_scale, (context_zero_point, context_bits), context.data_ptr(),
    )  # fmt: skip
    key = _projected(choose_qconv2d.implementations["cuda"].forward, context, patch, key_weight, key_channels, bits[1])
    y = empty_in_format(x, tuple(x.shape), channels_last=True)
    parts = x.new_empty(batch, native.qattention_pieces(dim, phases, points), 2, dtype=torch.int64) if collect else None
    slices = packed(PackPair(form, (dim, dim, bits[2]), begin=1), qkv_weight, qkv_channels, out_weight)
    epilogue = cuda_epilogue(OP, out_channels, torch.int16, True, "none", None, x, dim, 0.0, 0, y, dim)
    native.qattention_values(
        *place, *stream, key.data_ptr(), v_scale / gate_scale, (v_zero_point, v_bits), (gate_zero_point, gate_bits), slices.data_ptr(),
        epilogue, 0 if parts is None else parts.data_ptr(),
    )  # fmt: skip
    return y, no_sums(x) if parts is None else collected_sums(parts)


def _triton_refuse(x: Tensor, dim: int, bits: list[int]) -> str | None:
    reasons = (refuse_depth(dim, each) for each in bits)
    return choose_qnorm.implementations["triton"].refuse(x) or next((reason for reason in reasons if reason is not None), None)


choose = Choice(
    OP,
    cuda=Implementation(_cuda_forward, refuse=_cuda_refuse),
    triton=Implementation(_one_by_one("triton"), refuse=_triton_refuse),
    cpu=Implementation(_one_by_one("cpu"), refuse=refuse_off_cpu),
    reference=Implementation(_one_by_one("reference")),
)


# --- registration ---


def _forward(
    x: Tensor, sums: Optional, qkv_weight: Tensor, qkv_channels: Tensor, table: Tensor, key_weight: Tensor, key_channels: Tensor,
    out_weight: Tensor, out_channels: Tensor, dim: int, bits: list[int], patch_size: list[int], *settings: Any, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    patch = _check(x, sums, dim, patch_size)
    return choose(backend, x, dim, bits).forward(
        x, sums, qkv_weight, qkv_channels, table, key_weight, key_channels, out_weight, out_channels, dim, bits, patch, *settings
    )  # fmt: skip


def _forward_fake(
    x: Tensor, sums: Optional, qkv_weight: Tensor, qkv_channels: Tensor, table: Tensor, key_weight: Tensor, key_channels: Tensor,
    out_weight: Tensor, out_channels: Tensor, dim: int, bits: list[int], patch_size: list[int], *settings: Any, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(x, sums, dim, patch_size)
    collect = settings[-1]
    return empty_in_format(x, tuple(x.shape), channels_last=True), x.new_empty(x.shape[0] if collect else 0, 2, dtype=torch.int64)


_op = register(
    OP,
    "(Tensor x, Tensor? sums, Tensor qkv_weight, Tensor qkv_channels, Tensor table, Tensor key_weight, Tensor key_channels,"
    " Tensor out_weight, Tensor out_channels, int dim, int[] bits, int[] patch_size, float scale, float norm_scale, int norm_zero_point,"
    " float eps, int norm_bits, float context_scale, int context_zero_point, int context_bits, float v_scale, int v_zero_point,"
    " float gate_scale, int gate_zero_point, int gate_bits, int v_bits, bool collect, *, str? backend=None) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _check_prepared,
)
_call = direct(_op, _forward, tensors=9)
