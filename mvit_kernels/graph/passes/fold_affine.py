"""A BatchNorm goes into the convolution before it: scale (W x + b) + shift = (scale W) x + (scale b + shift)."""

from __future__ import annotations

from ..program import Node, Program
from .weights import bias, has_epilogue, is_quantized, only_user, with_weights


def fold_affine(program: Program) -> Program:
    """Where the convolution has no other user."""
    changed: dict[str, Node | None] = {}
    instead: dict[str, str] = {}
    users = program.users()
    for node in program:
        if node.kind != "affine":
            continue
        conv = changed.get(node.inputs[0]) or program[node.inputs[0]]
        if conv.kind not in ("conv2d", "depthwise_conv2d") or has_epilogue(conv) or is_quantized(conv):
            continue
        if only_user(program, users, conv.name) is not node:
            continue
        scale, shift = node.weights["scale"], node.weights["shift"]
        weight = conv.weights["weight"].double() * scale.reshape(-1, 1, 1, 1)
        changed[conv.name] = with_weights(conv, weight=weight, bias=bias(conv) * scale + shift)
        changed[node.name], instead[node.name] = None, conv.name
    return program.rewritten(changed, instead)
