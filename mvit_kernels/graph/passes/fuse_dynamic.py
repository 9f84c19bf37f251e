"""A dynamic ReLU is done by the product in front of it, before it writes. Not among PASSES: quantizers look at what it takes and gives."""

from __future__ import annotations

from dataclasses import replace

from ..program import Node, Program
from .weights import has_epilogue, is_pointwise, only_user


def fuse_dynamic(program: Program) -> Program:
    """Of depthwise convolutions and 1x1s of every pixel, which then stand where their slopes are known."""
    changed: dict[str, Node | None] = {}
    instead: dict[str, str] = {}
    users = program.users()
    for node in program:
        product = program[node.inputs[0]] if node.kind == "dynamic_relu" else node
        if product is node or not (is_pointwise(product) or (product.kind == "depthwise_conv2d" and not has_epilogue(product))):
            continue
        if only_user(program, users, product.name) is node and node.inputs[1] != product.name:
            fused = replace(product, inputs=(*product.inputs, node.inputs[1]), settings={**product.settings, "dynamic": True})
            changed[product.name], changed[node.name], instead[node.name] = None, fused, product.name
    return program.rewritten(changed, instead) if changed else program
