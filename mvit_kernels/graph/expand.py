"""What each op of an exported model is made of: rules from ops to nodes.

A value on its way through the graph is a view (`views.py`) of a map or a vector; rules turn views into each other without a node. What is
no view no rule touches: torch made it, and torch takes it. `attention.py` knows attention that is written in several ops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mvit_kernels.ops.attention import MOST_MIXED_HEADS

from .program import Node
from .views import IMAGES, Value, View, folded, unfolded, whole

Tensor = torch.Tensor
Named = Mapping[str, Any]


@dataclass(frozen=True)
class Quantized(Value):
    """The integers of `floats`, which a node of kind "fake_quantize" gives; bits, where only the op that made them says so."""

    floats: Value
    bits: int | None = None


class Floats(Value):
    """Of each image, but neither a map nor a vector: torch made it, and torch takes it."""


class Opaque(Value):
    """What torch made and only torch takes: no floats, no images in front, or several tensors."""


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each image of a map."""

    of: str


@dataclass(frozen=True)
class Known:
    """What a result is, for rules that know what it becomes; it is made by other rules, or by torch, all the same."""


class Builder:
    """Nodes in order, each with a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._names: dict[str, int] = {}
        self._made: dict[str, Node] = {}

    def add(
        self, kind: str, inputs: tuple[str, ...], size: tuple[int, ...], name: str, settings: Named | None = None,
        weights: Mapping[str, Tensor | None] | None = None,
    ) -> str:  # fmt: skip
        name = name or kind
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        if count:
            name = f"{name}#{count}"
        held = {key: value for key, value in (weights or {}).items() if value is not None}
        self.nodes.append(Node(name, kind, inputs, size, settings or {}, held))
        self._made[name] = self.nodes[-1]
        return name

    def size(self, name: str) -> tuple[int, ...]:
        return self._made[name].size

    def node(self, name: str) -> Node:
        return self._made[name]

    def plain(self, value: Any) -> str:
        """A node whose result is the value as torch has it."""
        if isinstance(value, Moments):
            raise ValueError(f"capture: moments of {value.of}: expected them at a product that normalises by them, got another use")
        if isinstance(value, Quantized):
            raise ValueError(f"capture: integers of {value.name}: expected them to be made floats again by the same scale, got another use")
        name: str = value.name
        if isinstance(value, View) and not value.whole:
            value = value.alone(self.channels(value))
            name = value.name
        for target, rest, size in value.calls() if isinstance(value, View) else ():
            settings = {"target": target, "arguments": ((("input", 0), *rest), {})}
            name = self.add("torch", (name,), size, f"{name}.{target._schema.name.rpartition('::')[2]}", settings)
        return name

    def channels(self, x: View) -> str:
        """A result of just those that a view has."""
        indices = torch.tensor(x.indices)
        settings = {"target": _aten.index_select.default, "arguments": ((("input", 0), 1, ("weight", "indices")), {})}
        return self.add("torch", (x.name,), (len(indices), *x.size[1:]), f"{x.name}.index_select", settings, {"indices": indices})

    def map(self, name: str) -> View:
        """(B, C, H, W) of a result."""
        return whole(name, self.size(name), "b,c,h,w")

    def tokens(self, name: str) -> View:
        """(B, H W, C) of a result."""
        return whole(name, self.size(name), "b,hw,c")

    def vector(self, name: str) -> View:
        """(B, C) of a result."""
        return whole(name, self.size(name), "b,c")

    # --- layers ---

    def conv2d(self, x: str, weight: Tensor, bias: Tensor | None, stride: int, name: str, scales: Tensor | None = None) -> str:
        weight = weight if weight.ndim == 4 else weight[:, :, None, None]
        _, height, width = self.size(x)
        size = (weight.shape[0], -(-height // stride), -(-width // stride))
        return self.add("conv2d", (x,), size, name, {"stride": stride}, {"weight": weight, "bias": bias, "weight_scale": scales})

    def depthwise(self, x: str, weight: Tensor, bias: Tensor | None, stride: int, name: str, scales: Tensor | None = None) -> str:
        channels, height, width = self.size(x)
        size = (channels, -(-height // stride), -(-width // stride))
        weights = {"weight": weight, "bias": bias, "weight_scale": scales}
        return self.add("depthwise_conv2d", (x,), size, name, {"stride": stride}, weights)

    def product(self, x: View, weight: Tensor, bias: Tensor | None, name: str, scales: Tensor | None = None) -> View | None:
        """A linear map of the channels, which are a dimension of x."""
        if x.channel is None or not x.whole:
            return None
        if len(x.size) == 3:
            y = self.conv2d(x.name, weight, bias, 1, name, scales)
        else:
            weights = {"weight": weight.flatten(1), "bias": bias, "weight_scale": scales}
            y = self.add("linear", (x.name,), weight.shape[:1], name, {}, weights)
        return x.on(y, self.size(y))

    def activate(self, x: str, function: str) -> str:
        return x if function == "none" else self.add("activation", (x,), self.size(x), f"{x}.{function}", {"function": function})

    def plus(self, a: str, b: str) -> str:
        return self.add("add", (a, b), self.size(a), f"{a}.add")

    def cat(self, a: str, b: str) -> str:
        (channels, *pixels), more = self.size(a), self.size(b)[0]
        return self.add("cat", (a, b), (channels + more, *pixels), f"{b}.cat")

    def pool(self, x: str) -> str:
        return self.add("avg_pool", (x,), self.size(x)[:1], f"{x}.avg_pool")

    def norm(self, kind: str, x: str, weight: Tensor | None, bias: Tensor | None, eps: float, name: str = "") -> str:
        return self.add(kind, (x,), self.size(x), name or f"{x}.{kind}", {"eps": eps}, {"weight": weight, "bias": bias})


def _origin(named: Named, argument: str, otherwise: str) -> str:
    return named["_origin"].get(argument) or otherwise


# --- our ops ---


def _conv2d(build: Builder, named: Named, path: str) -> Any:
    x, weight, second, residual = named["x"], named["weight"], named["second"], named["residual"]
    if not isinstance(x, View):
        return None
    name = _origin(named, "weight", path)
    y: View | None
    if x.is_map:
        y = build.map(build.conv2d(_beside(build, x.name, second), weight, named["bias"], named["stride"], name))
    elif second is None and residual is None and x.channel == 1 and weight.shape[2:].numel() == 1 and len(x.size) == 1:
        y = build.product(x, weight, named["bias"], name)  # of one pixel, pooled
    else:
        return None
    assert y is not None
    y = y.on(build.activate(y.name, named["activation"]))
    return y if residual is None else y.on(build.plus(y.name, residual.name))


def _beside(build: Builder, x: str, second: View | None) -> str:
    return x if second is None else build.cat(x, second.name)


def _depthwise(build: Builder, named: Named, path: str) -> Any:
    if not _is_map(named["x"]):
        return None
    x = _repeated(build, named["x"].name, named["weight"])
    y = build.depthwise(x, named["weight"], named["bias"], named["stride"], _origin(named, "weight", path))
    return build.map(build.activate(y, named["activation"]))


def _is_map(x: Any) -> bool:
    return isinstance(x, View) and x.is_map


def _repeated(build: Builder, x: str, weight: Tensor) -> str:
    """What depthwise filters meet: a channel for each."""
    channels, height, width = build.size(x)
    times = weight.shape[0] // channels
    return x if times == 1 else build.add("repeat", (x,), (weight.shape[0], height, width), f"{x}.repeat", {"times": times})


def _inverted_residual(build: Builder, named: Named, path: str) -> Any:
    if not _is_map(named["x"]):
        return None
    y = x = named["x"].name
    if named["expand_w"] is not None:
        y = build.conv2d(x, named["expand_w"], named["expand_b"], 1, _origin(named, "expand_w", path))
        y = build.activate(y, named["activation"])
    y = build.depthwise(y, named["depthwise_w"], named["depthwise_b"], named["stride"], _origin(named, "depthwise_w", path))
    y = build.activate(y, named["activation"])
    y = build.conv2d(y, named["reduce_w"], named["reduce_b"], 1, _origin(named, "reduce_w", path))
    return _with_moments(build, build.plus(y, x) if named["residual"] else y)


def _attention_block(build: Builder, named: Named, path: str) -> Any:
    if not _is_map(named["x"]) or named["patch_size"] is None:
        return None
    x = named["x"].name
    y = build.norm("group_norm", x, named["norm_w"], named["norm_b"], named["eps"], _origin(named, "norm_w", path))
    y = build.conv2d(y, named["qkv_w"], named["qkv_b"], 1, _origin(named, "qkv_w", path))
    channels, height, width = build.size(y)
    y = build.add("separable_attention", (y,), ((channels - 1) // 2, height, width), f"{y}.attention", {"patch": _patch(named)})
    y = build.conv2d(y, named["out_w"], named["out_b"], 1, _origin(named, "out_w", path))
    return _with_moments(build, build.plus(y, x))


def _feed_forward(build: Builder, named: Named, path: str) -> Any:
    if not _is_map(named["x"]):
        return None
    x = named["x"].name
    kind = "group_norm" if named["norm"] == "group" else "layer_norm"
    y = build.norm(kind, x, named["norm_w"], named["norm_b"], named["eps"], _origin(named, "norm_w", path))
    y = build.conv2d(y, named["fc1_w"], named["fc1_b"], 1, _origin(named, "fc1_w", path))
    y = build.activate(y, named["activation"])
    y = build.conv2d(y, named["fc2_w"], named["fc2_b"], 1, _origin(named, "fc2_w", path))
    return _with_moments(build, build.plus(y, x))


def _gemm(build: Builder, named: Named, path: str) -> Any:
    x, moments, second, residual = (named[name] for name in ("a", "moments", "second", "residual"))
    if not isinstance(x, View) or not x.whole or x.channel is None or x.channel != len(x.dims) - 1:
        return None
    if len(x.size) == 1 and (named["layer_norm"] or any(each is not None for each in (moments, second, residual))):
        return None
    if moments is not None and moments.of != x.name:
        return None
    if named["layer_norm"] or moments is not None:
        kind = "layer_norm" if named["layer_norm"] else "group_norm"
        x = x.on(build.norm(kind, x.name, None, None, named["eps"]))
    if second is not None:
        both = build.cat(x.name, second.name)
        x = x.on(both, build.size(both))
    y = build.product(x, named["weight"], named["bias"], _origin(named, "weight", path))
    assert y is not None
    y = y.on(build.activate(y.name, named["activation"]))
    if residual is not None:
        y = y.on(build.plus(y.name, residual.name))
    return y, Moments(y.name)


def _patch_attention(build: Builder, named: Named, path: str) -> Any:
    if not _is_map(named["qkv"]):
        return None
    qkv, heads = named["qkv"].name, named["heads"]
    channels, height, width = build.size(qkv)
    scale = named["scale"] if named["scale"] is not None else (channels // 3 // heads) ** -0.5
    settings = {"heads": heads, "patch": _patch(named), "scale": scale}
    return build.map(build.add("patch_attention", (qkv,), (channels // 3, height, width), f"{qkv}.attention", settings))


def _separable_attention(build: Builder, named: Named, path: str) -> Any:
    if not _is_map(named["qkv"]) or named["patch_size"] is None:
        return None
    qkv = named["qkv"].name
    channels, height, width = build.size(qkv)
    size = ((channels - 1) // 2, height, width)
    return build.map(build.add("separable_attention", (qkv,), size, f"{qkv}.attention", {"patch": _patch(named)}))


def _attention(build: Builder, named: Named, path: str) -> Any:
    inputs, heads, residual = [named[name] for name in ("q", "k", "v")], named["heads"], named["residual"]
    mixed = any(named[name] is not None for name in ("mix_scores", "mix_weights", "mix_bias"))
    if not all(isinstance(each, View) and each.is_tokens for each in (*inputs, *([] if residual is None else [residual]))):
        return None
    if mixed and heads > MOST_MIXED_HEADS:
        return None
    (channels, height, width), (_, *of_keys), (values, *_) = (each.size for each in inputs)
    scale = named["scale"] if named["scale"] is not None else (channels // heads) ** -0.5
    weights = {name: named[name] for name in ("bias", "mix_scores", "mix_weights", "mix_bias")}
    names = tuple(each.name for each in inputs)
    settings = {"heads": heads, "scale": scale, "depth": channels // heads, "keys": of_keys[0] * of_keys[1]}
    y = build.add("attention", names, (values, height, width), f"{names[0]}.attention", settings, weights)
    return build.tokens(build.activate(y if residual is None else build.plus(residual.name, y), named["activation"]))


def _pool_mixer(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not _is_map(x):
        return None
    name = _origin(named, "scale", path)
    return build.map(build.add("pool_mixer", (x.name,), x.size, name, {}, {"scale": named["scale"]}))


def _resize(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not _is_map(x):
        return None
    size, settings = (x.size[0], *named["output_size"]), {"align_corners": named["align_corners"]}
    return build.map(build.activate(build.add("resize", (x.name,), size, f"{x.name}.resize", settings), named["activation"]))


def _avg_pool(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not _is_map(x):
        return None
    y = x.name
    if named["moments"] is not None:
        if named["moments"].of != y:
            return None
        y = build.norm("group_norm", y, None, None, named["eps"])
    return build.vector(build.activate(build.pool(y), named["activation"]))


def _dynamic_relu(build: Builder, named: Named, path: str) -> Any:
    x, u = named["x"], named["u"]
    if not _is_map(x) or not isinstance(u, View) or not u.is_vector:
        return None
    return build.map(build.add("dynamic_relu", (x.name, u.name), x.size, f"{x.name}.dynamic_relu"))


def _hard_gate(build: Builder, named: Named, path: str) -> Any:
    x, u = named["x"], named["u"]
    if not isinstance(x, View) or not x.alike(u):
        return None
    return x.on(build.add("hard_gate", (x.name, u.name), x.size, f"{x.name}.hard_gate"))


def _with_moments(build: Builder, y: str) -> tuple[View, Moments]:
    return build.map(y), Moments(y)


def _patch(named: Named) -> tuple[int, int]:
    patch = list(named["patch_size"])
    return (patch[0], patch[-1])


# --- views ---


def _reshape(build: Builder, named: Named, path: str) -> Any:
    """Whatever gives the same elements in the same order."""
    x, shape = named["self"], named["_shape"]
    return x.reshape(shape) if isinstance(x, View) and shape is not None else None


def _squeeze(build: Builder, named: Named, path: str) -> Any:
    """Not of images: one is squeezed, more are not."""
    x, dims = named["self"], named.get("dim")
    if not isinstance(x, View):
        return None
    squeezed = range(len(x.dims)) if dims is None else [dims] if isinstance(dims, int) else dims
    return None if any(x.shape[each] == IMAGES for each in squeezed) else _reshape(build, named, path)


def _permute(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    return x.permute(each % len(x.dims) for each in named["dims"]) if isinstance(x, View) else None


def _transpose(build: Builder, named: Named, path: str) -> Any:
    x, (one, other) = named["self"], [named[name] for name in ("dim0", "dim1", "axis0", "axis1") if name in named] or (-2, -1)
    if not isinstance(x, View):
        return None
    order = list(range(len(x.dims)))
    order[one], order[other] = order[other], order[one]
    return x.permute(order)


def _movedim(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    if not isinstance(x, View):
        return None
    one, other = named["source"] % len(x.dims), named["destination"] % len(x.dims)
    order = [i for i in range(len(x.dims)) if i != one]
    return x.permute([*order[:other], one, *order[other:]])


def _unfold(build: Builder, named: Named, path: str) -> Any:
    """Windows side by side; of others torch makes copies."""
    x = named["self"]
    return x.windows(named["dimension"] % len(x.dims), named["size"]) if isinstance(x, View) and named["size"] == named["step"] else None


def _patch_of(named: Named) -> tuple[int, int] | None:
    """Of windows side by side, without borders."""
    kernel, stride, padding, dilation = (_pair(named[name]) for name in ("kernel_size", "stride", "padding", "dilation"))
    return (kernel[0], kernel[1]) if kernel == stride and padding == [0, 0] and dilation == [1, 1] else None


def _im2col(build: Builder, named: Named, path: str) -> Any:
    x, patch = named["self"], _patch_of(named)
    return unfolded(x, patch) if isinstance(x, View) and patch is not None else None


def _col2im(build: Builder, named: Named, path: str) -> Any:
    x, patch, size = named["self"], _patch_of(named), named["output_size"]
    return folded(x, (size[0], size[1]), patch) if isinstance(x, View) and patch is not None and len(size) == 2 else None


def _expand(build: Builder, named: Named, path: str) -> Any:
    """Tokens that are the same for every image, or as many as there are already."""
    x, shape = named["self"], named["_shape"]
    if isinstance(x, View):
        return x if x.shape == shape else None
    if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[0] != 1 or shape != (IMAGES, *x.shape[1:]):
        return None
    count, channels = x.shape[1:]
    value = x[0].T.reshape(channels, 1, count).contiguous()
    return build.tokens(build.add("constant", (), (channels, 1, count), _origin(named, "self", path or "constant"), {}, {"value": value}))


def _select(build: Builder, named: Named, path: str) -> Any:
    """One of the tokens, or some of the channels."""
    x, index = named["self"], named["index"]
    if not isinstance(x, View) or not isinstance(index, int):
        return None
    dim = named["dim"] % len(x.dims)
    index %= x.shape[dim]
    if x.is_tokens and dim == 1:
        return build.vector(build.add("pixel", (x.name,), x.size[:1], f"{x.name}.pixel{index}", {"index": index}))
    return x.select(dim, index)


def _slice(build: Builder, named: Named, path: str) -> Any:
    """All of it, or some of the channels."""
    x, start, end, step = (named[name] for name in ("self", "start", "end", "step"))
    if step == 1 and ((start in (None, 0) and end in (None, 2**63 - 1)) or (isinstance(x, View) and x.shape == named["_shape"])):
        return x
    if not isinstance(x, View) or step != 1 or not all(isinstance(each, (int, type(None))) for each in (start, end)):
        return None
    dim = named["dim"] % len(x.dims)
    start, stop, _ = slice(start, end).indices(x.shape[dim])
    return x.narrow(dim, start, stop - start) if stop > start else None


def _split(build: Builder, named: Named, path: str) -> Any:
    """Channels in several parts, of as many as are given, of so many each, or so many of them."""
    x = named["self"]
    if not isinstance(x, View):
        return None
    dim = named["dim"] % len(x.dims)
    total, sizes = x.shape[dim], named.get("split_sizes", named.get("split_size"))
    if "chunks" in named:
        sizes = -(-total // named["chunks"])
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    if not isinstance(sizes, list) or not all(isinstance(each, int) for each in sizes):  # so many images
        return None
    parts = tuple(x.narrow(dim, sum(sizes[:i]), size) if size else None for i, size in enumerate(sizes))
    return None if None in parts else parts


def _unbind(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    if not isinstance(x, View):
        return None
    dim = named["dim"] % len(x.dims)
    parts = tuple(x.select(dim, index) for index in range(x.shape[dim])) if x.shape[dim] <= x.channels else (None,)
    return None if None in parts else parts


def _to(build: Builder, named: Named, path: str) -> Any:
    """Programs are captured in float32."""
    return named["self"] if named["dtype"] == torch.float32 and isinstance(named["self"], View) else None


def _same(build: Builder, named: Named, path: str) -> Any:
    return named["self"] if "self" in named else named["input"]


# --- torch's ops ---


def _aten_conv2d(build: Builder, named: Named, path: str) -> Any:
    x, weight, groups = named["input"], named["weight"], named["groups"]
    if not isinstance(x, View) or not isinstance(weight, Tensor):
        return None
    kernel, stride, padding = list(weight.shape[2:]), _pair(named["stride"]), named["padding"]
    same = [k // 2 for k in kernel]
    padding = same if padding == "same" and stride == [1, 1] else [0, 0] if padding == "valid" else padding
    if kernel not in ([1, 1], [3, 3]) or stride not in ([1, 1], [2, 2]) or _pair(padding) != same or _pair(named["dilation"]) != [1, 1]:
        return None
    name, scales = _origin(named, "weight", path), named["_scales"].get("weight")
    if kernel == stride == [1, 1] and groups == 1 and len(x.dims) == 4 and x.channel == 1 and len(x.size) == 3:
        return build.product(x, weight, named["bias"], name, scales)  # of pixels in any order
    if not x.is_map:
        return None
    if groups == 1:
        return build.map(build.conv2d(x.name, weight, named["bias"], stride[0], name, scales))
    if groups == weight.shape[0] == x.size[0] and kernel == [3, 3]:
        return build.map(build.depthwise(x.name, weight, named["bias"], stride[0], name, scales))
    return None


def _pair(value: Any) -> list[int]:
    value = [value] if isinstance(value, int) else list(value)
    return value * 2 if len(value) == 1 else value


def _aten_activation(function: str) -> Callable[..., Any]:
    def rule(build: Builder, named: Named, path: str) -> Any:
        x = named["self"]
        if not isinstance(x, View) or not x.whole or named.get("approximate", "none") != "none":
            return None
        return x.on(build.activate(x.name, function))

    return rule


def _aten_add(build: Builder, named: Named, path: str) -> Any:
    a, b = named["self"], named["other"]
    if not isinstance(a, View) or not a.alike(b) or named.get("alpha", 1) != 1:
        return None
    return a.on(build.plus(a.name, b.name))


def _aten_cat(build: Builder, named: Named, path: str) -> Any:
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


def _aten_mean(build: Builder, named: Named, path: str) -> Any:
    """Of all pixels."""
    x = named["self"]
    if not isinstance(x, View) or len(x.size) != 3 or not x.whole or named["dtype"] is not None:
        return None
    pooled = {each % len(x.dims) for each in named["dim"] or range(len(x.dims))}
    if any((i in pooled) != (factor.axis in "hw") for i, dim in enumerate(x.dims) for factor in dim):
        return None
    left = [() if i in pooled else dim for i, dim in enumerate(x.dims) if i not in pooled or named["keepdim"]]
    return View(build.pool(x.name), x.size[:1], tuple(left))


def _aten_adaptive_avg_pool(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    if not _is_map(x) or list(named["output_size"]) != [1, 1]:
        return None
    return whole(build.pool(x.name), x.size[:1], "b,c,1,1")


def _aten_batch_norm(build: Builder, named: Named, path: str) -> Any:
    """In evaluation: a factor and a term for each channel, in float64 until they meet other weights."""
    x = named["input"]
    if not isinstance(x, View) or not x.whole or x.channel != 1 or named["training"] or named["running_mean"] is None:
        return None
    mean, variance = named["running_mean"].double(), named["running_var"].double()
    scale = torch.rsqrt(variance + named["eps"])
    if named["weight"] is not None:
        scale = scale * named["weight"].double()
    shift = -mean * scale if named["bias"] is None else named["bias"].double() - mean * scale
    name = _origin(named, "weight", _origin(named, "running_mean", path))
    return x.on(build.add("affine", (x.name,), x.size, name, {}, {"scale": scale, "shift": shift}))


def _aten_factor(build: Builder, named: Named, path: str) -> Any:
    """A factor, or one for each channel (layer scale); or a divisor, which is a number."""
    x, factor = named["self"], named["other"]
    if not isinstance(x, View) or not x.whole:
        return None
    channels, value = x.size[0], number(factor)
    if value is not None:
        scale = torch.full((channels,), value, dtype=torch.float64)
    elif isinstance(factor, Tensor) and factor.is_floating_point() and factor.ndim <= len(x.dims):  # not more dimensions than x
        sizes = [1] * (len(x.dims) - factor.ndim) + list(factor.shape)
        if any(size != (channels if i == x.channel else 1) for i, size in enumerate(sizes)):
            return None
        scale = factor.double().reshape(-1).expand(channels)
    else:
        return None
    name = _origin(named, "other", f"{x.name}.scale")
    return x.on(build.add("affine", (x.name,), x.size, name, {}, {"scale": scale, "shift": torch.zeros_like(scale)}))


def _aten_divide(build: Builder, named: Named, path: str) -> Any:
    divisor = number(named["other"])
    return _aten_factor(build, {**named, "other": 1.0 / divisor}, path) if divisor else None


def number(x: Any) -> float | None:
    """That by which a factor or a divisor is one."""
    if isinstance(x, Tensor) and x.ndim == 0 and x.is_floating_point():
        return float(x)
    return float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else None


def _aten_upsample(build: Builder, named: Named, path: str) -> Any:
    x, size = named["input"], named["_size"]
    if not _is_map(x) or len(size) != 3 or -1 in size:
        return None
    factors = named["scale_factors"]  # which torch looks between pixels by, where they are given: the same if they divide evenly
    if factors is not None and [side * factor for side, factor in zip(x.size[1:], factors, strict=True)] != list(size[1:]):
        return None
    return build.map(build.add("resize", (x.name,), size, f"{x.name}.resize", {"align_corners": named["align_corners"]}))


def _layer_norm(build: Builder, named: Named, path: str) -> Any:
    """Ours and torch's: over the last dimension."""
    x = named["x"] if "x" in named else named["input"]
    if not isinstance(x, View) or len(x.size) != 3 or not x.whole or x.channel is None or x.channel != len(x.dims) - 1:
        return None
    if list(named.get("normalized_shape", x.size[:1])) != [x.size[0]]:
        return None
    return x.on(build.norm("layer_norm", x.name, named["weight"], named["bias"], named["eps"], _origin(named, "weight", path)))


