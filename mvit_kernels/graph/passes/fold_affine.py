"""A BatchNorm or a layer scale goes into the product before it, scale (W x + b) + shift = (scale W) x + (scale b + shift), or into the
linear map behind it: W (scale x + shift) + b = (W scale) x + (W shift + b)."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..program import Node, Program
from .weights import bias, has_epilogue, is_linear, is_quantized, matrix, only_user, with_weights

Tensor = torch.Tensor
_PRODUCTS = ("conv2d", "depthwise_conv2d", "linear")
_CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)


def fold_affine(program: Program) -> Program:
    """Where the product before has no other user; several in a row, too. What changes nothing, as x * 6 / 6 does, is no node, if it
    is no result."""
    changed: dict[str, Node | None] = {}
    instead: dict[str, str] = {}
    users = program.users()
    for node in program:
        if node.kind != "affine":
            continue
        name = instead.get(node.inputs[0], node.inputs[0])
        product = changed.get(name) or program[name]
        if only_user(program, users, node.inputs[0]) is not node:
            continue
        scaled = _scaled(product, node.weights["scale"], node.weights["shift"])
        if scaled is None:
            continue
        changed[product.name] = scaled
        changed[node.name], instead[node.name] = None, product.name
    results = {instead.get(name, name) for name in program.outputs}
    for node in program:
        left = changed.get(node.name, node)
        if left is not None and _is_nothing(left) and node.name not in results:
            changed[node.name], instead[node.name] = None, left.inputs[0]
    return program.rewritten(changed, instead)


def _is_nothing(node: Node) -> bool:
    return node.kind == "affine" and bool((node.weights["scale"] == 1).all() and (node.weights["shift"] == 0).all())


def _scaled(node: Node, scale: Tensor, shift: Tensor) -> Node | None:
    """scale times what it gives, + shift; None if it is no product."""
    if node.kind == "affine":
        return replace(node, weights={"scale": node.weights["scale"] * scale, "shift": node.weights["shift"] * scale + shift})
    if node.kind == "torch":
        return _scaled_by_torch(node, scale, shift)
    if node.kind not in _PRODUCTS or has_epilogue(node) or is_quantized(node):
        return None
    return with_weights(node, weight=_rows_scaled(node.weights["weight"], scale), bias=bias(node) * scale + shift)


def _rows_scaled(weight: Tensor, scale: Tensor) -> Tensor:
    return weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))


def _scaled_by_torch(node: Node, scale: Tensor, shift: Tensor) -> Node | None:
    """Of convolutions that no kernel has: of other sizes, unpadded, dilated, in groups."""
    if node.settings["target"] not in _CONVOLUTIONS:
        return None
    (x, weight, *rest), named = node.settings["arguments"]
    held = named.get("bias", rest[0] if rest else None)
    if weight[0] != "weight" or (held is not None and held[0] != "weight"):
        return None
    before = node.weights[weight[1]]
    term = shift if held is None else node.weights[held[1]].double() * scale + shift
    others = {name: each for name, each in named.items() if name != "bias"}
    arguments = ((x, weight, ("weight", "bias"), *rest[1:]), others)
    weights = {weight[1]: _rows_scaled(before, scale).to(before.dtype), "bias": term.to(before.dtype)}
    return replace(node, settings={**node.settings, "arguments": arguments}, weights=weights)


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
