"""Two products of one thing side by side are one product, [W1 x, W2 x] = [W1; W2] x: queries, keys and values by a linear map each."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..program import Node, Program
from .weights import bias, has_epilogue, is_quantized, only_user, with_weights


def stack_products(program: Program) -> Program:
    """Where their concatenation is all that takes either. It has the name of the first."""
    changed: dict[str, Node | None] = {}
    instead: dict[str, str] = {}
    users = program.users()
    for node in program:
        if node.kind != "cat" or node.inputs[0] == node.inputs[1]:
            continue
        first, second = (changed.get(instead.get(name, name)) or program[name] for name in node.inputs)
        if any(only_user(program, users, name) is not node for name in node.inputs) or not _alike(first, second):
            continue
        stacked = {"weight": torch.cat([first.weights["weight"], second.weights["weight"]])}
        if "bias" in first.weights or "bias" in second.weights:
            stacked["bias"] = torch.cat([bias(first), bias(second)])
        if is_quantized(first):
            stacked["weight_scale"] = torch.cat([first.weights["weight_scale"], second.weights["weight_scale"]])
        changed[first.name] = replace(with_weights(first, **stacked), size=node.size)
        changed[second.name] = changed[node.name] = None
        instead[node.name] = first.name
    return program.rewritten(changed, instead)


def _alike(first: Node, second: Node) -> bool:
    """Whether they differ in weights alone."""
    if first.kind not in ("conv2d", "linear") or has_epilogue(first) or is_quantized(first) != is_quantized(second):
        return False
    same = (first.kind, first.inputs, dict(first.settings)) == (second.kind, second.inputs, dict(second.settings))
    return same and first.weights["weight"].shape[1:] == second.weights["weight"].shape[1:]
