"""The attention half of a MobileViTv2 layer in integers: schema, checks, fake, backends, and what is prepared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import checks, cuda_support, qchecks
from .backend import Choice, Implementation, refuse_off_cpu
from .library import dense, direct, register
from .pack_weight import check_packed
from .placed import Placed
from .qchannels import check_channels
from .qconv2d import QConv2d
from .qconv2d import choose as choose_qconv2d
from .qgemm import triton_refuse
from .qnorm import Norm, check_stream
from .qnorm import choose as choose_qnorm
from .qseparable_attention import QSeparableContext, QSeparableGate, choose_context, choose_gate

OP = "qseparable_attention_block"
Tensor = torch.Tensor
Optional = torch.Tensor | None


class QSeparableAttentionBlock:
    """The attention half of a layer whose quantization is computed: call it with a residual stream x (B, d, H, W) int16."""

    def __init__(
        self, norm: Norm, qkv: QConv2d, context: QSeparableContext, key: QConv2d, gate: QSeparableGate, out: QConv2d, backend: str | None
    ) -> None:  # fmt: skip
        self.norm, self.qkv, self.context, self.key, self.gate, self.out, self.backend = norm, qkv, context, key, gate, out, backend
        self._placed = Placed(qkv.channels, context.table, key.channels, out.channels)
        bits = [each.weight.bits for each in (qkv, key, out)]
        self._settings = out.weight.columns, bits, context.patch_size, *norm, *context.settings[2:], *gate.settings

    def __call__(self, x: Tensor, sums: Optional = None) -> Tensor:
        """y (B, d, H, W) int16, in channels_last memory. sums (B, 2) int64: sum and sum of squares of each image, if they are known. What
        was prepared is copied to the device of x by the first call there."""
        channels, table, key_channels, out_channels = self._placed.on(x.device)
        qkv, key, out = (each.weight.on(x.device) for each in (self.qkv, self.key, self.out))
        y: Tensor = _call(
            x, sums, qkv, channels, table, key, key_channels, out, out_channels, *self._settings, backend=self.backend
        )  # fmt: skip
        return y


def prepare_qseparable_attention_block(
    norm: Norm, qkv: QConv2d, context: QSeparableContext, key: QConv2d, gate: QSeparableGate, out: QConv2d, *, backend: str | None = None
) -> QSeparableAttentionBlock:  # fmt: skip
    """x + W_o gate(v, W_k context(q, n)) with n = qnorm(x) of each image and (q, v) = W_qkv n, bit for bit what the ops give one after
    another; on a GPU in three launches, in which normalised bytes, scores and values stay on the multiprocessors.

    Args:
        norm: a `qnorm` of whole images, gamma and beta being in the weights of qkv and key.
        qkv, key, out: 1x1 convolutions of `prepare_qconv2d` without an activation: to uint8, first the score and then d values; from d
            channels to d of float32; to int16.
        context, gate: of `prepare_qseparable_context` and `prepare_qseparable_gate`, of bytes with the scales and zero-points that the
            norm and qkv give them.
        backend: None for automatic choice, or the name of one.

    Raises:
        TypeError, ValueError: others, or what does not fit.

    Source: MobileViTv2, arXiv 2206.02680, section 3, equation 3 and figure 3.
    """
    checks.backend(OP, backend)
    kinds = {"norm": (norm, Norm), "context": (context, QSeparableContext), "gate": (gate, QSeparableGate)}
    products = {"qkv": qkv, "key": key, "out": out}
    for name, (value, kind) in (kinds | {name: (value, QConv2d) for name, value in products.items()}).items():
        if not isinstance(value, kind):
            raise TypeError(f"{OP}: {name}: expected a {kind.__name__}, got {type(value).__name__}")
    dim = out.weight.columns
    dtypes = {"qkv": torch.uint8, "key": torch.float32, "out": torch.int16}
    for name, layer in products.items():
        size = 1 + dim if layer is qkv else dim, dim
        if (layer.kernel_size, layer.stride, layer.second_channels) != (1, 1, 0):
            got = f"{layer.kernel_size}x{layer.kernel_size} of stride {layer.stride} with {layer.second_channels} channels of a second"
            raise ValueError(f"{OP}: {name}: expected a 1x1 convolution of stride 1 and one input, got {got}")
        if (layer.weight.columns, layer.weight.depth) != size:
            got = f"{layer.weight.columns} from {layer.weight.depth}"
            raise ValueError(f"{OP}: {name}: expected {size[0]} channels from {size[1]}, as {dim} are those of out, got {got}")
        settings = layer.settings
        plain = settings.activation == "none" and settings.residual_scale == 0 and layer.table is None
        if settings.out_dtype != dtypes[name] or not plain:
            what = f"to {settings.out_dtype} with activation {settings.activation}{'' if plain else ' or a table or a residual'}"
            raise ValueError(f"{OP}: {name}: expected a layer to {dtypes[name]} without an activation, got one {what}")
    if context.settings[:2] != norm[1:3]:
        raise ValueError(f"{OP}: context: expected scale and zero-point of the norm's results, {norm[1:3]}, got {context.settings[:2]}")
    if context.settings.out_scale is None:
        raise ValueError(f"{OP}: context: expected one to bytes, got one to torch.float32")
    if context.patch_size != gate.patch_size:
        raise ValueError(f"{OP}: gate: expected the patch size of the context, {context.patch_size}, got {gate.patch_size}")
    points = set(qkv.channels[-1, 1 : 1 + dim].tolist())
    if points != {gate.settings.v_zero_point}:
        raise ValueError(f"{OP}: gate: expected the zero-point of qkv's values, {sorted(points)}, got {gate.settings.v_zero_point}")
    return QSeparableAttentionBlock(norm, qkv, context, key, gate, out, backend)


# --- checks ---


def _check_prepared(
    x: Tensor, sums: Optional, qkv_weight: Tensor, qkv_channels: Tensor, table: Tensor, key_weight: Tensor, key_channels: Tensor,
    out_weight: Tensor, out_channels: Tensor, dim: int, bits: list[int], patch_size: list[int], scale: float, a_scale: float,
    a_zero_point: int, eps: float, a_bits: int, context_scale: float, context_zero_point: int, context_bits: int, v_scale: float,
    v_zero_point: int, gate_scale: float, gate_zero_point: int, gate_bits: int, **_: object,
) -> None:  # fmt: skip
    if len(bits) != 3:
        raise ValueError(f"{OP}: bits: expected those of three weights, got {bits}")
    for name, weight, channels, columns, dtype, each in (
        ("qkv", qkv_weight, qkv_channels, 1 + dim, torch.uint8, bits[0]),
        ("key", key_weight, key_channels, dim, torch.float32, bits[1]),
        ("out", out_weight, out_channels, dim, torch.int16, bits[2]),
    ):  # fmt: skip
        check_packed(f"{OP}: {name}", weight, columns, dim, each, x.device)
        check_channels(f"{OP}: {name}", channels, None, columns, dtype, "none", x.device)
    checks.prepared(OP, "table", table, torch.int32, (256,), x.device)
    for name, value in (("a_bits", a_bits), ("context_bits", context_bits), ("gate_bits", gate_bits)):
        qchecks.bits(OP, name, value)


def _check(x: Tensor, sums: Optional, dim: int, patch_size: list[int]) -> tuple[int, int]:
    checks.image(OP, "x", x, (torch.int16,))
    if x.shape[1] != dim:
        raise ValueError(f"{OP}: x: expected {dim} channels, got shape {tuple(x.shape)}")
    patch = checks.patch_size(OP, patch_size)
    checks.whole_patches(OP, "x", x.shape[2], x.shape[3], patch)
    check_stream(OP, _rows(x), sums)
    if sums is not None and sums.shape[0] != x.shape[0]:
        raise ValueError(f"{OP}: sums: expected those of {x.shape[0]} images, got {tuple(sums.shape)}")
    return patch


def _rows(x: Tensor) -> Tensor:
    """(B, d, H, W) as (B H W, d), in place where it is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


