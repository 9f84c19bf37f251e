"""The sum of two linear maps of one thing is one: (W1 x + b1) + (W2 x + b2) = (W1 + W2) x + (b1 + b2). A network with two heads whose
logits are averaged has one."""

from __future__ import annotations

from ..program import Node, Program
from .weights import bias, has_epilogue, is_linear, matrix, only_user, with_weights


def merge_sums(program: Program) -> Program:
    """Of 1x1 convolutions, and of linear maps of vectors, where nobody else takes either. The sum has the name of the first."""
    changed: dict[str, Node | None] = {}
    instead: dict[str, str] = {}
    users = program.users()
    for node in program:
        if node.kind != "add" or has_epilogue(node) or node.inputs[0] == node.inputs[1]:
            continue
        first, second = (program[name] for name in node.inputs)
        if not all(is_linear(each) and only_user(program, users, each.name) is node for each in (first, second)):
            continue
        if first.inputs != second.inputs or first.name in changed or second.name in changed:
            continue
        changed[first.name] = with_weights(first, weight=matrix(first) + matrix(second), bias=bias(first) + bias(second))
        changed[second.name] = changed[node.name] = None
        instead[node.name] = first.name
    return program.rewritten(changed, instead)
