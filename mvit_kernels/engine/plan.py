"""A plan: steps whose pointers are offsets, weights in one block of memory, and for what torch must run, nodes between.

It is data and nothing else, so a file can hold it (`files.py`). What it holds is for any number of images of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mvit_kernels.ops.arena import Lifetime, place
from mvit_kernels.ops.backend import native
from mvit_kernels.ops.library import raise_status

from .steps import Lowered, Part, Ref, Step, TorchStep, Value

Tensor = torch.Tensor
_ARENA, _WEIGHTS, _INPUT, _OUTPUT, _SIDE_BY_SIDE = 1, 2, 3, 4, 5  # Space of csrc/engine/plan.h
_ALIGNMENT = 64
# What several images at once must save in reading weights, for each of them: less than that stays in the second cache anyway.
_WORTH_TOGETHER = 1 << 20


@dataclass(frozen=True)
class NativeStep:
    """A step as the executor takes it, and what a report says of it."""

    op: str
    nodes: tuple[str, ...]
    fields: Mapping[str, Any]  # numbers, and (space, index, offset) of pointers
    result: str
    macs: int
    bytes: int
    count: str = ""  # the field that several images are so many times as much of; "" where it takes one at a time


@dataclass(frozen=True)
class Segment:
    """Steps that run in native code without a break; inputs and outputs are names of values."""

    steps: tuple[NativeStep, ...]
    arena_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    first: int  # the steps from here on take several images at once
    side_by_side: tuple[tuple[int, int], ...]  # offset and bytes of what these read and write

    @property
    def image_bytes(self) -> int:
        """What one image takes beside the results."""
        return self.arena_bytes + max((offset + size for offset, size in self.side_by_side), default=0)


class Plan:
    """Segments and nodes of torch in order. `values` are those that pass between them, images and results of the network included."""

    def __init__(
        self, parts: Sequence[Segment | TorchStep], values: Mapping[str, Value], weights: Tensor, outputs: Sequence[str], structure: Any
    ) -> None:
        self.parts, self.values, self.weights = tuple(parts), dict(values), weights
        self.outputs, self.structure = tuple(outputs), structure
        self._native = {
            id(part): native.Plan(
                [(step.op, dict(step.fields)) for step in part.steps], part.arena_bytes, weights.nbytes,
                [values[name].bytes for name in part.inputs], [values[name].bytes for name in part.outputs],
                [step.count for step in part.steps], part.first, part.side_by_side,
            )
            for part in self.parts if isinstance(part, Segment)
        }  # fmt: skip
        last: dict[str, int] = {}
        for i, part in enumerate(self.parts):
            for name in part.inputs if isinstance(part, Segment) else part.node.inputs:
                last[name] = i
        self._done = [[name for name in last if last[name] == i and name not in self.outputs] for i in range(len(self.parts))]

    @property
    def input(self) -> Value:
        return self.values["input"]

    @property
    def arena_bytes(self) -> int:
        """Of the largest segment: what one image takes beside the results."""
        return max((part.image_bytes for part in self.parts if isinstance(part, Segment)), default=0)

    def run(self, x: Tensor, threads: int, timing: Callable[[Segment | TorchStep, Any], None] | None = None) -> list[Tensor]:
        """x (B, C, H, W), contiguous, of the dtype of the plan's input."""
        tensors = {"input": x}
        for part, done in zip(self.parts, self._done, strict=True):
            if isinstance(part, Segment):
                self._run_segment(part, tensors, x.shape[0], threads, timing)
            else:
                with torch.autocast("cpu", enabled=False):
                    y = part.run([tensors[name] for name in part.node.inputs])
                tensors[part.node.name] = y if part.raw else _in_order(y, self.values[part.node.name])
                if timing is not None:
                    timing(part, None)
            for name in done:
                del tensors[name]
        return [tensors[name] for name in self.outputs]

    def _run_segment(self, part: Segment, tensors: dict[str, Tensor], batch: int, threads: int, timing: Any) -> None:
        for name in part.outputs:
            tensors[name] = _empty(self.values[name], batch)
        inputs = [tensors[name].data_ptr() for name in part.inputs]
        outputs = [tensors[name].data_ptr() for name in part.outputs]
        plan, weights = self._native[id(part)], self.weights.data_ptr()
        if timing is None:
            status = plan.run(weights, inputs, outputs, batch, threads)
        else:
            status, seconds = plan.profile(weights, inputs, outputs, batch, threads)
            timing(part, seconds)
        if status:
            raise_status("CompiledModel", status)


def _empty(value: Value, batch: int) -> Tensor:
    size = (batch, *value.size)
    last = len(value.size) == 3 and value.channels_last
    return torch.empty(size, dtype=value.dtype, memory_format=torch.channels_last if last else torch.contiguous_format)


