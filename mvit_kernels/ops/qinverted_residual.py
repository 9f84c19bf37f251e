"""Three integer layers in a row, an inverted residual (MobileNetV2, arXiv 1801.04381): schema, checks, fake, backends, and what is prepared
once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from . import checks, cuda_support
from .backend import Choice, Implementation, refuse_off_cpu
from .inverted_residual import one_launch_pays
from .library import dense, direct, empty_in_format, out_size, register
from .pack_weight import check_packed, unpack_bytes
from .packing import packed
from .placed import Placed
from .qchannels import check_channels
from .qconv2d import QConv2d, check_pointwise
from .qconv2d import choose as choose_qconv2d
from .qcurve import step_curve
from .qdepthwise_conv2d import BLOCK, BLOCK_BYTES, QDepthwiseConv2d
from .qdepthwise_conv2d import choose as choose_qdepthwise_conv2d
from .qfragments import neighbour_order, pack_taps, tiles
from .qgemm import check_residual, cuda_epilogue, triton_refuse

OP = "qinverted_residual"
# Bytes a second of three launches, of which one takes as long for 32 channels of bytes as of 16 bits: on an H200 (benchmarks/results/gpu)
# three took 0.73 to 0.98 of one, for the inverted residuals of mobilevitv2_100 with 128 images. With one image on an H100, four of them
# took 9 to 15 us in three, as they go by this rule, and the first, with 64 hidden channels, 14 us in one, about what three would.
MAP_RATE = 1.8e12
Tensor = torch.Tensor
Optional = torch.Tensor | None


class QInvertedResidual:
    """An inverted residual whose quantization is computed: call it with x (B, C, H, W) uint8, and a residual if reduce takes one."""

    def __init__(self, expand: QConv2d, depthwise: QDepthwiseConv2d, reduce: QConv2d, backend: str | None) -> None:
        self.expand, self.depthwise, self.reduce, self.backend = expand, depthwise, reduce, backend
        self._placed = Placed(
            expand.channels, expand.table, depthwise.weight, depthwise.zero_point, depthwise.blocks, depthwise.channels, depthwise.table,
            reduce.channels, reduce.table,
        )  # fmt: skip
        first, middle = expand.settings, depthwise.settings
        forms = ((each.weight.columns, each.weight.depth, each.weight.bits) for each in (expand, reduce))
        self._settings = (
            *forms, depthwise.stride, depthwise.narrow, first.activation, first.plain, middle.activation, middle.plain, *reduce.settings,
        )  # fmt: skip

    def __call__(self, x: Tensor, residual: Optional = None) -> Tensor:
        """y (B, N, ceil(H / stride), ceil(W / stride)), in channels_last memory. What was prepared is copied to the device of x by the
        first call there."""
        first, last = (each.weight.on(x.device) for each in (self.expand, self.reduce))
        channels, table, *middle, reduce_channels, reduce_table = self._placed.on(x.device)
        return _call(
            x, residual, first, channels, table, *middle, last, reduce_channels, reduce_table, *self._settings, backend=self.backend
        )

    def pays(self, x: Tensor) -> bool:
        """Whether a call with x is faster than the three layers one after another: on a GPU one launch is, of many or large maps, by the
        rule of 16-bit maps (`inverted_residual`), whose tiles these are."""
        if not x.is_cuda:
            return True
        columns, stride = self.reduce.weight.columns, self.depthwise.stride
        if cuda_support.refuse(x) is not None or _padding(self.depthwise.zero_point) is None:
            return False
        if not _is_one_launch(x, columns, stride, self.expand.table, self.depthwise.table):
            return False
        return one_launch_pays(x, self.expand.weight.columns, columns, stride, MAP_RATE)


def prepare_qinverted_residual(
    expand: QConv2d, depthwise: QDepthwiseConv2d, reduce: QConv2d, *, backend: str | None = None
) -> QInvertedResidual:
    """reduce(depthwise(expand(x)), residual), bit for bit; on a GPU in one launch, in which what lies between the layers stays on the
    multiprocessors, where both of the first two end in a curve (`table` of `prepare_qconv2d`) that can be looked up, as nearly all can,
    a_zero_point of depthwise is one byte, and reduce has up to 128 channels, with stride 2 up to 256.

    Args:
        expand, reduce: 1x1 convolutions of stride 1 and one input, of `prepare_qconv2d`; expand to uint8.
        depthwise: of `prepare_qdepthwise_conv2d`, to uint8.
        backend: None for automatic choice, or the name of one.

    Raises:
        TypeError, ValueError: other layers, or layers that do not fit each other.

    Source: MobileNetV2, arXiv 1801.04381, section 3.3 and figure 3.
    """
    checks.layers(OP, expand=(expand, QConv2d), depthwise=(depthwise, QDepthwiseConv2d), reduce=(reduce, QConv2d))
    checks.backend(OP, backend)
    for name, layer in (("expand", expand), ("reduce", reduce)):
        check_pointwise(OP, name, layer)
    for name, dtype in (("expand", expand.settings.out_dtype), ("depthwise", depthwise.settings.out_dtype)):
        checks.layer_gives(OP, name, dtype, torch.uint8)
    hidden = depthwise.weight.shape[0]
    if expand.weight.columns != hidden or reduce.weight.depth != hidden:
        got = f"{expand.weight.columns}, {hidden} and {reduce.weight.depth}"
        raise ValueError(f"{OP}: depthwise: expected as many channels as expand gives and reduce takes, got {got}")
    return QInvertedResidual(expand, depthwise, reduce, backend)


# --- checks ---


def _empty(x: Tensor, columns: int, stride: int, dtype: torch.dtype) -> Tensor:
    return empty_in_format(x, out_size(x, columns, stride), channels_last=True, dtype=dtype)


def _check_prepared(
    x: Tensor, residual: Optional, expand_weight: Tensor, expand_channels: Tensor, expand_table: Optional, filter_weight: Tensor,
    zero_point: Tensor, blocks: Tensor, filter_channels: Tensor, filter_table: Optional, reduce_weight: Tensor, reduce_channels: Tensor,
    reduce_table: Optional, expand_form: list[int], reduce_form: list[int], stride: int, narrow: bool, expand_activation: str,
    expand_plain: bool, filter_activation: str, filter_plain: bool, out_dtype: torch.dtype, activation: str, *_: object, **__: object,
) -> None:  # fmt: skip
    checks.stride(OP, stride)
    for name, form in (("expand_form", expand_form), ("reduce_form", reduce_form)):
        if len(form) != 3:
            raise ValueError(f"{OP}: {name}: expected columns, depth and bits, got {form}")
    hidden, device = expand_form[0], x.device
    if reduce_form[1] != hidden:
        raise ValueError(f"{OP}: reduce_form: expected a depth of {hidden}, got {reduce_form[1]}")
    for name, weight, (columns, depth, bits) in (("expand", expand_weight, expand_form), ("reduce", reduce_weight, reduce_form)):
        check_packed(f"{OP}: {name}", weight, columns, depth, bits, device)
    checks.prepared(OP, "filter_weight", filter_weight, torch.int8, (hidden, 1, 3, 3), device)
    checks.prepared(OP, "zero_point", zero_point, torch.int32, (hidden,), device)
    checks.prepared(OP, "blocks", blocks, torch.uint8, (-(-hidden // BLOCK), BLOCK_BYTES), device)
    check_channels(f"{OP}: expand", expand_channels, expand_table, hidden, torch.uint8, expand_activation, device)
    check_channels(f"{OP}: filter", filter_channels, filter_table, hidden, torch.uint8, filter_activation, device)
    check_channels(f"{OP}: reduce", reduce_channels, reduce_table, reduce_form[0], out_dtype, activation, device)


def _check(
    x: Tensor, residual: Optional, expand_form: list[int], reduce_form: list[int], stride: int, out_dtype: torch.dtype, plain: bool,
    residual_scale: float,
) -> None:  # fmt: skip
    checks.image(OP, "x", x, (torch.uint8,))
    if x.shape[1] != expand_form[1]:
        raise ValueError(f"{OP}: x: expected {expand_form[1]} channels, got shape {tuple(x.shape)}")
    if residual is not None:
        check_residual(OP, residual, out_size(x, reduce_form[0], stride), out_dtype, plain, residual_scale, x.device)


# --- backends ---


def _one_by_one(backend: str) -> Callable[..., Tensor]:
    """The three layers as the backend has them, one after another."""
    pointwise, depthwise = choose_qconv2d.implementations[backend].forward, choose_qdepthwise_conv2d.implementations[backend].forward

    def forward(
        x: Tensor, residual: Optional, expand_weight: Tensor, expand_channels: Tensor, expand_table: Optional, filter_weight: Tensor,
        zero_point: Tensor, blocks: Tensor, filter_channels: Tensor, filter_table: Optional, reduce_weight: Tensor,
        reduce_channels: Tensor, reduce_table: Optional, expand_form: list[int], reduce_form: list[int], stride: int, narrow: bool,
        expand_activation: str, expand_plain: bool, filter_activation: str, filter_plain: bool, *settings: Any,
    ) -> Tensor:  # fmt: skip
        def product(x: Tensor, residual: Optional, weight: Tensor, channels: Tensor, table: Optional, form: list[int], *how: Any) -> Tensor:
            unused = zero_point.new_zeros(form[1])  # zero-points: nothing is padded
            return pointwise(x, None, residual, weight, channels, unused, None, None, table, *form, 1, 1, 0, *how)

        wide = product(
            x, None, expand_weight, expand_channels, expand_table, expand_form, torch.uint8, expand_activation, expand_plain, 1.0, 0
        )
        filtered = depthwise(
            wide, filter_weight, zero_point, blocks, filter_channels, None, filter_table, stride, narrow, torch.uint8, filter_activation,
            filter_plain, 1.0, 0,
        )  # fmt: skip
        return product(filtered, residual, reduce_weight, reduce_channels, reduce_table, reduce_form, *settings)

    return forward


_SLICE, _TILE, _DEPTH = 64, 16, 32  # of csrc/cuda/ops/qinverted_residual.h: hidden channels at once, columns and depth of a tile


def _cuda_refuse(x: Tensor, expand_form: list[int], reduce_form: list[int]) -> str | None:
    if (reason := cuda_support.refuse(x)) is not None:
        return reason
    return cuda_support.refuse_deep_int6(*expand_form[1:]) or cuda_support.refuse_deep_int6(*reduce_form[1:])


def _is_one_launch(x: Tensor, columns: int, stride: int, *tables: Optional) -> bool:
    if any(table is None or table.dtype != torch.int16 or packed(step_curve, table).entries == 0 for table in tables):
        return False
    needed = cuda_support.native.qinverted_residual_shared(x.shape[1], columns, stride)
    return needed > 0 and cuda_support.refuse_shared(x, needed) is None


def _padding(zero_point: Tensor) -> int | None:
    """What the hidden map is padded with, the byte that stands for 0 in all channels; None where it is no byte, or not one of all."""
    low, high = (int(end) for end in zero_point.aminmax()) if zero_point.numel() else (0, 0)
    return low if low == high and 0 <= low <= 255 else None


class _Slices(NamedTuple):
    slices: Tensor
    padding: int | None


@dataclass(frozen=True)
class _PackSlices:
    """Slices of 64 hidden channels: csrc/cuda/ops/qinverted_residual.h."""

    expand_form: tuple[int, ...]
    reduce_form: tuple[int, ...]

    def __call__(
        self, expand_weight: Tensor, expand_channels: Tensor, filter_weight: Tensor, zero_point: Tensor, filter_channels: Tensor,
        reduce_weight: Tensor,
    ) -> _Slices:  # fmt: skip
        hidden, columns = self.expand_form[0], self.reduce_form[0]
        slices = -(-hidden // _SLICE)
        expand = tiles(neighbour_order(unpack_bytes(expand_weight.cpu(), *self.expand_form)), 8, (_SLICE, _DEPTH))
        reduce = tiles(neighbour_order(unpack_bytes(reduce_weight.cpu(), *self.reduce_form)), 8, (_TILE, _SLICE))
        taps, border = (each.cpu() for each in pack_taps(filter_weight, zero_point, filter_channels))
        rows = (*taps.view(torch.int32).squeeze(2), border[0], filter_channels.cpu()[1], *expand_channels.cpu()[:2])
        numbers = F.pad(torch.stack([row[:hidden] for row in rows]), (0, -hidden % _SLICE)).unflatten(1, (slices, _SLICE))
        reduce = reduce.unflatten(0, (-(-columns // _TILE), slices, -1)).transpose(0, 1)
        parts = numbers.transpose(0, 1).contiguous().view(torch.uint8), expand, reduce
        joined = torch.cat([part.reshape(slices, -1) for part in parts], dim=1)
        return _Slices(joined.to(expand_weight.device), _padding(zero_point.cpu()))


_by_cuda_kernels = _one_by_one("cuda")


def _cuda_forward(
    x: Tensor, residual: Optional, expand_weight: Tensor, expand_channels: Tensor, expand_table: Optional, filter_weight: Tensor,
    zero_point: Tensor, blocks: Tensor, filter_channels: Tensor, filter_table: Optional, reduce_weight: Tensor, reduce_channels: Tensor,
    reduce_table: Optional, expand_form: list[int], reduce_form: list[int], stride: int, narrow: bool, expand_activation: str,
    expand_plain: bool, filter_activation: str, filter_plain: bool, out_dtype: torch.dtype, activation: str, plain: bool,
    residual_scale: float, residual_zero_point: int,
) -> Tensor:  # fmt: skip
    columns = reduce_form[0]
    weights: _Slices | None = None
    if _is_one_launch(x, columns, stride, expand_table, filter_table):
        weights = packed(
            _PackSlices(tuple(expand_form), tuple(reduce_form)), expand_weight, expand_channels, filter_weight, zero_point,
            filter_channels, reduce_weight,
        )  # fmt: skip
    if weights is None or weights.padding is None:
        return _by_cuda_kernels(
            x, residual, expand_weight, expand_channels, expand_table, filter_weight, zero_point, blocks, filter_channels, filter_table,
            reduce_weight, reduce_channels, reduce_table, expand_form, reduce_form, stride, narrow, expand_activation, expand_plain,
            filter_activation, filter_plain, out_dtype, activation, plain, residual_scale, residual_zero_point,
        )  # fmt: skip
    x = dense(x, channels_last=True)
    if residual is not None:
        residual = dense(residual, channels_last=True)
    y = _empty(x, columns, stride, out_dtype)
    epilogue = cuda_epilogue(
        OP, reduce_channels, out_dtype, plain, activation, reduce_table, residual, columns, residual_scale, residual_zero_point, y, columns
    )  # fmt: skip
    curves = [packed(step_curve, table).numbers for table in (expand_table, filter_table)]
    cuda_support.native.qinverted_residual(
        *cuda_support.place(x), x.shape, expand_form[0], columns, stride, weights.padding, x.data_ptr(), weights.slices.data_ptr(),
        *(curve.data_ptr() for curve in curves), epilogue,
    )  # fmt: skip
    return y


def _triton_refuse(x: Tensor, expand_form: list[int], reduce_form: list[int]) -> str | None:
    return triton_refuse(x, *expand_form[1:]) or triton_refuse(x, *reduce_form[1:])


choose = Choice(
    OP,
    cuda=Implementation(_cuda_forward, refuse=_cuda_refuse),
    triton=Implementation(_one_by_one("triton"), refuse=_triton_refuse),
    cpu=Implementation(_one_by_one("cpu"), refuse=refuse_off_cpu),
    reference=Implementation(_one_by_one("reference")),
)


# --- registration ---


def _forward(
    x: Tensor, residual: Optional, expand_weight: Tensor, expand_channels: Tensor, expand_table: Optional, filter_weight: Tensor,
    zero_point: Tensor, blocks: Tensor, filter_channels: Tensor, filter_table: Optional, reduce_weight: Tensor, reduce_channels: Tensor,
    reduce_table: Optional, expand_form: list[int], reduce_form: list[int], stride: int, narrow: bool, expand_activation: str,
    expand_plain: bool, filter_activation: str, filter_plain: bool, out_dtype: torch.dtype, activation: str, plain: bool,
    residual_scale: float = 1.0, residual_zero_point: int = 0, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, residual, expand_form, reduce_form, stride, out_dtype, plain, residual_scale)
    return choose(backend, x, expand_form, reduce_form).forward(
        x, residual, expand_weight, expand_channels, expand_table, filter_weight, zero_point, blocks, filter_channels, filter_table,
        reduce_weight, reduce_channels, reduce_table, expand_form, reduce_form, stride, narrow, expand_activation, expand_plain,
        filter_activation, filter_plain, out_dtype, activation, plain, residual_scale, residual_zero_point,
    )  # fmt: skip


def _forward_fake(
    x: Tensor, residual: Optional, expand_weight: Tensor, expand_channels: Tensor, expand_table: Optional, filter_weight: Tensor,
    zero_point: Tensor, blocks: Tensor, filter_channels: Tensor, filter_table: Optional, reduce_weight: Tensor, reduce_channels: Tensor,
    reduce_table: Optional, expand_form: list[int], reduce_form: list[int], stride: int, narrow: bool, expand_activation: str,
    expand_plain: bool, filter_activation: str, filter_plain: bool, out_dtype: torch.dtype, activation: str, plain: bool,
    residual_scale: float = 1.0, residual_zero_point: int = 0, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, residual, expand_form, reduce_form, stride, out_dtype, plain, residual_scale)
    return _empty(x, reduce_form[0], stride, out_dtype)


_op = register(
    OP,
    "(Tensor x, Tensor? residual, Tensor expand_weight, Tensor expand_channels, Tensor? expand_table, Tensor filter_weight,"
    " Tensor zero_point, Tensor blocks, Tensor filter_channels, Tensor? filter_table, Tensor reduce_weight, Tensor reduce_channels,"
    " Tensor? reduce_table, int[] expand_form, int[] reduce_form, int stride, bool narrow, str expand_activation, bool expand_plain,"
    " str filter_activation, bool filter_plain, ScalarType out_dtype, str activation, bool plain, float residual_scale=1.0,"
    " int residual_zero_point=0, *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
    _check_prepared,
)
_call = direct(_op, _forward, tensors=13)
