"""Torch's layers, in evaluation, as nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .builder import Builder, Named, is_map, number, origin
from .view_ops import pair, shuffled
from .views import Value, View, whole

Tensor = torch.Tensor


def _conv2d(build: Builder, named: Named, path: str) -> Any:
    x, weight, groups = named["input"], named["weight"], named["groups"]
    if not isinstance(x, View) or not isinstance(weight, Tensor):
        return None
    kernel, stride, padding = list(weight.shape[2:]), pair(named["stride"]), named["padding"]
    same = [k // 2 for k in kernel]
    padding = same if padding == "same" and stride == [1, 1] else [0, 0] if padding == "valid" else padding
    if kernel not in ([1, 1], [3, 3]) or stride not in ([1, 1], [2, 2]) or pair(padding) != same or pair(named["dilation"]) != [1, 1]:
        return None
    name, scales = origin(named, "weight", path), named["_scales"].get("weight")
    depthwise = kernel == [3, 3] and x.is_map and groups == x.size[0]
    if groups > 1 and not depthwise:
        if kernel != [1, 1] or scales is not None:
            return None
        weight, groups = _of_all(weight, groups), 1
    if depthwise:
        return build.map(build.depthwise(build.repeated(x.name, weight), weight, named["bias"], stride[0], name, scales))
    order = shuffled(x) if kernel == [1, 1] and scales is None else None
    if order is not None:  # columns instead
        x, weight = build.map(x.name), weight[:, torch.tensor(order).argsort()]
    if kernel == stride == [1, 1] and len(x.dims) == 4 and x.channel == 1 and len(x.size) == 3:
        return build.product(x, weight, named["bias"], name, scales)  # of pixels in any order
    return build.map(build.conv2d(x.name, weight, named["bias"], stride[0], name, scales)) if x.is_map else None


def _of_all(weight: Tensor, groups: int) -> Tensor:
    """The matrix of a 1x1 convolution in groups: zeros between them. Kernels for few channels would not be faster."""
    parts = torch.block_diag(*weight.flatten(1).chunk(groups))
    return parts.reshape(*parts.shape, 1, 1)


def _activation(function: str) -> Callable[..., Any]:
    def rule(build: Builder, named: Named, path: str) -> Any:
        x = named["self"]
        if not isinstance(x, View) or not x.whole or named.get("approximate", "none") != "none":
            return None
        return x.on(build.activate(x.name, function))

    return rule


def _clip(build: Builder, named: Named, path: str) -> Any:
    """relu or relu6, in another way."""
    low, high = named.get("min", named.get("min_val")), named.get("max", named.get("max_val"))
    function = {(0, None): "relu", (0, 6): "relu6"}.get((low, high))
    return None if function is None else _activation(function)(build, named, path)


def _add(build: Builder, named: Named, path: str) -> Any:
    """Of two alike, or of what is the same for every image: a term, one for each channel, a position embedding."""
    a, b = named["self"], named["other"]
    if named.get("alpha", 1) != 1:
        return None
    if not isinstance(a, View):
        a, b = b, a
    shift = _of_channels(a, b)
    if shift is not None:
        return build.affine(a, torch.ones_like(shift), shift, f"{a.name}.shift")
    if isinstance(a, View) and isinstance(b, Tensor) and b.is_floating_point():
        b = build.constant_like(a, b, f"{a.name}.term")
    return a.on(build.plus(a.name, b.name)) if isinstance(a, View) and a.alike(b) else None


def _subtract(build: Builder, named: Named, path: str) -> Any:
    """Of a term."""
    if not isinstance(named["self"], View) or isinstance(named["other"], Value):
        return None
    return _add(build, {**named, "other": -named["other"]}, path)


def _cat(build: Builder, named: Named, path: str) -> Any:
    """Of channels."""
    first, *others = named["tensors"]
    if not isinstance(first, View) or first.channel is None or named["dim"] % len(first.dims) != first.channel:
        return None
    for each in others:
        if not isinstance(each, View) or not first.on(each.name, (each.size[0], *first.size[1:])).alike(each):
            return None
    y = first
    for each in others:
        both = build.cat(y.name, each.name)
        y = y.on(both, build.size(both))
    return y


def _mean(build: Builder, named: Named, path: str) -> Any:
    """Of all pixels."""
    x = named["self"]
    if not isinstance(x, View) or len(x.size) != 3 or not x.whole or named["dtype"] is not None:
        return None
    pooled = {each % len(x.dims) for each in named["dim"] or range(len(x.dims))}
    if any((i in pooled) != (factor.axis in "hw") for i, dim in enumerate(x.dims) for factor in dim):
        return None
    left = [() if i in pooled else dim for i, dim in enumerate(x.dims) if i not in pooled or named["keepdim"]]
    return View(build.pool(x.name), x.size[:1], tuple(left))


def _adaptive_avg_pool(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    if not is_map(x) or list(named["output_size"]) != [1, 1]:
        return None
    return whole(build.pool(x.name), x.size[:1], "b,c,1,1")


def _avg_pool(build: Builder, named: Named, path: str) -> Any:
    """Of all pixels; or of 1, 2x2 or 3x3 of them, which filters of a depthwise convolution are, one for all channels."""
    x, kernel, padding = named["self"], pair(named["kernel_size"]), pair(named["padding"])
    stride = pair(named["stride"] or kernel)
    if not is_map(x) or named["ceil_mode"] or named["divisor_override"] is not None:
        return None
    _, height, width = x.size
    if kernel == [height, width] and padding == [0, 0]:
        return whole(build.pool(x.name), x.size[:1], "b,c,1,1")
    weight = torch.zeros(3, 3)
    if kernel == [1, 1] and padding == [0, 0] and stride == [2, 2]:
        weight[1, 1] = 1.0
    elif kernel == stride == [2, 2] and padding == [0, 0] and height % 2 == width % 2 == 0:
        weight[1:, 1:] = 0.25
    elif kernel == [3, 3] and padding == [1, 1] and stride in ([1, 1], [2, 2]) and named["count_include_pad"]:
        weight[:] = 1 / 9
    else:
        return None
    return build.map(build.depthwise(x.name, weight.expand(x.size[0], 1, 3, 3).contiguous(), None, stride[0], f"{x.name}.avg_pool"))


def _batch_norm(build: Builder, named: Named, path: str) -> Any:
    """In evaluation: a factor and a term for each channel, in float64 until they meet other weights."""
    x = named["input"]
    if not isinstance(x, View) or not x.whole or x.channel != 1 or named["training"] or named["running_mean"] is None:
        return None
    mean, variance = named["running_mean"].double(), named["running_var"].double()
    scale = torch.rsqrt(variance + named["eps"])
    if named["weight"] is not None:
        scale = scale * named["weight"].double()
    shift = -mean * scale if named["bias"] is None else named["bias"].double() - mean * scale
    return build.affine(x, scale, shift, origin(named, "weight", origin(named, "running_mean", path)))


def _factor(build: Builder, named: Named, path: str) -> Any:
    """A factor, or one for each channel (layer scale), from either side; or a divisor."""
    if not isinstance(named["self"], View):
        named = {**named, "self": named["other"], "other": named["self"], "_origin": {"other": named["_origin"].get("self")}}
    x = named["self"]
    scale = _of_channels(x, named["other"])
    return None if scale is None else build.affine(x, scale, torch.zeros_like(scale), origin(named, "other", f"{x.name}.scale"))


def _of_channels(x: Any, value: Any) -> Tensor | None:
    """(C,) float64, where a value is the same for all pixels of each image."""
    if not isinstance(x, View) or not x.whole:
        return None
    channels, one = x.size[0], number(value)
    if one is not None:
        return torch.full((channels,), one, dtype=torch.float64)
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim > len(x.dims):  # the result has the dimensions of x
        return None
    sizes = [1] * (len(x.dims) - value.ndim) + list(value.shape)
    if any(size != (channels if i == x.channel else 1) for i, size in enumerate(sizes)):
        return None
    return value.double().reshape(-1).expand(channels)


def _divide(build: Builder, named: Named, path: str) -> Any:
    divisor = named["other"]
    if not isinstance(named["self"], View) or isinstance(divisor, Value):
        return None
    return _factor(build, {**named, "other": 1.0 / divisor}, path) if isinstance(divisor, Tensor) or divisor else None


def _upsample(build: Builder, named: Named, path: str) -> Any:
    x, size = named["input"], named["_size"]
    if not is_map(x) or len(size) != 3 or -1 in size:
        return None
    factors = named["scale_factors"]  # which torch looks between pixels by, where they are given: the same if they divide evenly
    if factors is not None and [side * factor for side, factor in zip(x.size[1:], factors, strict=True)] != list(size[1:]):
        return None
    return build.map(build.add("resize", (x.name,), size, f"{x.name}.resize", {"align_corners": named["align_corners"]}))


def layer_norm(build: Builder, named: Named, path: str) -> Any:
    """Ours and torch's: over the last dimension."""
    x = named["x"] if "x" in named else named["input"]
    if not isinstance(x, View) or len(x.size) != 3 or not x.whole or x.channel is None or x.channel != len(x.dims) - 1:
        return None
    if list(named.get("normalized_shape", x.size[:1])) != [x.size[0]]:
        return None
    return x.on(build.norm("layer_norm", x.name, named["weight"], named["bias"], named["eps"], origin(named, "weight", path)))


