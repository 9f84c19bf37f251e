"""Biases that softmax takes away, or lets through.

In MobileViT's attention the scores are (q + b_q) (k + b_k). q b_k and b_q b_k are the same for all keys of a query, and softmax does not
see them: b_k vanishes. As softmax weights sum to 1, sum_n s_n (v_n + b_v) = sum_n s_n v_n + b_v: b_v goes into the bias of the projection
behind it.
"""

from __future__ import annotations

from ..program import Node, Program
from .weights import bias, is_pointwise, matrix, only_user, with_weights


def cancel_constants(program: Program) -> Program:
    """Where a convolution makes queries, keys and values for one attention, and one projection takes its result."""
    changed: dict[str, Node | None] = {}
    users = program.users()
    for node in program:
        if node.kind != "patch_attention":
            continue
        conv = changed.get(node.inputs[0]) or program[node.inputs[0]]
        projection = only_user(program, users, node.name)
        if not is_pointwise(conv) or only_user(program, users, conv.name) is not node or "bias" not in conv.weights:
            continue
        d = node.size[0]
        b = bias(conv)
        b[d : 2 * d] = 0.0
        if projection is not None and is_pointwise(projection):
            projection = changed.get(projection.name) or projection
            changed[projection.name] = with_weights(projection, bias=bias(projection) + matrix(projection) @ b[2 * d :])
            b[2 * d :] = 0.0
        changed[conv.name] = with_weights(conv, bias=b)
    return program.rewritten(changed)
