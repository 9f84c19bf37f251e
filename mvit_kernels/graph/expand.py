"""What each op of an exported model is made of: rules from ops to nodes.

A value on its way through the graph is a map, the same map as rows of pixels, or a vector; rules turn views of one into each other without
a node. What is none of these no rule touches: torch made it, and torch takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mvit_kernels.ops.attention import MOST_MIXED_HEADS

from .program import Node

Tensor = torch.Tensor
Named = Mapping[str, Any]


@dataclass(frozen=True)
class Value:
    """The result of a node, as torch has it or as a view."""

    name: str


class Map(Value):
    """(B, C, H, W)."""


class Pixels(Value):
    """(B, H, W, C) of a map."""


class Rows(Value):
    """(B H W, C) of a map."""


class Flat(Value):
    """(B, C, H W) of a map."""


class Tokens(Value):
    """(B, H W, C) of a map."""


class Vector(Value):
    """(B, C)."""


class Pooled(Value):
    """(B, C, 1, 1) of a vector."""


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

    def settings(self, name: str) -> Named:
        return self._made[name].settings

    def plain(self, value: Any) -> str:
        """A node whose result is the value as torch has it."""
        if isinstance(value, (Map, Vector, Floats, Opaque)):
            return value.name
        if isinstance(value, Moments):
            raise ValueError(f"capture: moments of {value.of}: expected them at a product that normalises by them, got another use")
        if isinstance(value, Quantized):
            raise ValueError(f"capture: integers of {value.name}: expected them to be made floats again by the same scale, got another use")
        channels, *pixels = self.size(value.name)
        size: tuple[int, ...]
        calls: list[tuple[Any, Any]]
        if isinstance(value, Pooled):
            size = (channels, 1, 1)
            calls = [(_aten.reshape.default, ([-1, *size],))]
        elif isinstance(value, (Flat, Tokens)):
            size = (channels, pixels[0] * pixels[1])
            calls = [(_aten.flatten.using_ints, (2,))]
            if isinstance(value, Tokens):
                size = size[::-1]
                calls.append((_aten.transpose.int, (1, 2)))
        else:
            size = (*pixels, channels)
            calls = [(_aten.permute.default, ([0, 2, 3, 1],))]
            if isinstance(value, Rows):
                size = (channels,)
                calls.append((_aten.reshape.default, ([-1, channels],)))
        name = value.name
        for target, rest in calls:
            settings = {"target": target, "arguments": ((("input", 0), *rest), {})}
            name = self.add("torch", (name,), size, f"{name}.{target._schema.name.rpartition('::')[2]}", settings)
        return name

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
    if not isinstance(named["x"], (Map, Pooled)):
        return None
    x = build.plain(named["x"])  # of a pooled one: a map of one pixel
    if named["second"] is not None:
        x = build.cat(x, named["second"].name)
    y = build.conv2d(x, named["weight"], named["bias"], named["stride"], _origin(named, "weight", path))
    y = build.activate(y, named["activation"])
    return Map(y if named["residual"] is None else build.plus(y, named["residual"].name))


def _depthwise(build: Builder, named: Named, path: str) -> Any:
    y = build.depthwise(
        _repeated(build, named["x"].name, named["weight"]), named["weight"], named["bias"], named["stride"], _origin(named, "weight", path)
    )
    return Map(build.activate(y, named["activation"]))


def _repeated(build: Builder, x: str, weight: Tensor) -> str:
    """What depthwise filters meet: a channel for each."""
    channels, height, width = build.size(x)
    times = weight.shape[0] // channels
    return x if times == 1 else build.add("repeat", (x,), (weight.shape[0], height, width), f"{x}.repeat", {"times": times})


def _inverted_residual(build: Builder, named: Named, path: str) -> Any:
    y = x = named["x"].name
    if named["expand_w"] is not None:
        y = build.conv2d(x, named["expand_w"], named["expand_b"], 1, _origin(named, "expand_w", path))
        y = build.activate(y, named["activation"])
    y = build.depthwise(y, named["depthwise_w"], named["depthwise_b"], named["stride"], _origin(named, "depthwise_w", path))
    y = build.activate(y, named["activation"])
    y = build.conv2d(y, named["reduce_w"], named["reduce_b"], 1, _origin(named, "reduce_w", path))
    return _with_moments(build.plus(y, x) if named["residual"] else y)


def _attention_block(build: Builder, named: Named, path: str) -> Any:
    x = named["x"].name
    y = build.norm("group_norm", x, named["norm_w"], named["norm_b"], named["eps"], _origin(named, "norm_w", path))
    y = build.conv2d(y, named["qkv_w"], named["qkv_b"], 1, _origin(named, "qkv_w", path))
    channels, height, width = build.size(y)
    y = build.add("separable_attention", (y,), ((channels - 1) // 2, height, width), f"{y}.attention", {"patch": _patch(named)})
    y = build.conv2d(y, named["out_w"], named["out_b"], 1, _origin(named, "out_w", path))
    return _with_moments(build.plus(y, x))


def _feed_forward(build: Builder, named: Named, path: str) -> Any:
    x = named["x"].name
    kind = "group_norm" if named["norm"] == "group" else "layer_norm"
    y = build.norm(kind, x, named["norm_w"], named["norm_b"], named["eps"], _origin(named, "norm_w", path))
    y = build.conv2d(y, named["fc1_w"], named["fc1_b"], 1, _origin(named, "fc1_w", path))
    y = build.activate(y, named["activation"])
    y = build.conv2d(y, named["fc2_w"], named["fc2_b"], 1, _origin(named, "fc2_w", path))
    return _with_moments(build.plus(y, x))


def _gemm(build: Builder, named: Named, path: str) -> Any:
    a = named["a"]
    if isinstance(a, Vector):
        return _gemm_of_vectors(build, named, path)
    if not isinstance(a, Rows):
        return None
    x = a.name
    if named["layer_norm"]:
        x = build.norm("layer_norm", x, None, None, named["eps"])
    if named["moments"] is not None:
        if named["moments"].of != x:
            return None
        x = build.norm("group_norm", x, None, None, named["eps"])
    if named["second"] is not None:
        x = build.cat(x, named["second"].name)
    y = build.conv2d(x, named["weight"], named["bias"], 1, _origin(named, "weight", path))
    y = build.activate(y, named["activation"])
    if named["residual"] is not None:
        y = build.plus(y, named["residual"].name)
    return Rows(y), Moments(y)


def _gemm_of_vectors(build: Builder, named: Named, path: str) -> Any:
    if named["layer_norm"] or any(named[name] is not None for name in ("moments", "second", "residual")):
        return None
    weights = {"weight": named["weight"], "bias": named["bias"]}
    y = build.add("linear", (named["a"].name,), named["weight"].shape[:1], _origin(named, "weight", path), {}, weights)
    y = build.activate(y, named["activation"])
    return Vector(y), Moments(y)


def _patch_attention(build: Builder, named: Named, path: str) -> Any:
    qkv, heads = named["qkv"].name, named["heads"]
    channels, height, width = build.size(qkv)
    scale = named["scale"] if named["scale"] is not None else (channels // 3 // heads) ** -0.5
    settings = {"heads": heads, "patch": _patch(named), "scale": scale}
    return Map(build.add("patch_attention", (qkv,), (channels // 3, height, width), f"{qkv}.attention", settings))


def _separable_attention(build: Builder, named: Named, path: str) -> Any:
    if named["patch_size"] is None:
        return None
    qkv = named["qkv"].name
    channels, height, width = build.size(qkv)
    size = ((channels - 1) // 2, height, width)
    return Map(build.add("separable_attention", (qkv,), size, f"{qkv}.attention", {"patch": _patch(named)}))


def _attention(build: Builder, named: Named, path: str) -> Any:
    inputs, heads, residual = [named[name] for name in ("q", "k", "v")], named["heads"], named["residual"]
    mixed = any(named[name] is not None for name in ("mix_scores", "mix_weights", "mix_bias"))
    if not all(isinstance(each, Tokens) for each in (*inputs, *([] if residual is None else [residual]))):
        return None
    if mixed and heads > MOST_MIXED_HEADS:
        return None
    (channels, height, width), (_, *of_keys), (values, *_) = (build.size(each.name) for each in inputs)
    scale = named["scale"] if named["scale"] is not None else (channels // heads) ** -0.5
    weights = {name: named[name] for name in ("bias", "mix_scores", "mix_weights", "mix_bias")}
    names = tuple(each.name for each in inputs)
    settings = {"heads": heads, "scale": scale, "depth": channels // heads, "keys": of_keys[0] * of_keys[1]}
    y = build.add("attention", names, (values, height, width), f"{names[0]}.attention", settings, weights)
    return Tokens(build.activate(y if residual is None else build.plus(residual.name, y), named["activation"]))


def _pool_mixer(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not isinstance(x, Map):
        return None
    name = _origin(named, "scale", path)
    return Map(build.add("pool_mixer", (x.name,), build.size(x.name), name, {}, {"scale": named["scale"]}))


def _resize(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not isinstance(x, Map):
        return None
    size, settings = (build.size(x.name)[0], *named["output_size"]), {"align_corners": named["align_corners"]}
    return Map(build.activate(build.add("resize", (x.name,), size, f"{x.name}.resize", settings), named["activation"]))


def _avg_pool(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not isinstance(x, Map):
        return None
    y = x.name
    if named["moments"] is not None:
        if named["moments"].of != y:
            return None
        y = build.norm("group_norm", y, None, None, named["eps"])
    return Vector(build.activate(build.pool(y), named["activation"]))


def _dynamic_relu(build: Builder, named: Named, path: str) -> Any:
    x, u = named["x"], named["u"]
    if not isinstance(x, Map) or not isinstance(u, Vector):
        return None
    return Map(build.add("dynamic_relu", (x.name, u.name), build.size(x.name), f"{x.name}.dynamic_relu"))


def _hard_gate(build: Builder, named: Named, path: str) -> Any:
    x, u = named["x"], named["u"]
    if type(x) is not type(u) or not isinstance(x, (Map, Rows, Tokens, Vector)) or build.size(x.name) != build.size(u.name):
        return None
    return type(x)(build.add("hard_gate", (x.name, u.name), build.size(x.name), f"{x.name}.hard_gate"))


def _layer_norm(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not isinstance(x, (Rows, Tokens)):
        return None
    return type(x)(build.norm("layer_norm", x.name, named["weight"], named["bias"], named["eps"], _origin(named, "weight", path)))


def _group_norm(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not isinstance(x, Map):
        return None
    return Map(build.norm("group_norm", x.name, named["weight"], named["bias"], named["eps"], _origin(named, "weight", path)))


def _with_moments(y: str) -> tuple[Map, Moments]:
    return Map(y), Moments(y)


def _patch(named: Named) -> tuple[int, int]:
    patch = list(named["patch_size"])
    return (patch[0], patch[-1])


# --- views ---


def _permute(build: Builder, named: Named, path: str) -> Any:
    x, dims = named["self"], [each % 4 for each in named["dims"]]
    if isinstance(x, Map) and dims == [0, 2, 3, 1]:
        return Pixels(x.name)
    if isinstance(x, Pixels) and dims == [0, 3, 1, 2]:
        return Map(x.name)
    return None


def _reshape(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    shape = list(named.get("shape", named.get("size", ())))
    if isinstance(x, (Pixels, Rows, Tokens)):
        channels, height, width = build.size(x.name)
        if len(shape) == 3 and named["_size"] == (height * width, channels) and not isinstance(x, Pixels):
            return Tokens(x.name)
        if len(shape) == 2 and named["_size"] == (channels,) and not isinstance(shape[0], int):
            return Rows(x.name)
        if len(shape) == 2 and shape[0] == -1 and shape[1] == channels:
            return Rows(x.name)
        if len(shape) == 4 and shape[1:3] == [height, width] and shape[3] in (channels, -1):
            return Pixels(x.name)
    return Vector(x.name) if isinstance(x, (Vector, Pooled)) and named["_size"] == build.size(x.name) else None


def _flatten(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    if isinstance(x, Map) and named["start_dim"] == 2 and named["end_dim"] in (-1, 3):
        return Flat(x.name)
    return Vector(x.name) if isinstance(x, (Vector, Pooled)) and named["_size"] == build.size(x.name) else None


def _transpose(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    if {named["dim0"] % 3, named["dim1"] % 3} != {1, 2}:
        return None
    return Tokens(x.name) if isinstance(x, Flat) else Flat(x.name) if isinstance(x, Tokens) else None


def _unflatten(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    return Map(x.name) if isinstance(x, Flat) and named["_size"] == build.size(x.name) else None


def _expand(build: Builder, named: Named, path: str) -> Any:
    """Tokens that are the same for every image, or as many as there are already."""
    x, sizes = named["self"], list(named["size"])
    if isinstance(x, Tokens):
        return x if sizes[1:] == [-1, -1] else None
    if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[0] != 1 or sizes[1:] != [-1, -1]:
        return None
    count, channels = x.shape[1:]
    value = x[0].T.reshape(channels, 1, count).contiguous()
    return Tokens(build.add("constant", (), (channels, 1, count), _origin(named, "self", path or "constant"), {}, {"value": value}))


def _select(build: Builder, named: Named, path: str) -> Any:
    """One of the tokens."""
    x, index = named["self"], named["index"]
    if not isinstance(x, Tokens) or named["dim"] not in (1, -2) or not isinstance(index, int):
        return None
    channels, height, width = build.size(x.name)
    index %= height * width
    return Vector(build.add("pixel", (x.name,), (channels,), f"{x.name}.pixel{index}", {"index": index}))


def _slice(build: Builder, named: Named, path: str) -> Any:
    """All of it."""
    whole = named["start"] in (None, 0) and named["end"] in (None, 2**63 - 1) and named["step"] == 1
    return named["self"] if whole else None


def _to(build: Builder, named: Named, path: str) -> Any:
    """Programs are captured in float32."""
    return named["self"] if named["dtype"] == torch.float32 and isinstance(named["self"], (Map, Tokens, Rows, Vector)) else None


def _same(build: Builder, named: Named, path: str) -> Any:
    return named["self"] if "self" in named else named["input"]


# --- torch's ops ---


def _aten_conv2d(build: Builder, named: Named, path: str) -> Any:
    x, weight, groups = named["input"], named["weight"], named["groups"]
    if not isinstance(x, Map) or not isinstance(weight, Tensor):
        return None
    kernel, stride, padding = list(weight.shape[2:]), _pair(named["stride"]), named["padding"]
    same = [k // 2 for k in kernel]
    padding = same if padding == "same" and stride == [1, 1] else [0, 0] if padding == "valid" else padding
    if kernel not in ([1, 1], [3, 3]) or stride not in ([1, 1], [2, 2]) or _pair(padding) != same or _pair(named["dilation"]) != [1, 1]:
        return None
    name, scales = _origin(named, "weight", path), named["_scales"].get("weight")
    if groups == 1:
        return Map(build.conv2d(x.name, weight, named["bias"], stride[0], name, scales))
    if groups == weight.shape[0] == build.size(x.name)[0] and kernel == [3, 3]:
        return Map(build.depthwise(x.name, weight, named["bias"], stride[0], name, scales))
    return None


def _pair(value: Any) -> list[int]:
    value = [value] if isinstance(value, int) else list(value)
    return value * 2 if len(value) == 1 else value


def _aten_activation(function: str) -> Callable[..., Any]:
    def rule(build: Builder, named: Named, path: str) -> Any:
        x = named["self"]
        if not isinstance(x, (Map, Rows, Tokens, Vector)) or named.get("approximate", "none") != "none":
            return None
        return type(x)(build.activate(x.name, function))

    return rule


def _aten_add(build: Builder, named: Named, path: str) -> Any:
    a, b = named["self"], named["other"]
    summands = (Map, Rows, Tokens, Vector)
    if type(a) is not type(b) or not isinstance(a, summands) or named.get("alpha", 1) != 1 or build.size(a.name) != build.size(b.name):
        return None
    return type(a)(build.plus(a.name, b.name))


def _aten_cat(build: Builder, named: Named, path: str) -> Any:
    maps = named["tensors"]
    if len(maps) == 2 and named["dim"] in (1, -1) and all(isinstance(each, Vector) for each in maps):
        return Vector(build.cat(maps[0].name, maps[1].name))
    if named["dim"] not in (1, -3) or len(maps) != 2 or not all(isinstance(each, Map) for each in maps):
        return None
    return Map(build.cat(maps[0].name, maps[1].name))


def _aten_mean(build: Builder, named: Named, path: str) -> Any:
    x, axes = named["self"], sorted(each % 4 for each in named["dim"] or ())
    if isinstance(x, Tokens) and axes == [1] and named["dtype"] is None and not named["keepdim"]:
        return Vector(build.pool(x.name))
    if not isinstance(x, Map) or axes != [2, 3] or named["dtype"] is not None:
        return None
    return (Pooled if named["keepdim"] else Vector)(build.pool(x.name))


def _aten_adaptive_avg_pool(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    return Pooled(build.pool(x.name)) if isinstance(x, Map) and list(named["output_size"]) == [1, 1] else None


def _aten_batch_norm(build: Builder, named: Named, path: str) -> Any:
    """In evaluation: a factor and a term for each channel, in float64 until they meet other weights."""
    x = named["input"]
    if not isinstance(x, Map) or named["training"] or named["running_mean"] is None:
        return None
    mean, variance = named["running_mean"].double(), named["running_var"].double()
    scale = torch.rsqrt(variance + named["eps"])
    if named["weight"] is not None:
        scale = scale * named["weight"].double()
    shift = -mean * scale if named["bias"] is None else named["bias"].double() - mean * scale
    name = _origin(named, "weight", _origin(named, "running_mean", path))
    return Map(build.add("affine", (x.name,), build.size(x.name), name, {}, {"scale": scale, "shift": shift}))


def _aten_factor(build: Builder, named: Named, path: str) -> Any:
    """A factor, or one for each channel (layer scale); or a divisor, which is a number."""
    x, factor = named["self"], named["other"]
    rank = {Map: 4, Tokens: 3, Rows: 2, Vector: 2}.get(type(x))
    if rank is None or (isinstance(factor, Tensor) and factor.ndim > rank):  # it would have more dimensions than x
        return None
    channels = build.size(x.name)[0]
    if isinstance(factor, Tensor):
        ends = factor.numel() == channels and (factor.shape[:1] == (channels,) if isinstance(x, Map) and factor.ndim < 4 else True)
        along = -3 if isinstance(x, Map) else -1
        if not ends or not factor.is_floating_point() or factor.ndim < -along or factor.shape[along] != channels:
            return None
        scale = factor.double().reshape(-1)
    elif isinstance(factor, (int, float)):
        scale = torch.full((channels,), float(factor), dtype=torch.float64)
    else:
        return None
    name = _origin(named, "other", f"{x.name}.scale")
    weights = {"scale": scale, "shift": torch.zeros_like(scale)}
    return type(x)(build.add("affine", (x.name,), build.size(x.name), name, {}, weights))


def _aten_divide(build: Builder, named: Named, path: str) -> Any:
    if not isinstance(named["other"], (int, float)) or not named["other"]:
        return None
    return _aten_factor(build, {**named, "other": 1.0 / named["other"]}, path)


def _aten_upsample(build: Builder, named: Named, path: str) -> Any:
    x, size = named["input"], named["_size"]
    if not isinstance(x, Map) or len(size) != 3 or -1 in size:
        return None
    if named["scale_factors"] is not None:  # which torch looks between pixels by, where it is given: the same if it divides evenly
        before = build.size(x.name)[1:]
        if [side * factor for side, factor in zip(before, named["scale_factors"], strict=True)] != list(size[1:]):
            return None
    return Map(build.add("resize", (x.name,), size, f"{x.name}.resize", {"align_corners": named["align_corners"]}))


def _aten_layer_norm(build: Builder, named: Named, path: str) -> Any:
    x = named["input"]
    if not isinstance(x, (Pixels, Rows, Tokens)) or list(named["normalized_shape"]) != [build.size(x.name)[0]]:
        return None
    return type(x)(build.norm("layer_norm", x.name, named["weight"], named["bias"], named["eps"], _origin(named, "weight", path)))


def _aten_group_norm(build: Builder, named: Named, path: str) -> Any:
    x = named["input"]
    if not isinstance(x, Map) or named["num_groups"] != 1:
        return None
    return Map(build.norm("group_norm", x.name, named["weight"], named["bias"], named["eps"], _origin(named, "weight", path)))


def _aten_linear(build: Builder, named: Named, path: str) -> Any:
    x, weight = named["input"], named["weight"]
    scales = named["_scales"].get("weight")
    if isinstance(x, (Rows, Tokens)) and isinstance(weight, Tensor):
        return type(x)(build.conv2d(x.name, weight, named["bias"], 1, _origin(named, "weight", path), scales))
    if not isinstance(x, Vector) or not isinstance(weight, Tensor):
        return None
    weights = {"weight": weight, "bias": named["bias"], "weight_scale": scales}
    return Vector(build.add("linear", (x.name,), weight.shape[:1], _origin(named, "weight", path), {}, weights))


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
    _aten.permute.default: _permute,
    _aten.reshape.default: _reshape,
    _aten.view.default: _reshape,
    _aten.transpose.int: _transpose,
    _aten.unflatten.int: _unflatten,
    _aten.expand.default: _expand,
    _aten.select.int: _select,
    _aten.slice.Tensor: _slice,
    _aten.to.dtype: _to,
    _aten.contiguous.default: _same,
    _aten.clone.default: _same,
    _aten.flatten.using_ints: _flatten,
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
    _aten.layer_norm.default: _aten_layer_norm,
    _aten.group_norm.default: _aten_group_norm,
}