def _in_order(y: Any, value: Value) -> Any:
    """The result of a torch node as native code reads it. Indices, masks and several tensors are left to the torch nodes that take them."""
    if not isinstance(y, Tensor) or (value.dtype.is_floating_point and not y.is_floating_point()):
        return y
    if len(value.size) == 3 and value.channels_last:
        return y.to(value.dtype).contiguous(memory_format=torch.channels_last)
    return y.to(value.dtype).contiguous()


def assemble(lowered: Lowered) -> Plan:
    """Cuts steps into segments and gives every value and weight its place."""
    groups: list[list[Step] | TorchStep] = []
    for step in lowered.steps:
        if isinstance(step, TorchStep):
            groups.append(step)
        elif groups and isinstance(groups[-1], list):
            groups[-1].append(step)
        else:
            groups.append([step])
    made: dict[str, int] = {"input": -1}  # by which group
    used: dict[str, set[int]] = {}
    for i, group in enumerate(groups):
        names = group.values() if isinstance(group, TorchStep) else [name for step in group for name in step.values()]
        for name in names:
            made.setdefault(name, i)
            used.setdefault(name, set()).add(i)
    by_torch = {group.node.name for group in groups if isinstance(group, TorchStep)}
    crossing = {name for name in made if name in lowered.outputs or name in by_torch or used.get(name, set()) - {made[name]}}
    blob = _Blob()
    parts: list[Segment | TorchStep] = []
    for i, group in enumerate(groups):
        parts.append(group if isinstance(group, TorchStep) else _segment(group, i, made, crossing, lowered.values, blob))
    values = {name: lowered.values[name] for name in {"input", *crossing}}
    return Plan(parts, values, blob.joined(), lowered.outputs, lowered.structure)


def _segment(
    steps: list[Step], index: int, made: Mapping[str, int], crossing: set[str], values: Mapping[str, Value], blob: _Blob
) -> Segment:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, step in enumerate(steps):
        for name in step.values():
            first.setdefault(name, i)
            last[name] = i
    inputs = tuple(name for name in first if made[name] != index)
    outputs = tuple(name for name in first if made[name] == index and name in crossing)
    start = _first_together(steps)
    inside = {name: Lifetime(first[name], last[name], values[name].bytes) for name in first if name not in inputs + outputs}
    offsets, arena_bytes = place({name: life for name, life in inside.items() if life.last < start})
    together = {name: life for name, life in inside.items() if life.last >= start}
    beside, _ = place(together)
    indices = {name: i for i, name in enumerate(together)}

    def located(x: Any) -> Any:
        if isinstance(x, Tensor):
            return (_WEIGHTS, 0, blob.add(x))
        if isinstance(x, Part):
            return (_WEIGHTS, 0, blob.add(x.weight) + x.offset)
        if not isinstance(x, Ref):
            return x
        if x.value in offsets:
            return (_ARENA, 0, offsets[x.value] + x.offset)
        if x.value in indices:
            return (_SIDE_BY_SIDE, indices[x.value], x.offset)
        return (_INPUT, inputs.index(x.value), x.offset) if x.value in inputs else (_OUTPUT, outputs.index(x.value), x.offset)

    native_steps = tuple(
        NativeStep(
            step.op, step.nodes, {key: located(value) for key, value in step.fields.items()}, step.result, step.macs, step.bytes, step.count
        )
        for step in steps
    )  # fmt: skip
    return Segment(native_steps, arena_bytes, inputs, outputs, start, tuple((beside[name], together[name].bytes) for name in together))


def _first_together(steps: Sequence[Step]) -> int:
    """The step from which on several images at once save the most: each but one of them saves to read the weights again, and has its own
    values no longer at hand that the step before left in a cache. The end, where that is little."""
    start, best, saved = len(steps), _WORTH_TOGETHER, 0
    for i in reversed(range(len(steps))):
        saved += 2 * steps[i].weight_bytes - steps[i].bytes
        if saved > best:
            start, best = i, saved
    return start


class _Blob:
    """Tensors behind each other, each once, at multiples of 64 bytes."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.offsets: dict[int, int] = {}
        self.bytes = 0

    def add(self, x: Tensor) -> int:
        if id(x) not in self.offsets:
            self.tensors.append(x)  # and so it lives, and no other tensor gets its id
            self.offsets[id(x)] = self.bytes
            self.bytes += -(-x.nbytes // _ALIGNMENT) * _ALIGNMENT
        return self.offsets[id(x)]

    def joined(self) -> Tensor:
        memory = torch.zeros(self.bytes + _ALIGNMENT, dtype=torch.uint8)
        start = -memory.data_ptr() % _ALIGNMENT
        memory = memory[start : start + self.bytes]
        for x in self.tensors:
            at = self.offsets[id(x)]
            memory[at : at + x.nbytes] = x.detach().contiguous().reshape(-1).view(torch.uint8)
        return memory
