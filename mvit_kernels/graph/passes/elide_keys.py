"""The keys of separable attention need not exist: a context of x, projected, is the context of projected x.

With one query channel, sum_n s_n (W_k x_n + b_k) = W_k (sum_n s_n x_n) + b_k, as the softmax weights s_n sum to 1. So half of the
query-key-value convolution shrinks from every pixel to one vector a phase, a map of as many pixels as a patch has. b_q adds the same to
all scores, which softmax takes away again.
"""

from __future__ import annotations

from dataclasses import replace

from ..program import Node, Program
from .weights import bias, is_pointwise, matrix, only_user, with_weights


def elide_keys(program: Program) -> Program:
    """Where the attention is all that takes the convolution's result."""
    nodes: list[Node] = []
    users = program.users()
    split: dict[str, Node] = {}  # the convolution of each attention
    for node in program:
        attention = only_user(program, users, node.name)
        if is_pointwise(node) and attention is not None and attention.kind == "separable_attention":
            split[attention.name] = node
            continue
        if node.name not in split:
            nodes.append(node)
            continue
        conv = split[node.name]
        x = conv.inputs[0]
        d, (_, height, width), patch = node.size[0], conv.size, node.settings["patch"]
        weight, shift = matrix(conv), bias(conv)
        shift[0] = 0.0
        keep = [0, *range(1 + d, 1 + 2 * d)]
        nodes.append(replace(with_weights(conv, weight=weight[keep], bias=shift[keep]), size=(1 + d, height, width)))
        context, keys = f"{node.name}.context", f"{conv.name}.key"
        nodes.append(Node(context, "separable_context", (conv.name, x), (weight.shape[1], *patch), {"patch": patch}))
        key = with_weights(conv, weight=weight[1 : 1 + d], bias=shift[1 : 1 + d])
        nodes.append(replace(key, name=keys, inputs=(context,), size=(d, *patch)))
        nodes.append(replace(node, kind="separable_gate", inputs=(conv.name, keys)))
    return Program(nodes, program.outputs, program.structure)
