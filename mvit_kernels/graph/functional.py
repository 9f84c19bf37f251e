"""Exported graphs without what a translation from op to node would get wrong: writes, and graphs inside of the graph, of torch.no_grad and
torch.autocast."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import OutputKind

_RESULTS = (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION)


def functional(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without writes to what depends on the images. A plan has no nodes for copies, and maps lie in another order there: what
    had memory of its own in torch may share it with others.

    Raises ValueError for a model that writes to a buffer or a parameter: a plan keeps nothing of a call.
    """
    instead = _without_writes(exported.graph, exported.graph_signature.user_inputs)
    if instead is not None:
        for writer, op in instead.items():
            writer.target = op
        return exported
    exported = exported.run_decompositions({})
    kept = next((spec.target for spec in exported.graph_signature.output_specs if spec.kind not in _RESULTS), None)
    if kept is not None:
        raise ValueError(f"capture: model: expected one that keeps nothing of a call, got one that writes to {kept}")
    return exported


def results(exported: torch.export.ExportedProgram) -> list[Any]:
    """What the model returns: not what it wrote to its input, which is the caller's."""
    output = next(node for node in exported.graph.nodes if node.op == "output")
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    return [each for each, kind in zip(output.args[0], kinds, strict=True) if kind == OutputKind.USER_OUTPUT]


def _without_writes(graph: fx.Graph, images: Container[str]) -> dict[fx.Node, Any] | None:
    """Of each op that writes to what depends on the images the one that gives the same and doesn't: all else is computed as torch does it,
    views and writes included. None where that is not enough: what was written is seen through another view of its memory, or is the
    caller's or the model's; or there are graphs inside."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    memory = {node: _memory(node) for node in order}
    moving: set[fx.Node] = set()
    instead: dict[fx.Node, Any] = {}
    for node in order:
        if node.op == "get_attr":
            return None
        if node.name in images or any(each in moving for each in node.all_input_nodes):
            moving.add(node)
        for written in _written(node):
            others = [each for each in order if order[each] < order[node] and memory[each] == memory[written]]
            users = [user for each in others for user in each.users]
            if node in moving:
                seen = any(order[user] > order[node] for user in users)
                instead[node] = _giving(node)
            else:  # a plan would run those before it with what is there in the end
                seen = any(user in moving and order[user] < order[node] for user in users)
            if seen or any(each.op == "placeholder" for each in others):
                return None
    return None if None in instead.values() else instead


def _written(node: fx.Node) -> list[fx.Node]:
    """The values that an op writes to."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return []
    parameters = node.target._schema.arguments
    given = dict(zip((each.name for each in parameters), node.args, strict=False)) | node.kwargs
    values = [given.get(each.name) for each in parameters if each.alias_info is not None and each.alias_info.is_write]
    written: list[fx.Node] = []
    fx.node.map_arg(values, written.append)  # also those in lists
    return written


def _giving(node: fx.Node) -> Any:
    """The op that gives what this one writes, or None: x.mul(y) of x.mul_(y), but not x.gt(y), which gives no floats, of x.gt_(y)."""
    namespace, _, name = node.target._schema.name.partition("::")  # type: ignore[union-attr]
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    op, value = getattr(packet, node.target._overloadname, None), node.meta.get("val")  # type: ignore[union-attr]
    if op is None or op._schema.is_mutable or not isinstance(value, torch.Tensor):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    return op if op(*args, **kwargs).dtype == value.dtype else None


def _memory(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None
