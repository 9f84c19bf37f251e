"""A convolution of a concatenation is the sum of two, W [x, y] = W_x x + W_y y, in one accumulation: [x, y] need not exist."""

from __future__ import annotations

from dataclasses import replace

from ..program import Node, Program
from .weights import only_user


def split_cat(program: Program) -> Program:
    """Where a convolution is all that takes the concatenation of two maps."""
    changed: dict[str, Node | None] = {}
    users = program.users()
    for node in program:
        conv = only_user(program, users, node.name)
        if node.kind != "cat" or conv is None or conv.kind != "conv2d" or conv.inputs[0] != node.name or len(node.inputs) != 2:
            continue
        conv = changed.get(conv.name) or conv
        changed[conv.name] = replace(conv, inputs=(*node.inputs, *conv.inputs[1:]), settings={**conv.settings, "second": True})
        changed[node.name] = None
    return program.rewritten(changed)
