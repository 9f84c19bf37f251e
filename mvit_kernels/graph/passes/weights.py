"""What passes do to weights: in float64, rounded once when they are put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..program import Node, Program

Tensor = torch.Tensor


def matrix(node: Node) -> Tensor:
    """(N, K) float64 of a linear map or a 1x1 convolution."""
    return node.weights["weight"].double().flatten(1)


def bias(node: Node) -> Tensor:
    """(N,) float64, zeros where there is none; a copy."""
    weight = node.weights["weight"]
    held = node.weights.get("bias")
    return weight.new_zeros(weight.shape[0], dtype=torch.float64) if held is None else held.to(torch.float64, copy=True)


def with_weights(node: Node, **weights: Tensor) -> Node:
    """The node with other weights, in the dtype and shape that its own have (or the shape that is given, for other channels)."""
    dtype = node.weights["weight"].dtype
    trailing = node.weights["weight"].shape[2:]
    held: Mapping[str, Tensor] = {
        name: (value.reshape(*value.shape[:2], *trailing) if name == "weight" else value).to(dtype).contiguous()
        for name, value in weights.items()
    }
    return replace(node, weights={**node.weights, **held})


def is_pointwise(node: Node) -> bool:
    """A 1x1 convolution of every pixel and nothing else, whose weights may change."""
    plain = node.kind == "conv2d" and len(node.inputs) == 1 and not has_epilogue(node) and not is_quantized(node)
    return plain and node.weights["weight"].shape[2:] == (1, 1) and node.settings["stride"] == 1


def is_linear(node: Node) -> bool:
    """A 1x1 convolution of every pixel or a linear map of a vector, and nothing else, whose weights may change."""
    return (node.kind == "linear" and not has_epilogue(node) and not is_quantized(node)) or is_pointwise(node)


def is_quantized(node: Node) -> bool:
    """Whether weights are integers times a scale, because the model that was captured has them so."""
    return "weight_scale" in node.weights


def only_user(program: Program, users: Mapping[str, list[str]], name: str) -> Node | None:
    """The one node that takes a result, where there is exactly one and the result leaves the program nowhere."""
    return program[users[name][0]] if len(users[name]) == 1 and users[name][0] else None


def has_epilogue(node: Node) -> bool:
    """An activation or a residual."""
    return any(each in node.settings for each in ("activation", "dynamic", "residual"))
