"""What every method is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ..calibrate import Range, ranges
from ..config import QuantConfig
from ..decision import Decision, decision_of, parts_of
from ..layout import Layout
from ..representation import Projection, Representation, Scores, byte_members, whole
from ..rounding import Layer, is_rounded
from ..share import ALONE, Share
from ..state import NOWHERE, Stage, State

Tensor = torch.Tensor


@dataclass(frozen=True)
class Task:
    """A float program that is to be quantized.

    loss: of (results of the program with quantizers, results of the float program), for methods that look at its gradient; or None.
    share: which of the images this process looks at. state: what an interrupted run has found already.
    """

    layout: Layout
    batches: list[Tensor]
    config: QuantConfig
    loss: Callable[[Any, Any], Tensor] | None = None
    progress: bool = False
    share: Share = ALONE
    state: State = NOWHERE

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """Of every result; nothing is looked at if no result is quantized."""
        return self.ranges_of(self.batches) if self.layout.needed() else {}

    def ranges_of(self, batches: list[Tensor]) -> dict[str, Range]:
        """Of every result, on some of the images."""

        def look() -> Stage:
            found = ranges(self.layout.program, batches, self.progress, self.share)
            return Stage({f"{name}|{end}": value for name, each in found.items() for end, value in each._asdict().items()})

        tensors = self.state.once("ranges", look).tensors
        names = dict.fromkeys(key.rpartition("|")[0] for key in tensors)
        return {name: Range(tensors[f"{name}|low"], tensors[f"{name}|high"]) for name in names}


@dataclass(frozen=True)
class Found:
    """Attributes:
    representations: for every key of `layout.needed()`, and of softmax where it is quantized (`softmaxes.key_of`).
    stretch: name of a product -> (N,) factor of the scale of each row of its weight, 1 where its largest value is the largest integer.
    more: further fields of the decisions about results; weights: those of the decisions about weights, by name.
    migration: factors of channels, by seam, that the program had before all else (`equalization.migrated`); task: of that program.
    layers: integer weights of products, where they are not just rounded.
    """

    representations: dict[str, Representation]
    stretch: dict[str, Tensor] = field(default_factory=dict)
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    migration: dict[str, Tensor] = field(default_factory=dict)
    task: Task | None = None
    layers: dict[str, Layer] = field(default_factory=dict)


def range_of(task: Task, key: str) -> tuple[float, float]:
    """The smallest and the largest value of all that has the quantizer of a key."""
    name, form = task.layout.needed()[key]
    layout = task.layout
    if form == "stream":
        members = [each for each, group in layout.streams.items() if group == layout.streams[name]]
    else:
        members = byte_members(layout, name)
    lows, highs = zip(*(whole(task.ranges[each]) for each in members), strict=True)
    return min(lows), max(highs)


def part_range(task: Task, key: str, part: str) -> tuple[float, float]:
    """Of one of `parts_of` a representation."""
    if key not in task.layout.needed():  # of softmax
        return 0.0, 1.0
    if part == key:
        return range_of(task, key)
    name = task.layout.needed()[key][0]
    kind = Scores if name in task.layout.scores else Projection
    channels = kind.channels(task.layout.program[name].size[0])[part.removeprefix(f"{key}.")]
    low, high = task.ranges[name]
    return float(low[channels].min()), float(high[channels].max())


def decisions(task: Task, found: Found, layers: Mapping[str, Any]) -> tuple[Decision, ...]:
    """About results, and about the weights of layers as `rounding.rounded` gives them."""
    made = [
        decision_of(name, part, *part_range(task, key, name), **found.more.get(name, {}))
        for key, representation in found.representations.items()
        for name, part in parts_of(key, representation)
    ]
    for node in task.layout.program:
        if is_rounded(node, task.config) and node.name in layers:
            weight, scale = node.weights["weight"], layers[node.name]["weight_scale"]
            low, high = (float(each) for each in torch.aminmax(weight)) if weight.numel() else (0.0, 0.0)
            bits = task.config.weight_bits_of(node.name)
            fields = {"scale": tuple(scale.tolist()), "zero_point": None, "bits": bits, "scheme": "symmetric", "granularity": "channel"}
            made.append(Decision(node.name, "weight", low, high, **(fields | found.weights.get(node.name, {}))))
    return tuple(made)
