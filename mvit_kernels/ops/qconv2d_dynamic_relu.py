"""A 1x1 or a depthwise convolution of bytes, a dynamic ReLU of its floats, and bytes again in one pass: schema, checks, fake, backends,
and what is prepared once."""

from __future__ import annotations

from typing import Any

import torch

from mvit_kernels import reference
from mvit_kernels.reference.qgemm import to_byte

from . import checks, qchecks, triton_support
from .backend import Choice, Implementation, refuse_off_cpu
from .dynamic_relu import choose as choose_dynamic_relu
from .library import direct, empty_in_format, in_format, out_size, register
from .pack_weight import check_packed, unpack_bytes
from .packing import packed
from .placed import Placed
from .qchannels import check_channels, for_bytes, unpack_channels
from .qconv2d import QConv2d, check_pointwise
from .qconv2d import choose as choose_qconv2d
from .qdepthwise_conv2d import QDepthwiseConv2d, arrange
from .qdepthwise_conv2d import choose as choose_qdepthwise_conv2d
from .qgemm import TritonWeight, refuse_depth, triton_finish

OP = "qconv2d_dynamic_relu"
_products, _filters = triton_support.Kernels("qconv2d"), triton_support.Kernels("qdepthwise_conv2d")
Tensor = torch.Tensor
Optional = torch.Tensor | None


class QConv2dDynamicRelu:
    """A convolution and the quantization behind its dynamic ReLU, computed: call it with x (B, C, H, W) uint8 and u (B, 2 N) float32."""

    def __init__(
        self, layer: QConv2d | QDepthwiseConv2d, out_scale: float, out_zero_point: int, out_bits: int, backend: str | None
    ) -> None:
        self.layer, self.backend = layer, backend
        channels = for_bytes(layer.channels, out_scale, out_zero_point, out_bits)
        if isinstance(layer, QConv2d):
            self._form = layer.weight.columns, layer.weight.depth, layer.weight.bits
            self._placed = Placed(channels, layer.zero_point)
        else:
            self._form = layer.weight.shape[0], 9, 8
            self._placed = Placed(channels, layer.zero_point, layer.weight)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """y (B, N, ceil(H / stride), ceil(W / stride)) uint8, in channels_last memory. What was prepared is copied to the device of x by
        the first call there."""
        checks.all_tensors(OP, x=x, u=u)
        channels, zero_point, *weight = self._placed.on(x.device)
        if isinstance(self.layer, QConv2d):
            weight = [self.layer.weight.on(x.device)]
        y: Tensor = _call(x, u, *weight, channels, zero_point, *self._form, self.layer.stride, backend=self.backend)
        return y


def prepare_qconv2d_dynamic_relu(
    layer: QConv2d | QDepthwiseConv2d, *, out_scale: Any, out_zero_point: Any, out_bits: int = 8, backend: str | None = None
) -> QConv2dDynamicRelu:
    """quantize(dynamic_relu(layer(x), u), out_scale, out_zero_point), bit for bit; by Triton its floats are not in memory.

    Args:
        layer: to float32 without an activation: of `prepare_qconv2d`, 1x1 of stride 1 and one input, or of `prepare_qdepthwise_conv2d`.
        out_scale, out_zero_point, out_bits: a number each, as of `quantize`.
        backend: None for automatic choice, or the name of one.

    Raises:
        TypeError, ValueError: another layer, or wrong arguments.

    Source: DY-ReLU, arXiv 2003.10027, equation 3, without intercepts; Mobile-Former, arXiv 2108.05895.
    """
    checks.layers(OP, layer=(layer, QConv2d if isinstance(layer, QConv2d) else QDepthwiseConv2d))
    checks.backend(OP, backend)
    if isinstance(layer, QConv2d):
        check_pointwise(OP, "layer", layer)
    checks.layer_gives(OP, "layer", layer.settings.out_dtype, torch.float32)
    if layer.settings.activation != "none":
        raise ValueError(f"{OP}: layer: expected one without an activation, got {layer.settings.activation}")
    scale, bits = qchecks.scale(OP, "out_scale", out_scale), qchecks.bits(OP, "out_bits", out_bits)
    return QConv2dDynamicRelu(layer, scale, qchecks.zero_point(OP, "out_zero_point", out_zero_point, near=True), bits, backend)


# --- checks ---


def _is_depthwise(weight: Tensor) -> bool:
    return weight.ndim == 4


