"""Plans as JSON and back: those of the CPU by their steps, those of a GPU by the program that they were made of. Tensors are no part of it:
`hold` takes each and gives a word for it, `held` gives it back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from .plan import NativeStep, Plan, Segment
from .steps import TorchStep, Value

if TYPE_CHECKING:
    from mvit_kernels.graph import Node, Program

    from .device_plan import DevicePlan  # with it comes all that captures networks

Tensor = torch.Tensor
Hold = Callable[[Tensor], Any]
Held = Callable[[Any], Tensor]


# --- of the CPU ---


def describe_plan(plan: Plan, hold: Hold) -> dict[str, Any]:
    return {
        "parts": [_describe_part(part, hold) for part in plan.parts],
        "values": {name: [list(v.size), str(v.dtype).removeprefix("torch."), v.channels_last] for name, v in plan.values.items()},
        "weights": hold(plan.weights),
        "outputs": list(plan.outputs),
        "structure": _describe_structure(plan.structure),
    }


def plan_from(entry: Mapping[str, Any], held: Held) -> Plan:
    values = {name: Value(tuple(size), getattr(torch, dtype), last) for name, (size, dtype, last) in entry["values"].items()}
    parts = [_part_from(part, held) for part in entry["parts"]]
    return Plan(parts, values, held(entry["weights"]), entry["outputs"], _structure_from(entry["structure"]))


def _describe_part(part: Segment | TorchStep, hold: Hold) -> dict[str, Any]:
    if isinstance(part, Segment):
        steps = [[step.op, list(step.nodes), dict(step.fields), step.result, step.macs, step.bytes, step.count] for step in part.steps]
        return {
            "steps": steps, "arena_bytes": part.arena_bytes, "inputs": list(part.inputs), "outputs": list(part.outputs),
            "first": part.first, "side_by_side": [list(each) for each in part.side_by_side],
        }  # fmt: skip
    return {**_describe_node(part.node, hold), "reason": part.reason, "raw": part.raw}


def _part_from(part: Mapping[str, Any], held: Held) -> Segment | TorchStep:
    if "steps" in part:
        steps = tuple(
            NativeStep(op, tuple(nodes), {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}, result, macs, size, count)
            for op, nodes, fields, result, macs, size, count in part["steps"]
        )
        side_by_side = tuple((offset, size) for offset, size in part["side_by_side"])
        return Segment(steps, part["arena_bytes"], tuple(part["inputs"]), tuple(part["outputs"]), part["first"], side_by_side)
    return TorchStep(_node_from(part, held), part["reason"], part["raw"])


# --- of a GPU ---


def describe_device_plan(plan: DevicePlan, hold: Hold) -> dict[str, Any]:
    program: Program = plan.program()
    return {
        "nodes": [_describe_node(node, hold) for node in program], "outputs": list(program.outputs),
        "structure": _describe_structure(program.structure), "dtype": _describe(plan.input.dtype),
    }  # fmt: skip


def device_plan_from(entry: Mapping[str, Any], held: Held, device: torch.device) -> DevicePlan:
    """Made anew: which ops there are is for the device to say."""
    from mvit_kernels.graph import Program

    from .device_plan import DevicePlan

    program = Program([_node_from(node, held) for node in entry["nodes"]], entry["outputs"], _structure_from(entry["structure"]))
    return DevicePlan(program, _described(entry["dtype"]), device)


# --- of both ---


def _describe_structure(structure: Any) -> str | None:
    try:
        return None if structure is None else pytree.treespec_dumps(structure)
    except NotImplementedError as error:
        raise ValueError(f"CompiledModel: save: expected results in a structure that a file can hold, got {structure}") from error


def _structure_from(text: str | None) -> Any:
    return None if text is None else pytree.treespec_loads(text)


def _describe_node(node: Node, hold: Hold) -> dict[str, Any]:
    weights = {name: hold(x) for name, x in node.weights.items()}
    settings = {key: _describe(value) for key, value in node.settings.items()}
    return {"node": [node.name, node.kind, list(node.inputs), list(node.size)], "settings": settings, "weights": weights}


def _node_from(entry: Mapping[str, Any], held: Held) -> Node:
    from mvit_kernels.graph import Node  # only here: with it comes all that captures networks

    name, kind, inputs, size = entry["node"]
    settings = {key: _described(value) for key, value in entry["settings"].items()}
    weights = {name: held(place) for name, place in entry["weights"].items()}
    return Node(name, kind, tuple(inputs), tuple(size), settings, weights)


def _describe(x: Any) -> Any:
    """Settings of a node: what JSON has no word for is a pair of its kind and itself."""
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, (tuple, list)):
        return {"tuple" if isinstance(x, tuple) else "list": [_describe(each) for each in x]}
    if isinstance(x, dict):
        return {"dict": {key: _describe(value) for key, value in x.items()}}
    if isinstance(x, torch._ops.OpOverload):
        return {"op": str(x)}
    if x is operator.getitem:
        return {"op": "getitem"}
    if isinstance(x, (torch.dtype, torch.memory_format, torch.layout)):
        return {"torch": str(x).removeprefix("torch.")}
    if isinstance(x, torch.device):
        return {"device": str(x)}
    raise ValueError(f"CompiledModel: save: expected settings of nodes that a file can hold, got {type(x).__name__}")


def _described(x: Any) -> Any:
    if not isinstance(x, dict):
        return x
    (kind, value), *_ = x.items()
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(_described(each) for each in value)
    if kind == "dict":
        return {key: _described(each) for key, each in value.items()}
    if kind == "op" and value == "getitem":
        return operator.getitem
    if kind == "op":
        namespace, name, overload = value.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    return getattr(torch, value) if kind == "torch" else torch.device(value)
