"""The sum of two linear maps of one thing is one: (W1 x + b1) + (W2 x + b2) = (W1 + W2) x + (b1 + b2). A network with two heads whose
logits are averaged has one. So with depthwise convolutions: EfficientFormerV2 adds one to every second pixel of its input."""

from __future__ import annotations

import torch

from ..program import Node, Program
from .weights import bias, has_epilogue, is_linear, is_quantized, only_user, with_weights


def merge_sums(program: Program) -> Program:
    """Of 1x1 and depthwise convolutions and linear maps of vectors, where nobody else takes either. The sum has the name of the first."""
    changed: dict[str, Node | None] = {}
    instead: dict[str, str] = {}
    users = program.users()
    for node in program:
        if node.kind != "add" or has_epilogue(node) or node.inputs[0] == node.inputs[1]:
            continue
        first, second = (program[name] for name in node.inputs)
        if not all(_is_map(each) and only_user(program, users, each.name) is node for each in (first, second)):
            continue
        if (first.kind, first.inputs, first.settings) != (second.kind, second.inputs, second.settings):
            continue
        if first.name in changed or second.name in changed:
            continue
        changed[first.name] = with_weights(first, weight=_weight(first) + _weight(second), bias=bias(first) + bias(second))
        changed[second.name] = changed[node.name] = None
        instead[node.name] = first.name
    return program.rewritten(changed, instead)


def _weight(node: Node) -> torch.Tensor:
    return node.weights["weight"].double()


def _is_map(node: Node) -> bool:
    return is_linear(node) or (node.kind == "depthwise_conv2d" and not has_epilogue(node) and not is_quantized(node))