def _check_prepared(
    x: Tensor, u: Tensor, weight: Tensor, channels: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int, stride: int,
    **_: object,
) -> None:  # fmt: skip
    checks.stride(OP, stride)
    check_channels(OP, channels, None, columns, torch.uint8, "none", x.device)
    if _is_depthwise(weight):
        checks.prepared(OP, "weight", weight, torch.int8, (columns, 1, 3, 3), x.device)
    else:
        check_packed(OP, weight, columns, depth, bits, x.device)
    checks.prepared(OP, "zero_point", zero_point, torch.int32, (columns if _is_depthwise(weight) else depth,), x.device)


def _check(x: Tensor, u: Tensor, weight: Tensor, columns: int, depth: int) -> None:
    checks.image(OP, "x", x, (torch.uint8,))
    channels = x.shape[1]
    if columns % channels if _is_depthwise(weight) else channels != depth:
        expected = f"a number of channels that divides {columns}" if _is_depthwise(weight) else f"{depth} channels"
        raise ValueError(f"{OP}: x: expected {expected}, got shape {tuple(x.shape)}")
    checks.tensor(OP, "u", u, 2, (torch.float32,))
    if u.shape != (x.shape[0], 2 * columns) or u.device != x.device:
        raise ValueError(f"{OP}: u: expected shape {(x.shape[0], 2 * columns)} on {x.device}, got {tuple(u.shape)} on {u.device}")


# --- backends ---


def _cpu_forward(
    x: Tensor, u: Tensor, weight: Tensor, channels: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int, stride: int
) -> Tensor:  # fmt: skip
    """One after another: a plan has all of it in one step."""
    how = torch.float32, "none", True, 0.0, 0
    if _is_depthwise(weight):
        blocks = packed(arrange, weight, zero_point, channels)
        floats = choose_qdepthwise_conv2d.implementations["cpu"].forward(
            x, weight, zero_point, blocks, channels, None, None, stride, False, *how
        )  # fmt: skip
    else:
        floats = choose_qconv2d.implementations["cpu"].forward(
            x, None, None, weight, channels, zero_point, None, None, None, columns, depth, bits, 1, stride, 0, *how
        )  # fmt: skip
    return _bytes(choose_dynamic_relu.implementations["cpu"].forward(floats, u), channels, columns)


def _triton_refuse(x: Tensor, depth: int, bits: int) -> str | None:
    return refuse_depth(depth, bits) or triton_support.refuse_rows(x, (torch.uint8,))


def _triton_forward(
    x: Tensor, u: Tensor, weight: Tensor, channels: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int, stride: int
) -> Tensor:  # fmt: skip
    x = in_format(x, channels_last=True)
    y = empty_in_format(x, out_size(x, columns, stride), channels_last=True)
    finish = triton_finish(channels, torch.uint8, True, "none", None, None, 0.0, 0)._replace(u=u.contiguous())
    if _is_depthwise(weight):
        _filters.qdepthwise_conv2d(x, weight, zero_point, stride, finish, y)
    else:
        _products.qconv2d(x, None, packed(TritonWeight(columns, depth, bits), weight), finish, y, 1, stride, zero_point, None)
    return y


def _reference_forward(
    x: Tensor, u: Tensor, weight: Tensor, channels: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int, stride: int
) -> Tensor:  # fmt: skip
    per_channel = unpack_channels(channels, columns)
    how: dict[str, Any] = {"stride": stride, "plain": True, "activation": "none", "out_dtype": torch.float32}
    if _is_depthwise(weight):
        floats = reference.qdepthwise_conv2d(x.repeat_interleave(columns // x.shape[1], 1), weight, zero_point, per_channel, **how)
    else:
        floats = reference.qconv2d(x, unpack_bytes(weight, columns, depth, bits), zero_point, per_channel, kernel=1, **how)
    return _bytes(reference.dynamic_relu(floats, u), channels, columns)


def _bytes(floats: Tensor, channels: Tensor, columns: int) -> Tensor:
    per_channel = unpack_channels(channels, columns)
    return to_byte(floats.permute(0, 2, 3, 1) * per_channel.inverse, per_channel).contiguous().permute(0, 3, 1, 2)


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(
    x: Tensor, u: Tensor, weight: Tensor, channels: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int, stride: int, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, u, weight, columns, depth)
    return choose(backend, x, depth, bits).forward(x, u, weight, channels, zero_point, columns, depth, bits, stride)


def _forward_fake(
    x: Tensor, u: Tensor, weight: Tensor, channels: Tensor, zero_point: Tensor, columns: int, depth: int, bits: int, stride: int, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, u, weight, columns, depth)
    return empty_in_format(x, out_size(x, columns, stride), channels_last=True)


_op = register(
    OP,
    "(Tensor x, Tensor u, Tensor weight, Tensor channels, Tensor zero_point, int columns, int depth, int bits, int stride, *,"
    " str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
    _check_prepared,
)
_call = direct(_op, _forward, tensors=5)
