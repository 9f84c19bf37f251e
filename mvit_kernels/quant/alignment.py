"""The program of one image size beside that of another: what is the same in both.

Maps that patches do not divide are resized, and around a resize a model is rewritten in other ways. Results that are the same numbers then
get the same name, by which their scale is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from mvit_kernels.graph import Node, Program

Tensor = torch.Tensor
_ROUNDING = 1e-5  # weights that were rewritten on another way


def aligned(program: Program, like: Program) -> Program:
    """Nodes without weights whose names `like` does not have are called as the node that does the same there. A resize that one of the two
    has alone counts as nothing: what takes its result counts as taking that of its input."""
    same: dict[object, str] = {}
    for node, inputs in _unresized(like, program):
        if not node.weights and node.name not in program:
            same.setdefault(_work(node, inputs), node.name)
    names: dict[str, str] = {}
    for node, inputs in _unresized(program, like, names):
        other = None if node.weights or node.name in like else same.pop(_work(node, inputs), None)
        if other is not None:
            names[node.name] = other
    nodes = [
        replace(node, name=names.get(node.name, node.name), inputs=tuple(names.get(name, name) for name in node.inputs)) for node in program
    ]
    return Program(nodes, [names.get(name, name) for name in program.outputs], program.structure)


def _unresized(program: Program, other: Program, names: Mapping[str, str] | None = None) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """Nodes but those resizes that `other` does not have, each with what it takes were they not there, by other `names` where there are."""
    names = {} if names is None else names  # which may grow on the way
    before: dict[str, str] = {}

    def name_of(name: str) -> str:
        name = before.get(name, name)
        return names.get(name, name)

    for node in program:
        if node.kind == "resize" and node.name not in other:
            before[node.name] = before.get(node.inputs[0], node.inputs[0])
        else:
            yield node, tuple(map(name_of, node.inputs))


def _work(node: Node, inputs: tuple[str, ...]) -> tuple[str, tuple[str, ...], str]:
    return node.kind, inputs, repr(sorted(node.settings.items(), key=lambda item: item[0]))


def rewritten_otherwise(program: Program, like: Program) -> set[str]:
    """Names of nodes that `like` has with other weights: they compute something else there."""
    return {node.name for node in program if node.name in like and not _same_weights(node, like[node.name])}


def _same_weights(a: Node, b: Node) -> bool:
    return a.weights.keys() == b.weights.keys() and all(_close(a.weights[name], b.weights[name]) for name in a.weights)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return a.numel() == 0 or bool((a.double() - b.double()).abs().max() <= _ROUNDING * b.double().abs().max())
