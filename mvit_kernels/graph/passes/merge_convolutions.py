"""Two linear maps in a row are one: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)."""

from __future__ import annotations

from dataclasses import replace

from ..program import Node, Program
from .weights import bias, is_linear, matrix, only_user, with_weights


def merge_convolutions(program: Program) -> Program:
    """1x1 convolutions, and linear maps of vectors, where nobody else takes what is between them and the product of the two costs less."""
    return _merge(program, ("conv2d", "linear"))


def merge_linears(program: Program) -> Program:
    """Linear maps of vectors alone. Between the last convolution of an inverted residual and the first of the next is the smallest map that
    there is to write: where memory costs more than products, as on GPUs, it stays."""
    return _merge(program, ("linear",))


def _merge(program: Program, kinds: tuple[str, ...]) -> Program:
    changed: dict[str, Node | None] = {}
    users = program.users()
    for node in program:
        first = changed.get(node.name, node)
        if first is None or first.kind not in kinds or not is_linear(first):
            continue
        second = only_user(program, users, node.name)
        if second is None or second.kind != first.kind or not is_linear(second):
            continue
        a, b = matrix(first), matrix(second)
        if b.shape[0] * a.shape[1] > a.numel() + b.numel():
            continue
        merged = with_weights(second, weight=b @ a, bias=b @ bias(first) + bias(second))
        changed[second.name] = replace(merged, inputs=first.inputs)
        changed[node.name] = None
    return program.rewritten(changed)
