"""Exported graphs without what a translation from op to node would get wrong: writes that are seen through another view of the same memory,
writes to what the caller or the model keeps, and graphs inside of the graph, of torch.no_grad and torch.autocast."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import OutputKind


def functional(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program as it is, where nothing of this is in it: its ops are those that rules know.

    Raises ValueError for a model that writes to a buffer: a plan keeps nothing of a call.
    """
    if _is_plain(exported.graph, exported.graph_signature.user_inputs):
        return exported
    exported = exported.run_decompositions({})
    kept = exported.graph_signature.buffers_to_mutate
    if kept:
        raise ValueError(f"capture: model: expected one that keeps nothing of a call, got one that writes to {next(iter(kept.values()))}")
    return exported


def results(exported: torch.export.ExportedProgram) -> list[Any]:
    """What the model returns: not what it wrote to its input, which is the caller's."""
    output = next(node for node in exported.graph.nodes if node.op == "output")
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    return [each for each, kind in zip(output.args[0], kinds, strict=True) if kind == OutputKind.USER_OUTPUT]


def _is_plain(graph: fx.Graph, images: Container[str]) -> bool:
    order = {node: i for i, node in enumerate(graph.nodes)}
    memory = {node: _memory(node) for node in order}
    moving: set[fx.Node] = set()  # what depends on the images; all else is computed as torch does it, views and writes included
    for node in order:
        if node.op == "get_attr":
            return False
        if node.name in images or any(each in moving for each in node.all_input_nodes):
            moving.add(node)
        for written in _written(node):
            others = [each for each in order if order[each] < order[node] and memory[each] == memory[written]]
            seen = node in moving and any(order[user] > order[node] for each in others for user in each.users)
            if seen or any(each.op == "placeholder" for each in others):
                return False
    return True


def _written(node: fx.Node) -> list[fx.Node]:
    """The values that an op writes to."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return []
    parameters = node.target._schema.arguments
    given = dict(zip((each.name for each in parameters), node.args, strict=False)) | node.kwargs
    values = [given.get(each.name) for each in parameters if each.alias_info is not None and each.alias_info.is_write]
    return [each for each in values if isinstance(each, fx.Node)]


def _memory(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None
