"""Convolution of bytes with zero-points, 1x1 or 3x3, of one or two inputs: schema, checks, fake, backends, and what is prepared once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from mvit_kernels import reference

from . import checks, counts, cuda_support, qchecks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .library import QTYPE_CODES, dense, direct, empty_in_format, in_format, is_compiling, out_size, raise_status, register
from .pack_weight import QPANEL, PackedWeight, check_packed, unpack_bytes
from .packing import packed
from .placed import Placed
from .qchannels import Settings, check_channels, quantization, unpack_channels
from .qfragments import PackBorder, PackFragments, parts_of
from .qgemm import SEGMENTS, TritonWeight, activation_code, check_residual, cuda_epilogue, table_addresses, triton_finish, triton_refuse
from .replay import Replays

OP = "qconv2d"
_kernels = triton_support.Kernels(OP)
FEWEST_CHANNELS = 32  # for minimal filtering: of each input and of the result
FEWEST_TILES = 12  # of 4 x 4 pixels: the 36 matrices are 8 times the bytes of the weight, read for so many rows from the third cache
LARGEST_SUM = 2**18  # of absolute weights, csrc/cpu/ops/qwinograd.h
Tensor = torch.Tensor
Optional = torch.Tensor | None


class QConv2d:
    """A convolution whose quantization is computed: call it with x (B, C, H, W) uint8, and with what `prepare_qconv2d` left to the call."""

    def __init__(
        self, weight: PackedWeight, channels: Tensor, zero_point: Tensor, border: Optional, filtered: Optional, table: Optional,
        kernel_size: int, stride: int, second_channels: int, settings: Settings, backend: str | None,
    ) -> None:  # fmt: skip
        self.weight, self.channels, self.zero_point, self.table = weight, channels, zero_point, table
        self.border, self.filtered = border, filtered
        self.kernel_size, self.stride, self.second_channels, self.settings = kernel_size, stride, second_channels, settings
        self.backend = backend
        self._sizes = weight.columns, weight.depth, weight.bits, kernel_size, stride, second_channels
        self._placed = Placed(channels, zero_point, border, table)
        self._replays = Replays(OP)

    def __call__(self, x: Tensor, second: Optional = None, residual: Optional = None) -> Tensor:
        """y (B, N, ceil(H / stride), ceil(W / stride)), in channels_last memory. What was prepared is copied to the
        device of x by the first call there."""
        y: Optional = None if is_compiling() else self._replays.again(x, second, residual)
        return y if y is not None else self._replays(self._run, (x, second, residual), read=self._read)

    def _read(self) -> tuple[Optional, ...]:
        return self.weight.data, self.channels, self.zero_point, self.border, self.filtered, self.table, *SEGMENTS.values()

    def _run(self, x: Tensor, second: Optional, residual: Optional) -> Tensor:
        if type(x) is not torch.Tensor:
            checks.is_tensor(OP, "x", x)
        weight, filtered = self.weight.data, self.filtered
        prepared: tuple[Optional, ...] = (self.channels, self.zero_point, self.border, self.table)
        if not x.is_cpu:
            weight, filtered, prepared = self.weight.on(x.device), None, self._placed.on(x.device)  # filtered: for processors
        channels, zero_point, border, table = prepared
        return _call(
            x, second, residual, weight, channels, zero_point, border, filtered, table,
            *self._sizes, *self.settings, backend=self.backend,
        )  # fmt: skip


def prepare_qconv2d(
    weight: PackedWeight, a_scale: Any, a_zero_point: Any, w_scale: Any = 1.0, bias: Tensor | None = None, *, kernel_size: int,
    stride: int = 1, second_channels: int = 0, second_scale: Any = None, second_zero_point: Any = None, activation: str | None = None,
    residual_scale: Any = None, residual_zero_point: Any = None, out_dtype: torch.dtype = torch.float32, out_scale: Any = None,
    out_zero_point: Any = None, table: Tensor | None = None, a_bits: int = 8, out_bits: int = 8, backend: str | None = None,
) -> QConv2d:  # fmt: skip
    """Compute once what calls of `qconv2d` with the same quantization need: multipliers, the bias with zero-points folded in, and what sums
    begin with at the border of a map where zero-points are no bytes.

    Arguments as of `qconv2d`. second_channels: how many of the weight's channels are those of `second`. Where out_dtype is uint8, a
    residual can only be given at the call if residual_scale is given here.
    """
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"{OP}: weight: expected a PackedWeight, got {type(weight).__name__}")
    checks.backend(OP, backend)
    for name, value in (("kernel_size", kernel_size), ("stride", stride), ("second_channels", second_channels)):
        checks.integer(OP, name, value)
    checks.stride(OP, stride)
    _check_kernel(kernel_size)
    taps = kernel_size * kernel_size
    if weight.depth % taps or weight.depth == 0:
        raise ValueError(f"{OP}: weight: expected a depth of {taps} times the channels, got {weight.depth}")
    both = weight.depth // taps
    if not 0 <= second_channels < both:
        raise ValueError(f"{OP}: second_channels: expected between 0 and {both - 1} of {both} channels, got {second_channels}")
    for name, value, of_second in (("scale", a_scale, second_scale), ("zero_point", a_zero_point, second_zero_point)):
        if value is None:
            raise ValueError(f"{OP}: a_{name}: expected a {name.replace('_', '-')}, got None")
        if of_second is not None and not torch.equal(*(torch.as_tensor(each).double().flatten().cpu() for each in (of_second, value))):
            raise ValueError(
                f"{OP}: second_{name}: expected that of x, {value}, got {of_second}: the weights of one input can absorb the ratio of"
                " scales, and zero-points of channels are given as one a_zero_point for both inputs"
            )
    zero_point = qchecks.zero_points(OP, "a_zero_point", a_zero_point, both).contiguous()
    matrix = weight.unpack()
    channels, settings = quantization(
        OP, matrix, a_scale=a_scale, a_zero_point=zero_point.repeat(taps), w_scale=w_scale, bias=bias, activation=activation,
        residual_scale=residual_scale, residual_zero_point=residual_zero_point, out_dtype=out_dtype, out_scale=out_scale,
        out_zero_point=out_zero_point, a_bits=a_bits, out_bits=out_bits, table=table,
    )  # fmt: skip
    border = None
    if kernel_size == 3 and bool(((zero_point < 0) | (zero_point > 255)).any()):
        border = reference.qconv2d_border(matrix, zero_point, channels[0, : weight.columns])
        border = F.pad(border, (0, -weight.columns % QPANEL)).contiguous()
    filtered = None
    fewest = min(weight.columns, both - second_channels, second_channels or both)
    if kernel_size == 3 and stride == 1 and fewest >= FEWEST_CHANNELS and weight.largest < LARGEST_SUM:
        filtered = _filtered_of(weight, matrix)
    table = qchecks.table(OP, table, out_dtype)
    return QConv2d(weight, channels, zero_point, border, filtered, table, kernel_size, stride, second_channels, settings, backend)


def qconv2d(
    x: Tensor, weight: PackedWeight, *, kernel_size: int, a_scale: Any, a_zero_point: Any, w_scale: Any, bias: Tensor | None = None,
    stride: int = 1, second: Tensor | None = None, second_scale: Any = None, second_zero_point: Any = None, activation: str | None = None,
    residual: Tensor | None = None, residual_scale: Any = None, residual_zero_point: Any = None, out_dtype: torch.dtype = torch.float32,
    out_scale: Any = None, out_zero_point: Any = None, table: Tensor | None = None, a_bits: int = 8, out_bits: int = 8,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """y = act(conv2d(s_a (cat(x, second) - z_a), s_w w, padding=k // 2) + bias + residual), exact in int32 and then in a pinned order of
    float32 operations.

    Real values are scale * (q - zero_point); outside of the map they are 0. For many calls with the same quantization `prepare_qconv2d`
    computes its part once.

    Args:
        x: (B, C, H, W) uint8, at least one channel and pixel; channels_last is read in place, other strides are copied to it first.
        weight: `pack_weight` of (N, C + C2, k, k), or of the matrix (N, k k (C + C2)) with columns in the order (ky, kx, c); zero-point 0.
        kernel_size, stride: 1 or 3, and 1 or 2.
        a_scale: a number.
        a_zero_point: any int32, or one of each input channel (of both inputs): (C + C2,) or (1, C + C2).
        w_scale: a number or (N,).
        bias: (N,) real, or None; rounded to a multiple of a_scale w_scale.
        second: (B, C2, H, W) uint8, as if its channels stood behind those of x; no concatenation is made.
        second_scale, second_zero_point: None, or the numbers that x has: an error where they differ.
        activation: None, "relu", or "silu", "gelu" or "hard_swish" by `reference.qactivate`; after the residual. "relu6" of bytes without
            residual.
        residual: (B, N, ceil(H / stride), ceil(W / stride)): uint8 with residual_scale and residual_zero_point; int16 with residual_scale;
            for out_dtype int16, int16 of the scale of y; for floats of the same dtype.
        out_dtype: uint8 or int16, which need an out_scale, or float32, bfloat16, float16.
        out_scale, out_zero_point: a number or (N,) each; |out_zero_point| <= 2^20.
        table: (256,) uint8, through which every byte of y goes last: an activation function on quantized values. Or a curve, int16 of
            `reference.activation_curve` for this out_scale and out_zero_point: the activation in finer steps than bytes.
        a_bits, out_bits: 8 or 6: bytes of x are at most 2^a_bits - 1, those of y are.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, N, ceil(H / stride), ceil(W / stride)) of out_dtype, always in channels_last memory.

    Raises:
        TypeError, ValueError: wrong arguments, scales that are not positive and finite, an int32 that could overflow, or the requested
            backend cannot take the call.
    """
    checks.all_tensors(OP, x=x)
    checks.tensors(OP, second=second, residual=residual)
    if second is not None:
        checks.tensor(OP, "second", second, 4, (torch.uint8,))
    cuda_support.unprepared(OP, x)
    prepared = prepare_qconv2d(
        weight, a_scale, a_zero_point, w_scale, bias, kernel_size=kernel_size, stride=stride,
        second_channels=0 if second is None else second.shape[1], second_scale=second_scale, second_zero_point=second_zero_point,
        activation=activation, residual_scale=residual_scale, residual_zero_point=residual_zero_point, out_dtype=out_dtype,
        out_scale=out_scale, out_zero_point=out_zero_point, table=table, a_bits=a_bits, out_bits=out_bits, backend=backend,
    )  # fmt: skip
    return prepared(x, second, residual)


def _filtered_of(weight: PackedWeight, matrix: Tensor) -> Tensor:
    """`_filter`, which has eight times the bytes of the weight: once for all convolutions that are prepared from it."""
    if weight.filtered is None:
        weight.filtered = _filter(matrix)
    return weight.filtered


def _filter(matrix: Tensor) -> Tensor:
    """The 36 matrices G g G^T of csrc/cpu/ops/qwinograd.h, int16: (N / 16, 36, pairs of channels, 16, 2), of the weight (N, 9 C)."""
    columns, depth = matrix.shape
    g = torch.tensor([[1, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 1]], dtype=torch.int32)
    filtered = torch.einsum("ai,bj,nijc->nabc", g, g, matrix.to(torch.int32).reshape(columns, 3, 3, depth // 9)).to(torch.int16)
    padded = F.pad(filtered.flatten(1, 2), (0, depth // 9 % 2, 0, 0, 0, -columns % QPANEL))
    return padded.reshape(-1, QPANEL, 36, padded.shape[2] // 2, 2).permute(0, 2, 3, 1, 4).contiguous()


# --- checks ---


def check_pointwise(op: str, name: str, layer: QConv2d) -> None:
    if (layer.kernel_size, layer.stride, layer.second_channels) != (1, 1, 0):
        got = f"{layer.kernel_size}x{layer.kernel_size} of stride {layer.stride} with {layer.second_channels} channels of a second"
        raise ValueError(f"{op}: {name}: expected a 1x1 convolution of stride 1 and one input, got {got}")


def _check_kernel(kernel: int) -> None:
    if kernel not in (1, 3):
        raise ValueError(f"{OP}: kernel_size: expected 1 or 3, got {kernel}")


def _empty(x: Tensor, columns: int, stride: int, dtype: torch.dtype) -> Tensor:
    return empty_in_format(x, out_size(x, columns, stride), channels_last=True, dtype=dtype)


def _check_prepared(
    x: Tensor, second: Optional, residual: Optional, weight: Tensor, channels: Tensor, zero_point: Tensor, border: Optional,
    filtered: Optional, table: Optional, columns: int, depth: int, bits: int, kernel: int, stride: int, second_channels: int,
    out_dtype: torch.dtype, activation: str, *_: object, **__: object,
) -> None:  # fmt: skip
    checks.stride(OP, stride)
    _check_kernel(kernel)
    device = x.device
    check_packed(OP, weight, columns, depth, bits, device)
    check_channels(OP, channels, table, columns, out_dtype, activation, device)
    both, panels = depth // (kernel * kernel), -(-columns // QPANEL)
    checks.prepared(OP, "zero_point", zero_point, torch.int32, (both,), device)
    if border is not None:
        checks.prepared(OP, "border", border, torch.int32, (16, panels * QPANEL), device)
    if filtered is not None:
        checks.prepared(OP, "filtered", filtered, torch.int16, (panels, 36, (both + 1) // 2, QPANEL, 2), device)


def _check(
    x: Tensor, second: Optional, residual: Optional, columns: int, depth: int, kernel: int, stride: int, second_channels: int,
    out_dtype: torch.dtype, plain: bool, residual_scale: float,
) -> None:  # fmt: skip
    checks.image(OP, "x", x, (torch.uint8,))
    both = depth // (kernel * kernel)
    if x.shape[1] != both - second_channels:
        raise ValueError(f"{OP}: x: expected {both - second_channels} channels, got shape {tuple(x.shape)}")
    if (second is not None) != (second_channels > 0):
        expected = f"{second_channels} channels" if second_channels else "None"
        raise ValueError(f"{OP}: second: expected {expected}, got {None if second is None else tuple(second.shape)}")
    if second is not None:
        checks.like(OP, "second", second, x, (x.shape[0], second_channels, x.shape[2], x.shape[3]))
    if residual is not None:
        check_residual(OP, residual, out_size(x, columns, stride), out_dtype, plain, residual_scale, x.device)


def tiles_pay(batch: int, height: int, width: int) -> bool:
    """Whether minimal filtering costs less than the definition on maps of this size."""
    tiles = batch * ((height + 3) // 4) * ((width + 3) // 4)
    return tiles >= FEWEST_TILES and 12 * tiles <= batch * height * width  # 12 of the 16 pixels of a tile in the map at least


# --- backends ---


def _cpu_forward(
    x: Tensor, second: Optional, residual: Optional, weight: Tensor, channels: Tensor, zero_point: Tensor, border: Optional,
    filtered: Optional, table: Optional, columns: int, depth: int, bits: int, kernel: int, stride: int, second_channels: int,
    out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float, residual_zero_point: int,
) -> Tensor:  # fmt: skip
    x = in_format(x, channels_last=True)
    if second is not None:
        second = in_format(second, channels_last=True)
    if residual is not None:
        residual = dense(residual, channels_last=True)
    y = _empty(x, columns, stride, out_dtype)
    size, x_stride = x.shape, x.stride()
    if filtered is not None and not tiles_pay(size[0], size[2], size[3]):
        filtered = None
    status = native.qconv2d(
        size, kernel, stride, x.data_ptr(), x_stride, 0 if second is None else second.data_ptr(), second_channels,
        x_stride if second is None else second.stride(), zero_point.data_ptr(), 0 if border is None else border.data_ptr(),
        weight.data_ptr(), weight.shape[0],
        (columns, depth, bits), 0 if filtered is None else filtered.data_ptr(), channels.data_ptr(), channels.shape[1],
        QTYPE_CODES[out_dtype], plain, *activation_code(activation), *table_addresses(table),
        0 if residual is None else residual.data_ptr(), 0 if residual is None else QTYPE_CODES[residual.dtype], residual_scale,
        residual_zero_point, y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _reference_forward(
    x: Tensor, second: Optional, residual: Optional, weight: Tensor, channels: Tensor, zero_point: Tensor, border: Optional,
    filtered: Optional, table: Optional, columns: int, depth: int, bits: int, kernel: int, stride: int, second_channels: int,
    out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float, residual_zero_point: int,
) -> Tensor:  # fmt: skip
    y = reference.qconv2d(
        x, unpack_bytes(weight, columns, depth, bits), zero_point, unpack_channels(channels, columns), kernel=kernel, stride=stride,
        second=second, residual=residual, plain=plain, activation=activation, out_dtype=out_dtype, residual_scale=residual_scale,
        residual_zero_point=residual_zero_point, table=table,
    )  # fmt: skip
    return _empty(x, columns, stride, out_dtype).copy_(y)


def _triton_forward(
    x: Tensor, second: Optional, residual: Optional, weight: Tensor, channels: Tensor, zero_point: Tensor, border: Optional,
    filtered: Optional, table: Optional, columns: int, depth: int, bits: int, kernel: int, stride: int, second_channels: int,
    out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float, residual_zero_point: int,
) -> Tensor:  # fmt: skip
    y = _empty(x, columns, stride, out_dtype)
    second = None if second is None else in_format(second, channels_last=True)
    residual = None if residual is None else dense(residual, channels_last=True)
    finish = triton_finish(channels, out_dtype, plain, activation, table, residual, residual_scale, residual_zero_point)
    matrix = packed(TritonWeight(columns, depth, bits, kernel * kernel, second_channels), weight)
    _kernels.qconv2d(in_format(x, channels_last=True), second, matrix, finish, y, kernel, stride, zero_point, border)
    return y


_MOST_COLUMNS = 64 * 65535  # of csrc/cuda/ops/qproduct_launch.cuh


def _cuda_refuse(x: Tensor, depth: int, bits: int, columns: int) -> str | None:
    if columns > _MOST_COLUMNS:
        return f"it takes up to {_MOST_COLUMNS} channels of y, got {columns}"
    return cuda_support.refuse(x) or cuda_support.refuse_deep_int6(depth, bits) or counts.refuse(counts.rows(x))


def _cuda_forward(
    x: Tensor, second: Optional, residual: Optional, weight: Tensor, channels: Tensor, zero_point: Tensor, border: Optional,
    filtered: Optional, table: Optional, columns: int, depth: int, bits: int, kernel: int, stride: int, second_channels: int,
    out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float, residual_zero_point: int,
) -> Tensor:  # fmt: skip
    x = in_format(x, channels_last=True)
    if second is not None:
        second = in_format(second, channels_last=True)
    if residual is not None:
        residual = dense(residual, channels_last=True)
    y = _empty(x, columns, stride, out_dtype)
    fragments = packed(PackFragments(columns, depth, bits, parts_of(kernel, x.shape[1], second_channels)), weight)
    if kernel == 3:
        border = packed(PackBorder(columns, depth, bits), weight, zero_point, channels)
    epilogue = cuda_epilogue(
        OP, channels, out_dtype, plain, activation, table, residual, columns, residual_scale, residual_zero_point, y, columns
    )  # fmt: skip
    cuda_support.native.qconv2d(
        *cuda_support.place(x), x.shape, kernel, stride, x.data_ptr(), x.stride(), 0 if second is None else second.data_ptr(),
        second_channels, x.stride() if second is None else second.stride(), 0 if border is None else border.data_ptr(),
        fragments.tiles.data_ptr(), (columns, fragments.depth, bits), epilogue,
    )  # fmt: skip
    return y


choose = Choice(
    OP,
    cuda=Implementation(_cuda_forward, refuse=_cuda_refuse),
    triton=Implementation(_triton_forward, refuse=triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(
    x: Tensor, second: Optional, residual: Optional, weight: Tensor, channels: Tensor, zero_point: Tensor, border: Optional,
    filtered: Optional, table: Optional, columns: int, depth: int, bits: int, kernel: int, stride: int, second_channels: int,
    out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float = 1.0, residual_zero_point: int = 0, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, second, residual, columns, depth, kernel, stride, second_channels, out_dtype, plain, residual_scale)
    return choose(backend, x, depth, bits, columns).forward(
        x, second, residual, weight, channels, zero_point, border, filtered, table, columns, depth, bits, kernel, stride,
        second_channels, out_dtype, activation, plain, residual_scale, residual_zero_point,
    )  # fmt: skip


def _forward_fake(
    x: Tensor, second: Optional, residual: Optional, weight: Tensor, channels: Tensor, zero_point: Tensor, border: Optional,
    filtered: Optional, table: Optional, columns: int, depth: int, bits: int, kernel: int, stride: int, second_channels: int,
    out_dtype: torch.dtype, activation: str, plain: bool, residual_scale: float = 1.0, residual_zero_point: int = 0, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, second, residual, columns, depth, kernel, stride, second_channels, out_dtype, plain, residual_scale)
    return _empty(x, columns, stride, out_dtype)


_op = register(
    OP,
    "(Tensor x, Tensor? second, Tensor? residual, Tensor weight, Tensor channels, Tensor zero_point, Tensor? border, Tensor? filtered,"
    " Tensor? table, int columns, int depth, int bits, int kernel, int stride, int second_channels, ScalarType out_dtype, str activation,"
    " bool plain, float residual_scale=1.0, int residual_zero_point=0, *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
    _check_prepared,
)
_call = direct(_op, _forward, tensors=9)
