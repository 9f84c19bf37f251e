"""Integer weights of the convolutions and linear maps of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from mvit_kernels.graph import Node

from .config import QuantConfig
from .layer import quantize_weight
from .layout import PRODUCTS, Layout
from .representation import Byte, Representation

Tensor = torch.Tensor
Layer = Mapping[str, Tensor]  # weight int8, weight_scale float32, bias float32


def is_rounded(node: Node, config: QuantConfig) -> bool:
    return node.kind in PRODUCTS and not config.skips(node.name)


def rounded(layout: Layout, found: Mapping[str, Representation], config: QuantConfig) -> dict[str, Layer]:
    """By name, of every product that the configuration does not skip: also of those that run in float32."""
    layers = {}
    for node in layout.program:
        if is_rounded(node, config):
            source = found.get(layout.key(node.inputs[0], "byte")) if node.name in layout.integer else None
            layers[node.name] = round_weight(node, config, source.scale if isinstance(source, Byte) else None)
    return layers


def round_weight(node: Node, config: QuantConfig, input_scale: float | None) -> Layer:
    """By the largest weight of each output channel. input_scale: a bias must fit beside sums of that input."""
    weight, bias = node.weights["weight"], node.weights.get("bias")
    bias = torch.zeros(weight.shape[0], dtype=torch.float32) if bias is None else bias.float()
    q, scale = quantize_weight(weight, None, config.weight_bits_of(node.name), bias, input_scale)
    return {"weight": q, "weight_scale": scale.contiguous(), "bias": bias}


def with_rounded_weight(node: Node, layer: Layer) -> Node:
    """The float node, with the weights that the integers stand for."""
    scale = layer["weight_scale"].reshape(-1, *(1,) * (layer["weight"].ndim - 1))
    held = {**node.weights, "weight": layer["weight"].float() * scale}
    return replace(node, weights=held | {"bias": layer["bias"]} if "bias" in node.weights else held)
