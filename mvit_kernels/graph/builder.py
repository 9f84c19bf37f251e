"""What rules make nodes with, and the values that they are given: views of results, and what is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .program import Node
from .views import IMAGES, Value, View, whole

Tensor = torch.Tensor
Named = Mapping[str, Any]
_aten = torch.ops.aten


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
        self._torch: dict[View, str] = {}  # of what torch made in another order

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

    def tokens_of(self, name: str) -> View:
        """(B, N, C) that torch made, as a map of one row: what lies behind has kernels again. Torch takes it as it was made."""
        count, channels = self.size(name)
        y = self.by_torch(name, _aten.transpose.int, (1, 2), (channels, count))
        tokens = self.tokens(self.by_torch(y, _aten.unsqueeze.default, (2,), (channels, 1, count)))
        self._torch[tokens] = name
        return tokens

    def plain(self, value: Any) -> str:
        """A node whose result is the value as torch has it."""
        if value in self._torch:
            return self._torch[value]
        if isinstance(value, Moments):
            raise ValueError(f"capture: moments of {value.of}: expected them at a product that normalises by them, got another use")
        if isinstance(value, Quantized):
            raise ValueError(f"capture: integers of {value.name}: expected them to be made floats again by the same scale, got another use")
        name: str = value.name
        if isinstance(value, View) and not value.whole:
            value = value.alone(self.channels(value))
            name = value.name
        for target, rest, size in value.calls() if isinstance(value, View) else ():
            name = self.by_torch(name, target, rest, size)
        return name

    def by_torch(self, name: str, target: Any, rest: tuple[Any, ...], size: tuple[int, ...]) -> str:
        """What an op makes of a result; rest: its other arguments."""
        settings = {"target": target, "arguments": ((("input", 0), *rest), {})}
        return self.add("torch", (name,), size, f"{name}.{target._schema.name.rpartition('::')[2]}", settings)

    def channels(self, x: View) -> str:
        """A result of just those that a view has."""
        indices = torch.tensor(x.indices)
        settings = {"target": _aten.index_select.default, "arguments": ((("input", 0), 1, ("weight", "indices")), {})}
        return self.add("torch", (x.name,), (len(indices), *x.size[1:]), f"{x.name}.index_select", settings, {"indices": indices})

    def rows(self, name: str, rows: list[int]) -> str | None:
        """Some channels of a product, or in another order: some of the rows of its matrix. None of what is no product."""
        node = self.node(name)
        if node.kind not in ("conv2d", "linear", "affine", "activation", "fake_quantize"):
            return None
        inputs = node.inputs
        if node.kind in ("affine", "activation", "fake_quantize"):
            source = self.rows(node.inputs[0], rows)
            if source is None:
                return None
            inputs = (source,)
        weights = {key: weight[rows] for key, weight in node.weights.items()}
        return self.add(node.kind, inputs, (len(rows), *node.size[1:]), f"{node.name}.{rows[0]}", node.settings, weights)

    def map(self, name: str) -> View:
        """(B, C, H, W) of a result."""
        return whole(name, self.size(name), "b,c,h,w")

    def tokens(self, name: str) -> View:
        """(B, H W, C) of a result."""
        return whole(name, self.size(name), "b,hw,c")

    def vector(self, name: str) -> View:
        """(B, C) of a result."""
        return whole(name, self.size(name), "b,c")

    def constant(self, value: Tensor, name: str) -> View | None:
        """(B, ...) of what is the same for every image: (N, C) are tokens, (C, H, W) is a map."""
        shape, value = (IMAGES, *value.shape), value.float()
        if value.ndim == 2:
            value = value.T[:, None]
        elif value.ndim != 3:
            value = value.flatten()
        value = value.contiguous()
        held = self.add("constant", (), tuple(value.shape), name or "constant", {}, {"value": value})
        view = self.vector(held) if value.ndim == 1 else self.tokens(held) if len(shape) == 3 else self.map(held)
        return view.reshape(shape)

    def constant_like(self, x: View, value: Tensor, name: str) -> View | None:
        """What is the same for every image, as a map or vector that is seen like x; None of other shapes."""
        shape = tuple(1 if size == IMAGES else size for size in x.shape)
        if not x.whole or value.ndim > len(shape) or any(size % IMAGES == 0 for size in shape):
            return None
        if any(size not in (1, each) for size, each in zip(value.shape[::-1], shape[::-1], strict=False)):
            return None
        places = torch.arange(math.prod(x.size)).reshape(1, *x.size)
        for target, rest, _ in x.calls():
            places = target(places, *rest)
        held = torch.empty(math.prod(x.size), dtype=torch.float32)
        held[places.flatten()] = value.float().expand(shape).flatten()
        constant = self.add("constant", (), x.size, name, {}, {"value": held.reshape(x.size)})
        self.nodes.insert(1, self.nodes.pop())  # behind the input: a product before may add it to its sums
        return x.on(constant)

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

    def repeated(self, x: str, weight: Tensor) -> str:
        """What depthwise filters meet: a channel for each."""
        channels, height, width = self.size(x)
        times = weight.shape[0] // channels
        return x if times == 1 else self.add("repeat", (x,), (weight.shape[0], height, width), f"{x}.repeat", {"times": times})

    def activate(self, x: str, function: str) -> str:
        return x if function == "none" else self.add("activation", (x,), self.size(x), f"{x}.{function}", {"function": function})

    def plus(self, a: str, b: str) -> str:
        return self.add("add", (a, b), self.size(a), f"{a}.add")

    def affine(self, x: View, scale: Tensor, shift: Tensor, name: str) -> View:
        return x.on(self.add("affine", (x.name,), x.size, name, {}, {"scale": scale, "shift": shift}))

    def cat(self, a: str, b: str) -> str:
        (channels, *pixels), more = self.size(a), self.size(b)[0]
        return self.add("cat", (a, b), (channels + more, *pixels), f"{b}.cat")

    def pool(self, x: str) -> str:
        return self.add("avg_pool", (x,), self.size(x)[:1], f"{x}.avg_pool")

    def norm(self, kind: str, x: str, weight: Tensor | None, bias: Tensor | None, eps: float, name: str = "") -> str:
        return self.add(kind, (x,), self.size(x), name or f"{x}.{kind}", {"eps": eps}, {"weight": weight, "bias": bias})


def origin(named: Named, argument: str, otherwise: str) -> str:
    return named["_origin"].get(argument) or otherwise


def is_map(x: Any) -> bool:
    """(B, C, H, W), all of it."""
    return isinstance(x, View) and x.is_map


def number(x: Any) -> float | None:
    """That by which a factor or a divisor is one."""
    if isinstance(x, Tensor) and x.ndim == 0 and x.is_floating_point():
        return float(x)
    return float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else None