# --- backends ---


def _one_by_one(backend: str) -> Callable[..., Tensor]:
    """The ops as the backend has them, one after another."""
    norm, pointwise, context, gate = (
        each.implementations[backend].forward for each in (choose_qnorm, choose_qconv2d, choose_context, choose_gate)
    )

    def forward(
        x: Tensor, sums: Optional, qkv_weight: Tensor, qkv_channels: Tensor, table: Tensor, key_weight: Tensor, key_channels: Tensor,
        out_weight: Tensor, out_channels: Tensor, dim: int, bits: list[int], patch: tuple[int, int], scale: float, a_scale: float,
        a_zero_point: int, eps: float, a_bits: int, context_scale: float, context_zero_point: int, context_bits: int, *gate_settings: Any,
    ) -> Tensor:  # fmt: skip
        unused = table.new_zeros(dim)  # zero-points: nothing is padded

        def product(x: Tensor, weight: Tensor, channels: Tensor, columns: int, bits: int, dtype: torch.dtype, residual: Optional = None) -> Tensor:
            plain = dtype != torch.float32
            sizes = columns, dim, bits, 1, 1, 0
            return pointwise(x, None, residual, weight, channels, unused, None, None, None, *sizes, dtype, "none", plain, 0.0, 0)

        def pixels(x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

        groups = x.shape[0] if sums is None else None
        normal = norm(_rows(x), sums, scale, a_scale, a_zero_point, eps, a_bits, groups).reshape(pixels(x).shape)
        qkv = product(normal.permute(0, 3, 1, 2), qkv_weight, qkv_channels, 1 + dim, bits[0], torch.uint8)
        mixed = context(
            qkv[:, 0], normal, table, patch, a_scale, a_zero_point, context_scale, context_zero_point, context_bits
        ).unflatten(1, patch)  # fmt: skip
        key = product(mixed.permute(0, 3, 1, 2), key_weight, key_channels, dim, bits[1], torch.float32)
        gated = gate(pixels(qkv[:, 1:]), pixels(key).flatten(1, 2), patch, *gate_settings)
        return product(gated.permute(0, 3, 1, 2), out_weight, out_channels, dim, bits[2], torch.int16, x)

    return forward


def _triton_refuse(x: Tensor, dim: int, bits: list[int]) -> str | None:
    return next(filter(None, (triton_refuse(x, dim, each) for each in bits)), None)


choose = Choice(
    OP,
    triton=Implementation(_one_by_one("triton"), refuse=_triton_refuse),
    cpu=Implementation(_one_by_one("cpu"), refuse=refuse_off_cpu),
    reference=Implementation(_one_by_one("reference")),
)


# --- registration ---


def _forward(
    x: Tensor, sums: Optional, qkv_weight: Tensor, qkv_channels: Tensor, table: Tensor, key_weight: Tensor, key_channels: Tensor,
    out_weight: Tensor, out_channels: Tensor, dim: int, bits: list[int], patch_size: list[int], *settings: Any, backend: str | None = None,
) -> Tensor:  # fmt: skip
    patch = _check(x, sums, dim, patch_size)
    return choose(backend, x, dim, bits).forward(
        dense(x, channels_last=True), sums, qkv_weight, qkv_channels, table, key_weight, key_channels, out_weight, out_channels, dim, bits,
        patch, *settings,
    )  # fmt: skip


def _forward_fake(
    x: Tensor, sums: Optional, qkv_weight: Tensor, qkv_channels: Tensor, table: Tensor, key_weight: Tensor, key_channels: Tensor,
    out_weight: Tensor, out_channels: Tensor, dim: int, bits: list[int], patch_size: list[int], *settings: Any, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, sums, dim, patch_size)
    return torch.empty_like(x, memory_format=torch.channels_last)


_op = register(
    OP,
    "(Tensor x, Tensor? sums, Tensor qkv_weight, Tensor qkv_channels, Tensor table, Tensor key_weight, Tensor key_channels,"
    " Tensor out_weight, Tensor out_channels, int dim, int[] bits, int[] patch_size, float scale, float a_scale, int a_zero_point,"
    " float eps, int a_bits, float context_scale, int context_zero_point, int context_bits, float v_scale, int v_zero_point,"
    " float gate_scale, int gate_zero_point, int gate_bits, *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
    _check_prepared,
)
_call = direct(_op, _forward, tensors=9)
