"""Bridge blocks: where a map of the convolutional part of a network enters a transformer stack or leaves it.

A stack is a residual stream that norms read. A map enters it where a product begins the stream: the bridge is this product, the norms that
read it, and the products that take these. It leaves where a norm of the stream is taken by something that does not come back to it: the
bridge is what wrote into the stream last, the norm, and the first products behind it.

Where a map and some tokens look at each other (Mobile-Former), an attention is the bridge, whose queries come from one and whose keys from
the other, with the products that make these and what its result goes through up to the first product or sum.

Where a map looks at itself and stays a map (EfficientFormerV2), there is no stack: the bridge is the first attention that gives a map of a
size, from what its queries, keys and values are made by to the first product behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from mvit_kernels.graph import Node
from mvit_kernels.graph.interpreter import evaluate

from .affine import fake_quantize
from .layout import NORMS, PRODUCTS, Layout
from .representation import Representation

Tensor = torch.Tensor


class Bridge(NamedTuple):
    """nodes: of the chain, in order; sources: the results from outside that it takes; kind: "entry", "exit", "through" for both."""

    kind: str
    nodes: tuple[str, ...]
    sources: tuple[str, ...]


def bridges(layout: Layout) -> list[Bridge]:
    """In the order of the program."""
    found = []
    order = {node.name: i for i, node in enumerate(layout.program)}
    # A sum that a norm ends at once (post-norm) is no stack.
    ended = {group for name, group in layout.streams.items() if layout.program[name].kind in (*NORMS, "constant")}
    for name, group in layout.streams.items():
        node = layout.program[name]
        if group in ended:
            continue
        if node.kind not in PRODUCTS or name not in layout.integer:
            continue
        norms = [user for user in layout.users[name] if user and layout.program[user].kind in NORMS and user in layout.integer]
        before = node.inputs[-1] if node.settings.get("residual") else None  # bytes of a map are no stream yet
        begins = before not in layout.streams or layout.program[node.inputs[-1]].kind not in PRODUCTS
        for kind in ("entry", "exit"):
            chain: set[str] = set()
            for norm in norms:
                for path in _paths(layout, norm):
                    inside = _comes_back(layout, path[-1], group)
                    if (kind == "entry" and begins and inside) or (kind == "exit" and not inside):
                        chain |= {name, norm, *path}
            if chain:
                found.append(_bridge(layout, kind, chain))
    sizes = set[tuple[int, ...]]()
    for node in layout.program:
        if node.kind != "attention" or node.name not in layout.integer:
            continue
        origin, keys_origin = (_origin(layout, name) for name in node.inputs[:2])
        if origin != keys_origin:
            made = {name for name in node.inputs if _is_made_for(layout, name, node.name)}
            (_, *queries), (_, *keys) = (layout.program[name].size for name in node.inputs[:2])
            kind = "entry" if math.prod(queries) < math.prod(keys) else "exit"
            found.append(_bridge(layout, kind, {node.name, *made, *_carried_on(layout, node.name)}))
        elif origin not in layout.streams and (end := _end(layout, node.name)) is not None and tuple(end.size) not in sizes:
            sizes.add(tuple(end.size))
            found.append(_bridge(layout, "through", _around(layout, node, end.name)))
    return sorted(found, key=lambda bridge: order[bridge.nodes[0]])


def _bridge(layout: Layout, kind: str, chain: set[str]) -> Bridge:
    """Of the nodes of a chain, in any order."""
    nodes = tuple(node.name for node in layout.program if node.name in chain)
    taken = {each for name in nodes for each in layout.program[name].inputs} - chain
    return Bridge(kind, nodes, tuple(node.name for node in layout.program if node.name in taken))


def _end(layout: Layout, name: str) -> Node | None:
    """The first product behind a node, if a single way leads there."""
    user, *others = layout.users[name]
    if not user or others:
        return None
    node = layout.program[user]
    if node.kind in PRODUCTS:
        return node if node.inputs[0] == name else None
    return _end(layout, user)


def _around(layout: Layout, attention: Node, end: str) -> set[str]:
    """From the products that make queries, keys and values, and the one before that they alone take, to a product behind the attention,
    with what is made of the same beside it."""
    program = layout.program
    chain = {name for name in attention.inputs if program[name].kind in PRODUCTS}
    chain |= {
        name for each in chain for name in program[each].inputs if program[name].kind in PRODUCTS and chain.issuperset(layout.users[name])
    }
    name = attention.name
    while name != end:
        chain.add(name)
        (name,) = layout.users[name]
        chain |= {other for other in program[name].inputs if program[other].kind in PRODUCTS and chain.issuperset(program[other].inputs)}
    return chain | {end}


def _is_made_for(layout: Layout, name: str, user: str) -> bool:
    """Whether a product gives what one node alone takes."""
    return layout.program[name].kind in PRODUCTS and set(layout.users[name]) == {user}


def _origin(layout: Layout, name: str) -> str:
    """What products and norms made a result of."""
    while layout.program[name].kind in (*PRODUCTS, *NORMS) and len(layout.program[name].inputs) == 1:
        name = layout.program[name].inputs[0]
    return name


def _carried_on(layout: Layout, name: str) -> Iterator[str]:
    """What takes a result, by way of gates with all that makes them, up to the first product or sum."""
    for user in layout.users[name]:
        node = layout.program[user] if user else None
        if node is not None and node.kind == "hard_gate":
            yield user
            yield from (each for each in node.inputs if each != name and _is_made_for(layout, each, user))
            yield from _carried_on(layout, user)
        elif node is not None and (node.kind == "add" or (node.kind in PRODUCTS and node.inputs[0] == name)):
            yield user


def _paths(layout: Layout, name: str) -> Iterator[tuple[str, ...]]:
    """From behind a node to the first products, over whatever takes nothing else on the way."""
    for user in layout.users[name]:
        if user and user in layout.integer:
            node = layout.program[user]
            if node.kind in PRODUCTS and node.inputs[0] == name and not node.settings.get("second"):
                yield (user,)
            elif len(node.inputs) == 1 and node.kind not in PRODUCTS:
                yield from ((user, *path) for path in _paths(layout, user))


def _comes_back(layout: Layout, name: str, group: int) -> bool:
    """Whether something that depends on a result is added to the stream."""
    seen, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if layout.streams.get(name) == group:
            return True
        if name not in seen:
            seen.add(name)
            waiting += [user for user in layout.users[name] if user]
    return False


def arriving(
    layout: Layout, bridge: Bridge, at: str, found: Mapping[str, Representation], nodes: Mapping[str, Node], sources: dict[str, Tensor]
) -> Tensor:  # fmt: skip
    """What a product of the bridge multiplies when everything before it in the chain runs quantized.

    found: representations by key; nodes: products of the chain with the weights that their integers stand for; sources: float results.
    """
    values = dict(sources)

    def taken(name: str, form: str) -> Tensor:
        quantizer = None if form == "float" else found.get(layout.key(name, form))
        return values[name] if quantizer is None else fake_quantize(quantizer, values[name])

    for name in bridge.nodes:
        node = layout.program[name]
        if name == at:
            return values[node.inputs[0]]
        forms = layout.wanted(node)
        values[name] = evaluate(nodes.get(name, node), [taken(each, form) for each, form in zip(node.inputs, forms, strict=True)])
    raise ValueError(f"bridges: at: expected a node of {', '.join(bridge.nodes)}, got {at}")
