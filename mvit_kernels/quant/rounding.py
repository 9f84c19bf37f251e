"""Integer weights of the convolutions and linear maps of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from mvit_kernels.graph import Node

from .config import QuantConfig
from .layer import quantize_weight
from .layout import PRODUCTS, Layout
from .representation import Byte, Channels, Representation

Tensor = torch.Tensor
Layer = Mapping[str, Tensor]  # weight int8, weight_scale float32, bias float32


def is_rounded(node: Node, config: QuantConfig) -> bool:
    return node.kind in PRODUCTS and not config.skips(node.name)


def rounded(
    layout: Layout, found: Mapping[str, Representation], config: QuantConfig, stretch: Mapping[str, Tensor] | None = None
) -> dict[str, Layer]:  # fmt: skip
    """By name, of every product that the configuration does not skip: also of those that run in float32. stretch: see `round_weight`."""
    layers = {}
    for node in layout.program:
        if is_rounded(node, config):
            source = found.get(layout.key(node.inputs[0], "byte")) if node.name in layout.integer else None
            layers[node.name] = round_weight(node, config, source, (stretch or {}).get(node.name))
    return layers


def round_weight(node: Node, config: QuantConfig, source: Representation | None, stretch: Tensor | None = None) -> Layer:
    """By the largest weight of each output channel times stretch (N,), if there is one. source: what the node multiplies; weights absorb
    the ratios of its channels' scales, and a bias must fit beside sums of it."""
    weight, bias = node.weights["weight"], node.weights.get("bias")
    bias = torch.zeros(weight.shape[0], dtype=torch.float32) if bias is None else bias.float()
    if isinstance(source, Channels):
        weight = weight.double() * fold_of(node, source)
    scale = source.scale if isinstance(source, (Byte, Channels)) else None
    q, scales = quantize_weight(weight, None, config.weight_bits_of(node.name), bias, scale, 1.0 if stretch is None else stretch)
    return {"weight": q, "weight_scale": scales.contiguous(), "bias": bias}


def fold_of(node: Node, source: Channels) -> Tensor:
    """The ratios of scales, in the shape of the node's weight but for ones."""
    return along_inputs(node, source.fold())


def along_inputs(node: Node, values: Tensor) -> Tensor:
    """(C,) of input channels, to be multiplied with the weight. Those of depthwise convolutions are their output channels too."""
    ones = (1,) * (node.weights["weight"].ndim - 2)
    return values.reshape(-1, 1, *ones) if node.kind == "depthwise_conv2d" else values.reshape(1, -1, *ones)


def with_rounded_weight(node: Node, layer: Layer, source: Representation | None = None) -> Node:
    """The float node, with the weights that the integers stand for. source: as they were rounded for."""
    scale = layer["weight_scale"].reshape(-1, *(1,) * (layer["weight"].ndim - 1))
    weight = layer["weight"].float() * scale
    if isinstance(source, Channels):
        weight = (weight.double() / fold_of(node, source)).float()
    return replace(node, weights={**node.weights, "weight": weight, **bias_of(node, layer)})


def bias_of(node: Node, layer: Layer) -> dict[str, Tensor]:
    """That of the layer, for a float node: also where the node had none and rounding found one."""
    return {"bias": layer["bias"]} if "bias" in node.weights or bool(layer["bias"].any()) else {}
