"""What a network computes twice is computed once: two heads that each take the mean of all pixels share it."""

from __future__ import annotations

from ..program import Node, Program


def share_equal(program: Program) -> Program:
    """Nodes of one kind, with the same inputs, settings and weights, are the first of them. Two results stay two: each has its memory."""
    changed: dict[str, Node | None] = {}
    instead: dict[str, str] = {}
    results = set(program.outputs)
    before: dict[tuple[str, tuple[str, ...]], list[Node]] = {}
    for node in program:
        inputs = tuple(instead.get(name, name) for name in node.inputs)
        found = before.setdefault((node.kind, inputs), [])
        same = next((each for each in found if _equal(each, node)), None)
        if same is None or {same.name, node.name} <= results:
            found.append(node)
            continue
        changed[node.name], instead[node.name] = None, same.name
        if node.name in results:
            results.add(same.name)
    return program.rewritten(changed, instead)


def _equal(one: Node, other: Node) -> bool:
    """Weights: the same tensors."""
    return (
        one.size == other.size
        and dict(one.settings) == dict(other.settings)
        and one.weights.keys() == other.weights.keys()
        and all(one.weights[name] is other.weights[name] for name in one.weights)
    )