def group_norm(build: Builder, named: Named, path: str) -> Any:
    """Ours and torch's: one group, pixels in any order."""
    x = named["x"] if "x" in named else named["input"]
    if not isinstance(x, View) or len(x.size) != 3 or not x.whole or x.channel != 1 or named.get("num_groups", 1) != 1:
        return None
    if [factor.axis for factor in x.dims[0]] != ["b"]:
        return None
    return x.on(build.norm("group_norm", x.name, named["weight"], named["bias"], named["eps"], origin(named, "weight", path)))


def _linear(build: Builder, named: Named, path: str) -> Any:
    x, weight = named["input"], named["weight"]
    if not isinstance(x, View) or not isinstance(weight, Tensor) or weight.ndim != 2 or x.channel is None or x.channel != len(x.dims) - 1:
        return None
    return build.product(x, weight, named["bias"], origin(named, "weight", path), named["_scales"].get("weight"))


def _dropout(build: Builder, named: Named, path: str) -> Any:
    return None if named["train"] else named["input"]


_aten = torch.ops.aten
RULES: dict[Any, Callable[[Builder, Named, str], Any]] = {
    _aten.dropout.default: _dropout,
    _aten.batch_norm.default: _batch_norm,
    _aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    _aten.avg_pool2d.default: _avg_pool,
    _aten.upsample_bilinear2d.vec: _upsample,
    _aten.conv2d.default: _conv2d,
    _aten.conv2d.padding: _conv2d,
    _aten.silu.default: _activation("silu"),
    _aten.relu.default: _activation("relu"),
    _aten.gelu.default: _activation("gelu"),
    _aten.relu6.default: _activation("relu6"),
    _aten.clamp.default: _clip,
    _aten.clamp_min.default: _clip,
    _aten.hardtanh.default: _clip,
    _aten.hardswish.default: _activation("hard_swish"),
    _aten.add.Tensor: _add,
    _aten.sub.Tensor: _subtract,
    _aten.mul.Tensor: _factor,
    _aten.div.Tensor: _divide,
    _aten.cat.default: _cat,
    _aten.mean.dim: _mean,
    _aten.linear.default: _linear,
    _aten.layer_norm.default: layer_norm,
    _aten.group_norm.default: group_norm,
}
