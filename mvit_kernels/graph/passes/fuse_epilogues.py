"""What kernels do to a product before they write it: an activation, a residual. act(W x + b), or W x + b + residual, is one node."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from mvit_kernels.reference import ACTIVATIONS, QACTIVATIONS

from ..program import Node, Program
from .weights import has_epilogue, only_user

_PRODUCTS = ("conv2d", "depthwise_conv2d", "linear")


def fuse_epilogues(program: Program) -> Program:
    """An activation goes into the product before it; the sum of a convolution and something earlier into the convolution; and an
    activation into a sum that is left, where sums of bytes have it."""
    program = _fuse_activations(program, _PRODUCTS, ACTIVATIONS)
    return _fuse_activations(_fuse_residuals(program), ("add",), QACTIVATIONS)


def _fuse_activations(program: Program, into: Collection[str], functions: Collection[str]) -> Program:
    changed: dict[str, Node | None] = {}
    instead: dict[str, str] = {}
    users = program.users()
    for node in program:
        if node.kind != "activation" or node.settings["function"] not in functions:
            continue
        product = program[node.inputs[0]]
        if product.kind not in into or has_epilogue(product) or only_user(program, users, product.name) is not node:
            continue
        changed[product.name] = replace(product, settings={**product.settings, "activation": node.settings["function"]})
        changed[node.name], instead[node.name] = None, product.name
    return program.rewritten(changed, instead)


def _fuse_residuals(program: Program) -> Program:
    changed: dict[str, Node | None] = {}
    instead: dict[str, str] = {}
    users = program.users()
    place = {node.name: i for i, node in enumerate(program)}
    for node in program:
        if node.kind != "add":
            continue
        for name, other in (node.inputs, node.inputs[::-1]):
            product = program[name]
            if product.kind != "conv2d" or has_epilogue(product) or only_user(program, users, name) is not node:
                continue
            if place[other] > place[name]:
                continue
            changed[name] = replace(product, inputs=(*product.inputs, other), settings={**product.settings, "residual": True})
            changed[node.name], instead[node.name] = None, name
            break
    return program.rewritten(changed, instead)
