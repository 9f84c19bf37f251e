"""gamma and beta of a norm go into the 1x1 convolution behind it: W (gamma x + beta) + b = (W diag(gamma)) x + (W beta + b).

What is left of the norm is two numbers an image (GroupNorm with one group) or a pixel (LayerNorm), which kernels apply while they load.
A bilinear resize or a mean between the two changes nothing, as their weights sum to 1: resize(gamma x + beta) = gamma resize(x) + beta.
"""

from __future__ import annotations

from dataclasses import replace

from ..program import Node, Program
from .weights import bias, is_linear, matrix, only_user, with_weights


def fold_norm(program: Program) -> Program:
    """Where a 1x1 convolution or a linear map is all that takes the norm's result, resized, averaged or as it is."""
    changed: dict[str, Node | None] = {}
    users = program.users()
    for node in program:
        if node.kind not in ("group_norm", "layer_norm") or "weight" not in node.weights:
            continue
        conv = only_user(program, users, node.name)
        while conv is not None and conv.kind in ("resize", "avg_pool"):
            conv = only_user(program, users, conv.name)
        if conv is None or not is_linear(conv):
            continue
        gamma, beta = node.weights["weight"].double(), bias(node)
        weight = matrix(conv)
        changed[conv.name] = with_weights(conv, weight=weight * gamma, bias=bias(conv) + weight @ beta)
        changed[node.name] = replace(node, weights={})
    return program.rewritten(changed)
