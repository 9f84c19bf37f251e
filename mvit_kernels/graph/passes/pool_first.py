"""The mean over pixels of a linear map is the linear map of the mean: one vector to multiply instead of every pixel."""

from __future__ import annotations

from dataclasses import replace

from ..program import Node, Program
from .weights import is_pointwise, only_user


def pool_first(program: Program) -> Program:
    """A 1x1 convolution, or a BatchNorm, whose only user is the average over all pixels becomes a linear map behind it. Both keep their
    names."""
    nodes: list[Node] = []
    users = program.users()
    renamed: dict[str, str] = {}
    moved: dict[str, Node] = {}  # by the pool that goes before
    for node in program:
        pool = only_user(program, users, node.name)
        if (is_pointwise(node) or node.kind == "affine") and pool is not None and pool.kind == "avg_pool":
            moved[pool.name] = node
            continue
        if node.name in moved:
            conv = moved[node.name]
            if conv.kind == "affine":
                nodes += [replace(node, inputs=conv.inputs), replace(conv, inputs=(node.name,), size=conv.size[:1])]
            else:
                channels = conv.weights["weight"].shape[1]
                nodes.append(replace(node, inputs=conv.inputs, size=(channels,)))
                weights = {**conv.weights, "weight": conv.weights["weight"].flatten(1)}
                nodes.append(replace(conv, kind="linear", inputs=(node.name,), size=conv.size[:1], settings={}, weights=weights))
            renamed[node.name] = conv.name
            continue
        nodes.append(replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)))
    return Program(nodes, [renamed.get(name, name) for name in program.outputs], program.structure)
