"""The mixer of EfficientFormer as networks write it: x + scale (mean of the neighbours of x - x), a pool, a difference, a layer scale and a
sum. As in `attention.py`, torch makes what is on the way, until the sum is known to be one node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from .builder import Builder, Known, Named, number
from .views import View

Tensor = torch.Tensor


@dataclass(frozen=True)
class Neighbours(Known):
    """The mean of the 3x3 neighbourhood of every pixel, as far as the map goes."""

    of: View


@dataclass(frozen=True)
class Moved(Known):
    """scale (neighbours - x); (C,), or 1."""

    of: View
    scale: Tensor | None = None


def average(build: Builder, named: Named, path: str) -> Any:
    x, kernel, stride, padding = named["self"], *(list(named[name]) for name in ("kernel_size", "stride", "padding"))
    plain = not named["count_include_pad"] and not named["ceil_mode"] and named["divisor_override"] is None
    same = kernel in ([3], [3, 3]) and stride in ([1], [1, 1]) and padding in ([1], [1, 1])
    return Neighbours(x) if plain and same and isinstance(x, View) and x.is_map else None


def difference(build: Builder, named: Named, path: str) -> Any:
    x, other = named["self"], named["other"]
    return Moved(x.of) if isinstance(x, Neighbours) and x.of == other and named["alpha"] == 1 else None


def scale(build: Builder, named: Named, path: str) -> Any:
    for x, factor in ((named["self"], named["other"]), (named["other"], named["self"])):
        if isinstance(x, Moved) and x.scale is None:
            channels = x.of.size[0]
            value = number(factor)
            if value is not None:
                return replace(x, scale=torch.full((channels,), value))
            if isinstance(factor, Tensor) and factor.is_floating_point() and factor.shape in ((channels, 1, 1), (1, channels, 1, 1)):
                return replace(x, scale=factor.flatten())
    return None


def add(build: Builder, named: Named, path: str) -> Any:
    for x, moved in ((named["self"], named["other"]), (named["other"], named["self"])):
        if isinstance(moved, Moved) and moved.of == x and named["alpha"] == 1:
            scale = torch.ones(x.size[0]) if moved.scale is None else moved.scale
            return x.on(build.add("pool_mixer", (x.name,), x.size, path or f"{x.name}.pool_mixer", {}, {"scale": scale}))
    return None


_aten = torch.ops.aten
RULES: dict[Any, Callable[[Builder, Named, str], Any]] = {
    _aten.avg_pool2d.default: average,
    _aten.sub.Tensor: difference,
    _aten.mul.Tensor: scale,
    _aten.add.Tensor: add,
}