def _group_norm(build: Builder, named: Named, path: str) -> Any:
    """Ours and torch's: one group, pixels in any order."""
    x = named["x"] if "x" in named else named["input"]
    if not isinstance(x, View) or len(x.size) != 3 or not x.whole or x.channel != 1 or named.get("num_groups", 1) != 1:
        return None
    if [factor.axis for factor in x.dims[0]] != ["b"]:
        return None
    return x.on(build.norm("group_norm", x.name, named["weight"], named["bias"], named["eps"], _origin(named, "weight", path)))


def _aten_linear(build: Builder, named: Named, path: str) -> Any:
    x, weight = named["input"], named["weight"]
    if not isinstance(x, View) or not isinstance(weight, Tensor) or weight.ndim != 2 or x.channel is None or x.channel != len(x.dims) - 1:
        return None
    return build.product(x, weight, named["bias"], _origin(named, "weight", path), named["_scales"].get("weight"))


def _aten_dropout(build: Builder, named: Named, path: str) -> Any:
    return None if named["train"] else named["input"]


_ours, _aten = torch.ops.mvit_kernels, torch.ops.aten
RULES: dict[Any, Callable[[Builder, Named, str], Any]] = {
    _ours.conv2d.default: _conv2d,
    _ours.depthwise_conv2d.default: _depthwise,
    _ours.inverted_residual.default: _inverted_residual,
    _ours.separable_attention_block.default: _attention_block,
    _ours.feed_forward.default: _feed_forward,
    _ours.gemm.default: _gemm,
    _ours.patch_attention.default: _patch_attention,
    _ours.separable_attention.default: _separable_attention,
    _ours.attention.default: _attention,
    _ours.pool_mixer.default: _pool_mixer,
    _ours.avg_pool.default: _avg_pool,
    _ours.resize.default: _resize,
    _ours.dynamic_relu.default: _dynamic_relu,
    _ours.hard_gate.default: _hard_gate,
    _ours.layer_norm.default: _layer_norm,
    _ours.group_norm.default: _group_norm,
    _aten.reshape.default: _reshape,
    _aten.view.default: _reshape,
    _aten._unsafe_view.default: _reshape,
    _aten.flatten.using_ints: _reshape,
    _aten.unflatten.int: _reshape,
    _aten.squeeze.default: _squeeze,
    _aten.squeeze.dim: _squeeze,
    _aten.squeeze.dims: _squeeze,
    _aten.unsqueeze.default: _reshape,
    _aten.permute.default: _permute,
    _aten.transpose.int: _transpose,
    _aten.swapaxes.default: _transpose,
    _aten.swapdims.default: _transpose,
    _aten.mT.default: _transpose,
    _aten.movedim.int: _movedim,
    _aten.unfold.default: _unfold,
    _aten.im2col.default: _im2col,
    _aten.col2im.default: _col2im,
    _aten.expand.default: _expand,
    _aten.select.int: _select,
    _aten.slice.Tensor: _slice,
    _aten.split_with_sizes.default: _split,
    _aten.split.Tensor: _split,
    _aten.split.sizes: _split,
    _aten.chunk.default: _split,
    _aten.unbind.int: _unbind,
    _aten.to.dtype: _to,
    _aten.contiguous.default: _same,
    _aten.clone.default: _same,
    _aten.dropout.default: _aten_dropout,
    _aten.batch_norm.default: _aten_batch_norm,
    _aten.adaptive_avg_pool2d.default: _aten_adaptive_avg_pool,
    _aten.upsample_bilinear2d.vec: _aten_upsample,
    _aten.conv2d.default: _aten_conv2d,
    _aten.conv2d.padding: _aten_conv2d,
    _aten.silu.default: _aten_activation("silu"),
    _aten.relu.default: _aten_activation("relu"),
    _aten.gelu.default: _aten_activation("gelu"),
    _aten.relu6.default: _aten_activation("relu6"),
    _aten.hardswish.default: _aten_activation("hard_swish"),
    _aten.add.Tensor: _aten_add,
    _aten.mul.Tensor: _aten_factor,
    _aten.div.Tensor: _aten_divide,
    _aten.cat.default: _aten_cat,
    _aten.mean.dim: _aten_mean,
    _aten.linear.default: _aten_linear,
    _aten.layer_norm.default: _layer_norm,
    _aten.group_norm.default: _group_norm,
}
