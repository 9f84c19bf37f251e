"""A BatchNorm or a layer scale goes into the product before it, scale (W x + b) + shift = (scale W) x + (scale b + shift), or into the
linear map behind it: W (scale x + shift) + b = (W scale) x + (W shift + b)."""

from __future__ import annotations

from dataclasses import replace

from ..program import Node, Program
from .weights import bias, has_epilogue, is_linear, is_quantized, matrix, only_user, with_weights

_PRODUCTS = ("conv2d", "depthwise_conv2d", "linear")


def fold_affine(program: Program) -> Program:
    """Where the product before has no other user; several in a row, too."""
    changed: dict[str, Node | None] = {}
    instead: dict[str, str] = {}
    users = program.users()
    for node in program:
        if node.kind != "affine":
            continue
        name = instead.get(node.inputs[0], node.inputs[0])
        product = changed.get(name) or program[name]
        if product.kind not in _PRODUCTS or has_epilogue(product) or is_quantized(product):
            continue
        if only_user(program, users, node.inputs[0]) is not node:
            continue
        scale, shift = node.weights["scale"], node.weights["shift"]
        weight = product.weights["weight"].double() * scale.reshape(-1, *[1] * (product.weights["weight"].ndim - 1))
        changed[product.name] = with_weights(product, weight=weight, bias=bias(product) * scale + shift)
        changed[node.name], instead[node.name] = None, product.name
    return program.rewritten(changed, instead)


def fold_affine_forward(program: Program) -> Program:
    """Where a linear map, or a 1x1 convolution of every pixel, is all that takes it."""
    changed: dict[str, Node | None] = {}
    users = program.users()
    for node in program:
        if node.kind != "affine":
            continue
        linear = only_user(program, users, node.name)
        if linear is None or not is_linear(linear):
            continue
        weight = matrix(linear)
        folded = with_weights(linear, weight=weight * node.weights["scale"], bias=bias(linear) + weight @ node.weights["shift"])
        changed[linear.name] = replace(folded, inputs=node.inputs)
        changed[node.name] = None
    return program.rewritten(changed)
