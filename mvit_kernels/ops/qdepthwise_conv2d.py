"""Integer depthwise 3x3 convolution with zero-points: schema, checks, fake, backends, and what is prepared once for many calls."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from mvit_kernels import reference

from . import checks, counts, cuda_support, qchecks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .library import QTYPE_CODES, dense, direct, empty_in_format, in_format, is_compiling, out_size, raise_status, register
from .pack_weight import MOST
from .packing import packed
from .placed import Placed
from .qchannels import Settings, check_channels, quantization, unpack_channels
from .qfragments import pack_taps
from .qgemm import SEGMENTS, activation_code, check_residual, cuda_epilogue, table_addresses, triton_finish
from .replay import Replays

OP = "qdepthwise_conv2d"
_kernels = triton_support.Kernels(OP)
BLOCK = 64  # channels
BLOCK_BYTES = 5632  # QDepthwiseBlock of csrc/cpu/core/qdepthwise_types.h
_NARROW = 2**14  # the largest zero-point of a result by narrow steps, see csrc/cpu/core/qdepthwise.h
_CONVERTED = 2.0**30  # that much of a float32 can be converted to int32, with roundings on the way
# (4, 4, 9): which taps are outside of the map, by rows (1: the first, plus 2: the last) and columns.
_EDGES = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]])
_OUTSIDE = (_EDGES[:, None, :, None] | _EDGES[None, :, None, :]).flatten(2)
Tensor = torch.Tensor
Optional = torch.Tensor | None


class QDepthwiseConv2d:
    """A depthwise convolution whose quantization is computed: call it with x (B, C / m, H, W) uint8."""

    def __init__(
        self, weight: Tensor, zero_point: Tensor, channels: Tensor, settings: Settings, stride: int, table: Optional, backend: str | None
    ) -> None:
        self.weight, self.zero_point, self.channels, self.settings = weight, zero_point, channels, settings
        self.stride, self.table, self.backend = stride, table, backend
        self.blocks = arrange(weight, zero_point, channels)
        self.narrow = is_narrow(weight, zero_point, channels, settings)
        self._placed = Placed(weight, zero_point, self.blocks, channels, table)
        self._replays = Replays(OP)

    def __call__(self, x: Tensor, residual: Optional = None) -> Tensor:
        """y (B, C, ceil(H / stride), ceil(W / stride)), channels_last; residual of that size. What was prepared is
        copied to the device of x by the first call there."""
        y: Optional = None if is_compiling() else self._replays.again(x, residual)
        return y if y is not None else self._replays(self._run, (x, residual), read=self._read)

    def _read(self) -> tuple[Optional, ...]:
        return self.blocks, self.channels, self.zero_point, self.table, *SEGMENTS.values()

    def _run(self, x: Tensor, residual: Optional) -> Tensor:
        if type(x) is not torch.Tensor:
            checks.is_tensor(OP, "x", x)
        prepared: tuple[Optional, ...] = (self.weight, self.zero_point, self.blocks, self.channels, self.table)
        if not x.is_cpu:
            prepared = self._placed.on(x.device)
        *tensors, table = prepared
        return _call(x, *tensors, residual, table, self.stride, self.narrow, *self.settings, backend=self.backend)


def prepare_qdepthwise_conv2d(
    weight: Tensor, *, stride: int = 1, a_scale: Any, a_zero_point: Any, w_scale: Any = 1.0, bias: Tensor | None = None,
    activation: str | None = None, residual_scale: Any = None, residual_zero_point: Any = None, out_dtype: torch.dtype = torch.float32,
    out_scale: Any = None, out_zero_point: Any = None, table: Tensor | None = None, a_bits: int = 8, out_bits: int = 8,
    backend: str | None = None,
) -> QDepthwiseConv2d:  # fmt: skip
    """Compute once what calls of `qdepthwise_conv2d` with the same quantization need: multipliers, the bias with zero-points folded in,
    and the weights in the order of kernels.

    Arguments as of `qdepthwise_conv2d`. Where out_dtype is uint8, a residual can only be given at the call if residual_scale is given here.
    """
    checks.is_tensor(OP, "weight", weight)
    checks.tensors(OP, bias=bias)
    checks.integer(OP, "stride", stride)
    checks.backend(OP, backend)
    checks.tensor(OP, "weight", weight, 4, (torch.int8,))
    channels = weight.shape[0]
    if channels == 0 or weight.shape[1:] != (1, 3, 3):
        raise ValueError(f"{OP}: weight: expected shape (C, 1, 3, 3), got {tuple(weight.shape)}")
    checks.stride(OP, stride)
    if a_scale is None:
        raise ValueError(f"{OP}: a_scale: expected a scale, got None")
    weight = weight.detach().cpu().clone(memory_format=torch.contiguous_format)
    if int(weight.min()) < -MOST[8]:
        raise ValueError(f"{OP}: weight: expected values in [-{MOST[8]}, {MOST[8]}], got {int(weight.min())}")
    settled = quantization(
        OP, weight.flatten(1), a_scale=a_scale, a_zero_point=a_zero_point, w_scale=w_scale, bias=bias, activation=activation,
        residual_scale=residual_scale, residual_zero_point=residual_zero_point, out_dtype=out_dtype, out_scale=out_scale,
        out_zero_point=out_zero_point, a_bits=a_bits, out_bits=out_bits, table=table, depthwise=True,
    )  # fmt: skip
    z = qchecks.zero_points(OP, "a_zero_point", a_zero_point, channels).contiguous()
    return QDepthwiseConv2d(weight, z, *settled, stride, qchecks.table(OP, table, out_dtype), backend)


def qdepthwise_conv2d(
    x: Tensor, weight: Tensor, *, stride: int = 1, a_scale: Any, a_zero_point: Any, w_scale: Any = 1.0, bias: Tensor | None = None,
    activation: str | None = None, residual: Tensor | None = None, residual_scale: Any = None, residual_zero_point: Any = None,
    out_dtype: torch.dtype = torch.float32, out_scale: Any = None, out_zero_point: Any = None, table: Tensor | None = None, a_bits: int = 8,
    out_bits: int = 8, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """y = act(s_a s_w conv2d(x - z_a, w, padding=1, groups=C / m) + bias + residual), exact in int32 and then in a pinned order of float32
    operations (those of `qgemm`). Padding is real 0, the zero-point.

    Real values are scale * (q - zero_point). For many calls with the same quantization `prepare_qdepthwise_conv2d` computes its part once.

    Args:
        x: (B, C / m, H, W) uint8, at least one channel and pixel. channels_last is read in place, other strides are copied to it first.
        weight: (C, 1, 3, 3) int8 with values in [-127, 127]; zero-point 0. Channel k of x goes into channels m k to m k + m - 1 of y.
        stride: 1 or 2.
        a_scale: a number.
        a_zero_point: any int32, or one for each channel, (C,) or (1, C).
        w_scale: a number or (C,).
        bias: (C,) real, or None; rounded to a multiple of a_scale w_scale.
        activation: None, "relu", or "silu", "gelu" or "hard_swish" by `reference.qactivate`; after the residual. "relu6" of bytes without
            residual.
        residual: of the size of y: uint8 with residual_scale and residual_zero_point; int16 with residual_scale; for out_dtype int16, int16
            of the scale of y; for floats of the same dtype.
        out_dtype: uint8 or int16, which need an out_scale, or float32, bfloat16, float16.
        out_scale, out_zero_point: a number or (C,) each; |out_zero_point| <= 2^20.
        table: (256,) uint8, through which every byte of y goes last: an activation function on quantized values. Or a curve, int16 of
            `reference.activation_curve` for this out_scale and out_zero_point: the activation in finer steps than bytes.
        a_bits, out_bits: 8 or 6: bytes of x are at most 2^a_bits - 1, those of y are.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C, ceil(H / stride), ceil(W / stride)), always channels_last.

    Raises:
        TypeError, ValueError: wrong arguments, scales that are not positive and finite, an int32 that could overflow, or the requested
            backend cannot take the call.
    """
    checks.is_tensor(OP, "x", x)
    checks.tensors(OP, residual=residual)
    cuda_support.unprepared(OP, x)
    prepared = prepare_qdepthwise_conv2d(
        weight, stride=stride, a_scale=a_scale, a_zero_point=a_zero_point, w_scale=w_scale, bias=bias, activation=activation,
        residual_scale=residual_scale, residual_zero_point=residual_zero_point, out_dtype=out_dtype, out_scale=out_scale,
        out_zero_point=out_zero_point, table=table, a_bits=a_bits, out_bits=out_bits, backend=backend,
    )  # fmt: skip
    return prepared(x, residual)


def arrange(weight: Tensor, zero_point: Tensor, channels: Tensor) -> Tensor:
    """weight (C, 1, 3, 3), zero_point (C,) and what `quantization` gives as (blocks, bytes): QDepthwiseBlock of csrc/cpu/core/
    qdepthwise_types.h."""
    count = weight.shape[0]
    beyond = -count % BLOCK
    init, scale, _, inverse, low, high, out_zero_point = unpack_channels(channels, count)

    def blocks(x: Tensor) -> Tensor:
        """(..., C) -> (blocks, ..., 64)."""
        return F.pad(x, (0, beyond)).unflatten(-1, (-1, BLOCK)).movedim(-2, 0)

    def positions(x: Tensor) -> Tensor:
        """The same, channel 16 l + 4 q + j at 16 q + 4 l + j."""
        return blocks(x).unflatten(-1, (4, 4, 4)).transpose(-3, -2).flatten(-3)

    taps = positions(weight[:, 0].permute(2, 1, 0))  # (blocks, kx, ky, 64)
    z_w = weight[:, 0].to(torch.int64).permute(1, 2, 0) * zero_point
    sums = init + _OUTSIDE @ z_w.flatten(0, 1)
    words = blocks(out_zero_point.clamp(-_NARROW, _NARROW).to(torch.int16)).unflatten(-1, (4, 2, 8)).transpose(-3, -2)
    edges = [blocks((bound.to(torch.int64) + out_zero_point).to(torch.uint8)) for bound in (low, high)]
    parts = (F.pad(taps.transpose(-2, -1), (0, 1)), positions(reference.wrap(sums)), positions(scale), positions(inverse), words, *edges)
    return torch.cat([part.contiguous().flatten(1).view(torch.uint8) for part in parts], dim=1)


def is_narrow(weight: Tensor, zero_point: Tensor, channels: Tensor, settings: Settings) -> bool:
    """Whether results without a residual can be had by the narrow steps of csrc/cpu/core/qdepthwise.h, which has the reasons."""
    init, scale, _, inverse, _, _, out_zero_point = unpack_channels(channels, weight.shape[0])
    if settings.out_dtype != torch.uint8 or not bool((out_zero_point.abs() <= _NARROW).all()):
        return False
    taps = weight.double().abs().sum((1, 2, 3))
    largest = (init.double().abs() + (255 + zero_point.double().abs()) * taps) * scale  # result, with any taps outside
    if settings.plain:
        return bool((largest <= _CONVERTED).all())
    return settings.activation in SEGMENTS and bool(((largest + 1) * inverse <= _CONVERTED).all())


# --- checks ---


def _check_prepared(
    x: Tensor, weight: Tensor, zero_point: Tensor, blocks: Tensor, channels: Tensor, residual: Optional, table: Optional, stride: int,
    narrow: bool, out_dtype: torch.dtype, activation: str, *_: object, **__: object,
) -> None:  # fmt: skip
    checks.tensor(OP, "weight", weight, 4)
    count, device = weight.shape[0], x.device
    checks.prepared(OP, "weight", weight, torch.int8, (count, 1, 3, 3), device)
    checks.prepared(OP, "zero_point", zero_point, torch.int32, (count,), device)
    checks.prepared(OP, "blocks", blocks, torch.uint8, (-(-count // BLOCK), BLOCK_BYTES), device)
    check_channels(OP, channels, table, count, out_dtype, activation, device)
    checks.stride(OP, stride)


def _check(
    x: Tensor, weight: Tensor, residual: Optional, stride: int, out_dtype: torch.dtype, plain: bool, residual_scale: float
) -> None:  # fmt: skip
    checks.image(OP, "x", x, (torch.uint8,))
    if weight.shape[0] % x.shape[1]:
        raise ValueError(
            f"{OP}: x: expected a number of channels that divides the {weight.shape[0]} filters of weight, got {tuple(x.shape)}"
        )  # fmt: skip
    if residual is not None:
        check_residual(OP, residual, out_size(x, weight.shape[0], stride), out_dtype, plain, residual_scale, x.device)


# --- backends ---


def _cpu_forward(
    x: Tensor, weight: Tensor, zero_point: Tensor, blocks: Tensor, channels: Tensor, residual: Optional, table: Optional, stride: int,
    narrow: bool, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float, residual_zero_point: int,
) -> Tensor:  # fmt: skip
    x = in_format(x, channels_last=True)
    y = empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True, dtype=out_dtype)
    if residual is not None:
        residual = dense(residual, channels_last=True)
    status = native.qdepthwise_conv2d(
        x.shape, weight.shape[0] // x.shape[1], stride, x.data_ptr(), x.stride(), blocks.data_ptr(), narrow and residual is None,
        channels.data_ptr(), channels.shape[1],
        QTYPE_CODES[out_dtype], plain, *activation_code(activation), *table_addresses(table),
        0 if residual is None else residual.data_ptr(), 0 if residual is None else QTYPE_CODES[residual.dtype], residual_scale,
        residual_zero_point, y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _reference_forward(
    x: Tensor, weight: Tensor, zero_point: Tensor, blocks: Tensor, channels: Tensor, residual: Optional, table: Optional, stride: int,
    narrow: bool, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float, residual_zero_point: int,
) -> Tensor:  # fmt: skip
    y = reference.qdepthwise_conv2d(
        x.repeat_interleave(weight.shape[0] // x.shape[1], 1), weight, zero_point, unpack_channels(channels, weight.shape[0]), stride,
        plain=plain, activation=activation, out_dtype=out_dtype,
        residual=residual, residual_scale=residual_scale, residual_zero_point=residual_zero_point, table=table,
    )  # fmt: skip
    return empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True, dtype=out_dtype).copy_(y)


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, (torch.uint8,))


def _triton_forward(
    x: Tensor, weight: Tensor, zero_point: Tensor, blocks: Tensor, channels: Tensor, residual: Optional, table: Optional, stride: int,
    narrow: bool, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float, residual_zero_point: int,
) -> Tensor:  # fmt: skip
    y = empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True, dtype=out_dtype)
    residual = None if residual is None else dense(residual, channels_last=True)
    finish = triton_finish(channels, out_dtype, plain, activation, table, residual, residual_scale, residual_zero_point)
    _kernels.qdepthwise_conv2d(in_format(x, channels_last=True), weight, zero_point, stride, finish, y)
    return y


def _cuda_refuse(x: Tensor, weight: Optional = None, *_: object) -> str | None:
    if weight is not None and weight.shape[0] != x.shape[1]:
        return "it has no kernel for several filters of a channel"
    line = x.shape[3] * max(x.stride(3), x.shape[1])
    if line >= 2**31:
        return f"it has no kernel for rows of a map that are 2^31 values long and more, got {line}"
    return cuda_support.refuse(x) or counts.refuse(counts.rows(x))


def _cuda_forward(
    x: Tensor, weight: Tensor, zero_point: Tensor, blocks: Tensor, channels: Tensor, residual: Optional, table: Optional, stride: int,
    narrow: bool, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float, residual_zero_point: int,
) -> Tensor:  # fmt: skip
    x = in_format(x, channels_last=True)
    y = empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True, dtype=out_dtype)
    if residual is not None:
        residual = dense(residual, channels_last=True)
    taps, border = packed(pack_taps, weight, zero_point, channels)
    epilogue = cuda_epilogue(
        OP, channels, out_dtype, plain, activation, table, residual, x.shape[1], residual_scale, residual_zero_point, y, x.shape[1]
    )  # fmt: skip
    cuda_support.native.qdepthwise_conv2d(
        *cuda_support.place(x), x.shape, stride, x.data_ptr(), x.stride(), taps.data_ptr(), border.data_ptr(), epilogue
    )
    return y


choose = Choice(
    OP,
    cuda=Implementation(_cuda_forward, refuse=_cuda_refuse),
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(
    x: Tensor, weight: Tensor, zero_point: Tensor, blocks: Tensor, channels: Tensor, residual: Optional, table: Optional, stride: int,
    narrow: bool, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float = 1.0, residual_zero_point: int = 0, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, weight, residual, stride, out_dtype, plain, residual_scale)
    return choose(backend, x, weight).forward(
        x, weight, zero_point, blocks, channels, residual, table, stride, narrow, out_dtype, activation, plain, residual_scale,
        residual_zero_point,
    )  # fmt: skip


def _forward_fake(
    x: Tensor, weight: Tensor, zero_point: Tensor, blocks: Tensor, channels: Tensor, residual: Optional, table: Optional, stride: int,
    narrow: bool, out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float = 1.0, residual_zero_point: int = 0, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, weight, residual, stride, out_dtype, plain, residual_scale)
    return empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True, dtype=out_dtype)


_op = register(
    OP,
    "(Tensor x, Tensor weight, Tensor zero_point, Tensor blocks, Tensor channels, Tensor? residual, Tensor? table, int stride, bool narrow,"
    " ScalarType out_dtype, str activation, bool plain, float residual_scale=1.0, int residual_zero_point=0, *, str? backend=None)"
    " -> Tensor",
    _forward,
    _forward_fake,
    _check_prepared,
)
_call = direct(_op, _forward, tensors=7)
