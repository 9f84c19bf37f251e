"""What a program becomes before it is a plan: steps of the native executor, whose pointers are still names of values and weights.

A value is what a step leaves for others: a map in memory order (H, W, C), a vector, or a few numbers beside these (moments, sums).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from mvit_kernels.graph import Node

Tensor = torch.Tensor


class Value(NamedTuple):
    """Of one image. channels_last: a map lies as (H, W, C), else as (C, H, W)."""

    size: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = True

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.size))} {str(self.dtype).removeprefix('torch.')}"

    @property
    def bytes(self) -> int:
        count = self.dtype.itemsize
        for each in self.size:
            count *= each
        return count


class Ref(NamedTuple):
    """A pointer into a value, `offset` bytes from its beginning."""

    value: str
    offset: int = 0


class Part(NamedTuple):
    """A pointer into a weight, `offset` bytes from its beginning."""

    weight: Tensor
    offset: int


@dataclass(frozen=True)
class Step:
    """One op of csrc/engine: `fields` are members of its struct, numbers or pointers (a Ref, or a tensor or Part among the weights)."""

    op: str
    nodes: tuple[str, ...]  # of the program, the last one names the step
    fields: Mapping[str, Any]
    result: str = ""  # size and dtype of what the last node gives
    macs: int = 0
    bytes: int = 0  # that it reads and writes at least, for one image, weights included
    weight_bytes: int = 0  # of these
    count: str = ""  # the field that several images, side by side, are so many times as much of; "" where it takes one at a time

    def values(self) -> list[str]:
        return [each.value for each in self.fields.values() if isinstance(each, Ref)]


@dataclass(frozen=True)
class TorchStep:
    """A node that torch runs, and why."""

    node: Node
    reason: str
    raw: bool = False  # only torch takes the result, of whatever dtype and memory format it is

    def values(self) -> list[str]:
        return [*self.node.inputs, self.node.name]

    def run(self, inputs: list[Tensor]) -> Any:
        from mvit_kernels.graph import evaluate  # only here: with it comes all that captures networks

        return evaluate(self.node, inputs)


@dataclass
class Lowered:
    """Steps in order, and everything that they leave."""

    steps: list[Step | TorchStep] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    structure: Any = None

    def add(self, op: str, nodes: tuple[Node, ...], fields: Mapping[str, Any], count: str = "") -> None:
        """`bytes` of a step: its values, and the weights among its fields. count: as of a Step, where all that it takes are values."""
        touched = {each.value for each in fields.values() if isinstance(each, Ref)}
        tensors = [each.weight if isinstance(each, Part) else each for each in fields.values()]
        weights = {id(each): each.nbytes for each in tensors if isinstance(each, Tensor)}
        own = sum(weights.values())
        size = sum(self.values[name].bytes for name in touched) + own
        names = tuple(node.name for node in nodes)
        # Constants are of all images, and a pixel of one image is not followed by that of the next.
        if any(name not in self.values and name not in names for node in nodes for name in node.inputs):
            count = ""
        self.steps.append(Step(op, names, fields, str(self.values[names[-1]]), sum(node.macs() for node in nodes), size, own, count))
