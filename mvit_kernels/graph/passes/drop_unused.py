"""Nodes whose results nobody takes."""

from __future__ import annotations

from ..program import Program


def drop_unused(program: Program) -> Program:
    """All that no result of the program needs; the input stays."""
    needed = set(program.outputs)
    for node in reversed(list(program)):
        if node.name in needed:
            needed.update(node.inputs)
    return program.rewritten({node.name: None for node in program if node.name not in needed and node.kind != "input"})
