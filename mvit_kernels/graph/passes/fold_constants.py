"""What is made of constants alone is one: queries of tokens that are the same for every image."""

from __future__ import annotations

from ..interpreter import evaluate
from ..program import Node, Program


def fold_constants(program: Program) -> Program:
    """Nodes whose inputs are all constants."""
    known: dict[str, Node | None] = {}
    for node in program:
        sources = [known.get(name) or program[name] for name in node.inputs]
        if not sources or node.kind in ("torch", "fake_quantize") or any(each.kind != "constant" for each in sources):
            continue
        value = evaluate(node, [each.weights["value"][None] for each in sources])[0]
        known[node.name] = Node(node.name, "constant", (), node.size, {}, {"value": value.contiguous()})
    return program.rewritten(known)
