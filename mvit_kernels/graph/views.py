"""How the dimensions of a tensor are made of the images, channels, rows and columns of a node's result.

A dimension is a product of factors, a factor some digits of one axis: of height 32 in patches of 2, row 2 i + j, i is the factor of step 2
and size 16, j that of step 1 and size 2. Reshapes, transposes, unfolds and folds move factors about and compute nothing. So in whatever way
a network takes a map apart into patches, heads or tokens, and puts it together again, it is the same map, and no node is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

IMAGES = 1_000_003  # stands for how many there are: a prime, which no other size is a multiple of


@dataclass(frozen=True)
class Factor:
    axis: str  # b, c, h or w
    step: int
    size: int


Dim = tuple[Factor, ...]  # from the slowest to the fastest; none of a dimension of size 1
Call = tuple[Any, tuple[Any, ...], tuple[int, ...]]  # target, arguments behind the tensor, size of the result


@dataclass(frozen=True)
class Value:
    """The result of a node, as torch has it or as a view."""

    name: str


@dataclass(frozen=True)
class View(Value):
    """All channels of a map (C, H, W) or a vector (C,), or every so many of them from the first, in any order of dimensions."""

    size: tuple[int, ...]
    dims: tuple[Dim, ...]
    first: int = 0  # of the channels

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(_count(dim) for dim in self.dims)

    @property
    def channels(self) -> int:
        return math.prod(factor.size for dim in self.dims for factor in dim if factor.axis == "c")

    @property
    def whole(self) -> bool:
        return self.channels == self.size[0]

    @property
    def indices(self) -> list[int]:
        """Which channels of the result it has, in the order of the result."""
        found = [self.first]
        for factor in sorted((factor for dim in self.dims for factor in dim if factor.axis == "c"), key=lambda factor: -factor.step):
            found = [index + i * factor.step for index in found for i in range(factor.size)]
        return found

    def alone(self, name: str) -> View:
        """The same of a result that has just these channels."""
        steps: dict[Factor, int] = {}
        count = 1
        for factor in sorted((factor for dim in self.dims for factor in dim if factor.axis == "c"), key=lambda factor: factor.step):
            steps[factor] = count
            count *= factor.size
        dims = [tuple(replace(factor, step=steps.get(factor, factor.step)) for factor in dim) for dim in self.dims]
        return View(name, (count, *self.size[1:]), tuple(map(_joined, dims)))

    @property
    def is_map(self) -> bool:
        """(B, C, H, W), all of it."""
        return len(self.size) == 3 and self.dims == whole("", self.size, "b,c,h,w").dims

    @property
    def is_tokens(self) -> bool:
        """(B, H W, C), all of it."""
        return len(self.size) == 3 and self.dims == whole("", self.size, "b,hw,c").dims

    @property
    def is_vector(self) -> bool:
        """(B, C) of a vector, all of it."""
        return len(self.size) == 1 and self.dims == whole("", self.size, "b,c").dims

    @property
    def channel(self) -> int | None:
        """The dimension that has all channels, and nothing else."""
        channels = _factor("c", 1, self.size[0])
        if channels:
            return self.dims.index(channels) if channels in self.dims else None
        places = [i for i, dim in enumerate(self.dims) if not dim]  # of one channel: where it could be
        return places[0] if len(places) == 1 else None

    def on(self, name: str, size: tuple[int, ...] | None = None) -> View:
        """Another result of as many pixels, seen like this one; of other channels, where they are a dimension."""
        size = self.size if size is None else size
        at = self.channel
        assert self.whole
        assert size == self.size or at is not None
        dims = tuple(_factor("c", 1, size[0]) if i == at else dim for i, dim in enumerate(self.dims))
        return View(name, size, dims)

    def alike(self, other: object) -> bool:
        """Whether elements at the same place belong to the same image, pixel and channel, and all have one."""
        return isinstance(other, View) and self.whole and other.whole and (self.size, self.dims) == (other.size, other.dims)

    # --- what moves factors about; None where the result is no view ---

    def reshape(self, shape: Sequence[int]) -> View | None:
        left = list(_joined(factor for dim in self.dims for factor in dim))
        dims: list[Dim] = []
        for size in shape:
            taken: list[Factor] = []
            while size > 1:
                if not left:
                    return None
                factor = left.pop(0)
                if size % factor.size == 0:
                    taken.append(factor)
                    size //= factor.size
                elif factor.size % size == 0:
                    inner = factor.size // size
                    taken.append(Factor(factor.axis, factor.step * inner, size))
                    left.insert(0, Factor(factor.axis, factor.step, inner))
                    size = 1
                else:
                    return None
            dims.append(_joined(taken))
        return None if left else replace(self, dims=tuple(dims))

    def permute(self, order: Iterable[int]) -> View:
        return replace(self, dims=tuple(self.dims[i] for i in order))

    def narrow(self, dim: int, start: int, length: int) -> View | None:
        """Some channels."""
        factors = self.dims[dim]
        if (start, length) == (0, _count(factors)):
            return self
        if len(factors) != 1 or factors[0].axis != "c":
            return None
        step = factors[0].step
        dims = list(self.dims)
        dims[dim] = _factor("c", step, length)
        return replace(self, dims=tuple(dims), first=self.first + start * step)

    def select(self, dim: int, index: int) -> View | None:
        """One channel, or the channels of one of several blocks."""
        x = self.narrow(dim, index, 1)
        return None if x is None else x.reshape(x.shape[:dim] + x.shape[dim + 1 :])

    def windows(self, dim: int, size: int) -> View | None:
        """Of a dimension of as many windows, side by side, and their elements, last."""
        count, rest = divmod(self.shape[dim], size)
        split = None if rest else self.reshape([*self.shape[:dim], count, size, *self.shape[dim + 1 :]])
        return None if split is None else split.permute([i for i in range(len(split.dims)) if i != dim + 1] + [dim + 1])

    def calls(self) -> list[Call]:
        """What torch makes it with, all channels of it, of the result of the node, one after another."""
        digits: list[Factor] = []
        for axis, size in zip("bchw", (IMAGES, *self.size), strict=False):
            own = sorted((factor for dim in self.dims for factor in dim if factor.axis == axis), key=lambda factor: -factor.step)
            digits += own or ([] if size == 1 else [Factor(axis, 1, size)])
        order = [digits.index(factor) for dim in self.dims for factor in dim]
        shape: list[int] = [IMAGES, *self.size]
        calls: list[Call] = []

        def call(target: Any, argument: list[int], result: Iterable[int]) -> None:
            shape[:] = result
            calls.append((target, (argument,), tuple(_sizes(shape[1:]))))

        if order != sorted(order):
            before = [factor.size for factor in digits]
            if before != shape:
                call(_aten.reshape.default, _sizes(before), before)
            call(_aten.permute.default, order, [before[i] for i in order])
        if list(self.shape) != shape:
            call(_aten.reshape.default, _sizes(self.shape), self.shape)
        return calls


def whole(name: str, size: tuple[int, ...], dims: str) -> View:
    """All of a result, with dimensions like "b,hw,c"; 1 is one of size 1."""
    sizes = dict(zip("bchw", (IMAGES, *size), strict=False))
    return View(name, size, tuple(_joined([Factor(axis, 1, sizes[axis]) for axis in dim if axis != "1"]) for dim in dims.split(",")))


def unfolded(x: View, patch: tuple[int, int]) -> View | None:
    """(B, C ph pw, patches) of a map (B, C, H, W): `torch.nn.Unfold` of windows side by side."""
    if len(x.dims) != 4 or any(side % size for side, size in zip(x.shape[2:], patch, strict=True)):
        return None
    (b, c, h, w), (ph, pw) = x.shape, patch
    parts = x.reshape([b, c, h // ph, ph, w // pw, pw])
    return None if parts is None else parts.permute([0, 1, 3, 5, 2, 4]).reshape([b, c * ph * pw, h // ph * (w // pw)])


def folded(x: View, size: tuple[int, int], patch: tuple[int, int]) -> View | None:
    """The map that such patches are of."""
    if len(x.dims) != 3 or any(side % each for side, each in zip(size, patch, strict=True)):
        return None
    (b, both, _), (h, w), (ph, pw) = x.shape, size, patch
    parts = x.reshape([b, both // (ph * pw), ph, pw, h // ph, w // pw])
    return None if parts is None else parts.permute([0, 1, 4, 2, 5, 3]).reshape([b, both // (ph * pw), h, w])


def patch_of(size: tuple[int, ...], phases: Iterable[Factor], patches: Iterable[Factor]) -> tuple[int, int] | None:
    """The size of the patches of a map, if `phases` say where in a patch a pixel is, and `patches` in which."""
    sides = []
    for axis, length in zip("hw", size[1:], strict=True):
        inner, outer = ([factor for factor in each if factor.axis == axis] for each in (phases, patches))
        side = math.prod(factor.size for factor in inner)
        if inner != [Factor(axis, 1, side)] * (side > 1) or outer != [Factor(axis, side, length // side)] * (length > side):
            return None
        sides.append(side)
    return sides[0], sides[1]


_aten = torch.ops.aten


def _sizes(shape: Iterable[int]) -> list[int]:
    """-1 for the images, or what they are a part of."""
    return [-1 if size % IMAGES == 0 else size for size in shape]


def _count(dim: Dim) -> int:
    return math.prod(factor.size for factor in dim)


def _factor(axis: str, step: int, size: int) -> Dim:
    return () if size == 1 else (Factor(axis, step, size),)


def _joined(factors: Iterable[Factor]) -> Dim:
    """Two next to each other that are one, as one."""
    joined: list[Factor] = []
    for factor in factors:
        if factor.size == 1:
            continue
        before = joined[-1] if joined else None
        if before is not None and before.axis == factor.axis and before.step == factor.step * factor.size:
            joined[-1] = Factor(factor.axis, factor.step, before.size * factor.size)
        else:
            joined.append(factor)
    return tuple(joined)
