"""Gates that networks write in several ops: silu as x sigmoid(x), hard-swish, gates by hard-sigmoid, dynamic ReLU (arXiv 2003.10027) as
max(a x, b x). Hard-sigmoids are torch's, or relu6(u + 3) / 6 in some order of its factors.

As in `attention.py`, torch makes what is on the way, until the last op is known to be one node; copies and dropout of it are known there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import view_ops
from .builder import Builder, Known, Named, number
from .views import View

Tensor = torch.Tensor


@dataclass(frozen=True)
class Shifted(Known):
    """of + 3."""

    of: View


@dataclass(frozen=True)
class Sigmoid(Known):
    of: View


@dataclass(frozen=True)
class Gate(Known):
    """factor hard_sigmoid(of) + shift."""

    of: View
    factor: float = 1.0
    shift: float = 0.0

    def is_(self, factor: float, shift: float) -> bool:
        """Up to the roundings of constants that are float32."""
        small = 2.0**-22 * abs(self.factor)
        return math.isclose(self.factor, factor, rel_tol=1e-6) and math.isclose(self.shift, shift, rel_tol=1e-6, abs_tol=small)


@dataclass(frozen=True)
class Sloped(Known):
    """A map times a slope for each image and channel."""

    of: View
    slope: Gate


@dataclass(frozen=True)
class Parts(Known):
    """Several results."""

    parts: tuple[Known, ...]


def add(build: Builder, named: Named, path: str) -> Any:
    for x, other in ((named["self"], named["other"]), (named["other"], named["self"])):
        term = number(other)
        if term is None or named["alpha"] != 1:
            continue
        if isinstance(x, Gate):
            return replace(x, shift=x.shift + term)
        if isinstance(x, View) and term == 3.0:
            return Shifted(x)
    return None


def subtract(build: Builder, named: Named, path: str) -> Any:
    term = number(named["other"])
    return None if term is None else add(build, {**named, "other": -term}, path)


def multiply(build: Builder, named: Named, path: str) -> Any:
    for x, other in ((named["self"], named["other"]), (named["other"], named["self"])):
        factor = number(other)
        if isinstance(x, Gate) and factor is not None:
            return replace(x, factor=x.factor * factor, shift=x.shift * factor)
        if isinstance(x, View) and isinstance(other, Sigmoid) and x == other.of and x.whole:
            return x.on(build.activate(x.name, "silu"))
        if isinstance(x, View) and isinstance(other, Gate):
            return _gated(build, x, other)
        if isinstance(x, View) and isinstance(other, Tensor) and other.ndim > 1 and other.numel() > max(other.shape):
            return _gated_by_constant(build, x, other)
    return None


def divide(build: Builder, named: Named, path: str) -> Any:
    divisor = number(named["other"])
    return multiply(build, {**named, "other": 1.0 / divisor}, path) if divisor else None


def clip(build: Builder, named: Named, path: str) -> Any:
    """relu6, in whatever way."""
    x, low, high = named["self"], named.get("min", named.get("min_val", 0)), named.get("max", named.get("max_val", 6))
    return Gate(x.of, factor=6.0) if isinstance(x, Shifted) and (low, high) == (0, 6) else None


def sigmoid(build: Builder, named: Named, path: str) -> Any:
    return Sigmoid(named["self"]) if isinstance(named["self"], View) else None


def hard_sigmoid(build: Builder, named: Named, path: str) -> Any:
    return Gate(named["self"]) if isinstance(named["self"], View) else None


def maximum(build: Builder, named: Named, path: str) -> Any:
    """Of 2 hard_sigmoid(u) x and (2 hard_sigmoid(v) - 1) x: a dynamic ReLU, whose slopes are 1 + clip(u / 3) and clip(v / 3)."""
    for one, other in ((named["self"], named["other"]), (named["other"], named["self"])):
        if not isinstance(one, Sloped) or not isinstance(other, Sloped) or one.of != other.of:
            return None
        if not one.slope.is_(2.0, 0.0) or not other.slope.is_(2.0, -1.0):
            continue
        return _dynamic_relu(build, one.of, one.slope.of, other.slope.of)
    return None


def _dynamic_relu(build: Builder, x: View, u: View, v: View) -> View | None:
    channels = x.size[0]
    if u.name != v.name or u.size != (2 * channels,) or [*u.indices, *v.indices] != list(range(2 * channels)):
        return None
    slopes: str | None = _times(build, build.vector(u.name), 1 / 3).name
    order = view_ops.shuffled(x)
    if order is not None:  # the slopes are shuffled back
        back = torch.tensor(order).argsort().tolist()
        slopes = build.rows(str(slopes), [*back, *(channels + each for each in back)])
    if slopes is None:
        return None
    return replace(x, name=build.add("dynamic_relu", (x.name, slopes), x.size, f"{x.name}.dynamic_relu"))


def _gated(build: Builder, x: View, gate: Gate) -> Any:
    u = gate.of
    if x.alike(u) and gate.is_(gate.factor, 0.0):
        if x == u:
            y = x.on(build.activate(x.name, "hard_swish"))
        else:
            y = x.on(build.add("hard_gate", (x.name, u.name), x.size, f"{x.name}.hard_gate"))
        return y if gate.is_(1.0, 0.0) else _times(build, y, gate.factor)
    mapped = x.is_map or view_ops.shuffled(x) is not None
    if mapped and len(u.size) == 1 and u.dims == (x.dims[0], *u.dims[1:2], (), ()) and u.channels == x.size[0]:
        return Sloped(x, gate) if len(u.dims[1]) < 2 else None  # of channels in order
    return None


def _gated_by_constant(build: Builder, x: View, factor: Tensor) -> View | None:
    """A factor for each element, the same for every image: the gate of what it is the hard-sigmoid of, times the largest. Not of others
    much smaller than that: of what is close to -3 hard-sigmoid has few digits."""
    if not factor.is_floating_point():
        return None
    largest = float(factor.max())
    if not math.isfinite(largest) or not bool(((factor == 0) | (factor >= largest / 8)).all()):
        return None
    largest = largest or 1.0
    u = build.constant_like(x, factor.double() / largest * 6 - 3, f"{x.name}.factor")
    return None if u is None else _gated(build, x, Gate(u, factor=largest))


def _times(build: Builder, x: View, factor: float) -> View:
    scale = torch.full((x.size[0],), factor, dtype=torch.float64)
    return build.affine(x, scale, torch.zeros_like(scale), f"{x.name}.scale")


def _viewed(target: Any) -> Callable[[Builder, Named, str], Any]:
    """A view of a gate is the gate of a view."""

    def rule(build: Builder, named: Named, path: str) -> Any:
        x = named["self"]
        if not isinstance(x, Gate):
            return None
        y = view_ops.RULES[target](build, {**named, "self": x.of}, path)
        if isinstance(y, tuple):
            return Parts(tuple(replace(x, of=each) for each in y))
        return replace(x, of=y) if isinstance(y, View) else None

    return rule


_aten = torch.ops.aten
_VIEWS = (
    *(_aten.reshape.default, _aten.view.default, _aten._unsafe_view.default, _aten.flatten.using_ints, _aten.unflatten.int),
    *(_aten.unsqueeze.default, _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.permute.default, _aten.transpose.int),
    *(_aten.slice.Tensor, _aten.split_with_sizes.default, _aten.split.Tensor, _aten.split.sizes, _aten.chunk.default, _aten.unbind.int),
)
RULES: dict[Any, Callable[[Builder, Named, str], Any]] = {
    _aten.add.Tensor: add,
    _aten.sub.Tensor: subtract,
    _aten.mul.Tensor: multiply,
    _aten.div.Tensor: divide,
    _aten.relu6.default: clip,
    _aten.hardtanh.default: clip,
    _aten.clamp.default: clip,
    _aten.sigmoid.default: sigmoid,
    _aten.hardsigmoid.default: hard_sigmoid,
    _aten.maximum.default: maximum,
    _aten.max.other: maximum,
    **{target: _viewed(target) for target in _VIEWS},
}
