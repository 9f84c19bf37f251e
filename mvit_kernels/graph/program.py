"""A network as a list of nodes: what passes rewrite, quantizers decide about, and engines run.

Nodes stand in the order in which they run. A node has a name that stays the same at other resolutions (the path of the module whose
weights it holds, or its producer's name and its kind), the names of its inputs, and the size of its result for one image: (C, H, W) of a
map or (C,) of a vector. The batch is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mvit_kernels.messages import shown

Tensor = torch.Tensor

KINDS = {
    "input": "the image",
    "constant": "the same for every image: value, of the size of the node",
    "conv2d": "weight (N, C, k, k), bias (N,) or none; stride; padding k // 2; k 1 or 3; second: of two maps side by side; activation; "
    "residual: the last input is added at the end; dynamic: the last input are slopes (2 N,) of a dynamic ReLU at the end",
    "repeat": "times: each channel stands so many times, one after another",
    "depthwise_conv2d": "weight (C, 1, 3, 3), bias (C,) or none; stride; padding 1; activation; dynamic: as of conv2d",
    "affine": "scale (C,), shift (C,), float64: a BatchNorm in evaluation, a layer scale; of a map or vector",
    "activation": "function: one of reference.ACTIVATIONS",
    "dynamic_relu": "of a map, and a vector of twice as many channels: reference/dynamic_relu.py",
    "hard_gate": "of two of the same size: reference/hard_gate.py",
    "add": "of two of the same size; activation",
    "cat": "of channels",
    "group_norm": "of a whole image, one group; weight (C,), bias (C,) or none of both; eps",
    "layer_norm": "over the channels of each pixel; weight (C,), bias (C,) or none of both; eps",
    "separable_attention": "of MobileViTv2; a map of 1 + 2 d channels, q|k|v; patch",
    "separable_context": "sum of the softmax of a map's first channel times another map, for each phase of pixels: (C, ph, pw); patch",
    "separable_gate": "relu of a map's other channels times a vector (C, ph, pw) for each phase of pixels; patch",
    "patch_attention": "of MobileViT; a map of 3 d channels, q|k|v; heads, patch, scale",
    "attention": "of queries, keys and values, a map each; heads, scale, depth (of a head), keys; bias (heads, queries, keys), "
    "mix_scores, mix_weights (heads, heads), mix_bias (heads,), or none of each: reference/attention.py",
    "pool_mixer": "of EfficientFormer; scale (C,): reference/pool_mixer.py",
    "pixel": "index: one pixel of a map, in the order of rows, to a vector",
    "avg_pool": "over all pixels, a map to a vector: reference/avg_pool.py",
    "resize": "bilinear, to the size of the node; align_corners",
    "linear": "weight (N, K), bias (N,) or none; activation; of a vector",
    # What a model brought that has quantizers: no pass crosses them, nor changes weights that have a weight_scale (N,) beside them.
    "fake_quantize": "to the nearest of scale * (q - zero_point), q in 0 .. 2^bits - 1: scale, zero_point, bits",
    # What quantizers that no kernel has make of a network. Float nodes that stand for integer ones have `simulated`, the reason, among
    # their settings; attention and separable_context may have `softmax`, a function of scores in its place.
    "simulate": "quantized and back, of floats: quantizer, whose `fake` does it; simulated",
    "torch": "anything else, as torch runs it: target, arguments",
    # Integer nodes. Results are uint8, int16 (a residual stream) or float32, as `out` says; real = scale * (q - zero_point). Scales and
    # zero-points are numbers among the settings, or (C,) for channels among the weights. graph/integers.py runs them.
    "quantize": "of a float map or vector: out (uint8 or int16), scale, zero_point (0 for int16), bits",
    "dequantize": "to float32: source (uint8 or int16), scale, zero_point",
    "qconv2d": "weight (N, C, k, k) int8, weight_scale (N,), bias (N,) float32, table (256,) uint8 or none; stride, weight_bits; form: of "
    "the activation, polynomial or curve, whose table is int16; "
    "a_scale, a_zero_point, a_bits of all inputs but a residual; second; activation or none; residual: residual_scale and "
    "residual_zero_point, none where out is int16, whose scale it then has; out, out_scale, out_zero_point, out_bits; second_channels",
    "qdepthwise_conv2d": "weight (C, 1, 3, 3) int8; else as qconv2d, of one input",
    "qlinear": "weight (N, K) int8; else as qconv2d, of one vector and without a stride",
    "qnorm": "of an int16 map to uint8; norm: group (of a whole image) or layer (of each pixel); weight (C,), bias (C,) or none of both; "
    "scale, eps, out_scale, out_zero_point, out_bits",
    "qseparable_context": "separable_context of bytes, the first channel of a map and another map; table (256,) int32: exponentials of the "
    "scores; patch, x_scale, x_zero_point, out (uint8 or float32), out_scale, out_zero_point, out_bits",
    "qseparable_gate": "separable_gate of bytes, all but the first channel of a map, and a float32 context; to uint8; patch, v_scale, "
    "v_zero_point, out_scale, out_zero_point, out_bits",
    "qpatch_attention": "patch_attention of bytes to uint8; heads, patch, scale, q_scale, q_zero_point, k_scale, v_scale, v_zero_point, "
    "out_scale, out_zero_point, out_bits",
    "qadd": "of bytes to uint8; activation or none; a_scale, a_zero_point, b_scale, b_zero_point, out_scale, out_zero_point, out_bits",
    "qattention": "attention of bytes to uint8; its settings and weights; q_scale, q_zero_point, k_scale, k_zero_point, v_scale, "
    "v_zero_point, out_scale, out_zero_point, out_bits",
    "qpool_mixer": "pool_mixer of bytes to uint8; scale (C,); a_scale, a_zero_point, out_scale, out_zero_point, out_bits",
    "qavg_pool": "of bytes; a_scale, a_zero_point, out (uint8 or float32), out_scale, out_zero_point, out_bits",
    "qresize": "bilinear, of bytes, to the size of the node; align_corners",
    "qlookup": "table[x] of bytes: table (256,) uint8",
}


@dataclass(frozen=True)
class Node:
    """One step. `inputs` are names of nodes before it."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    size: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def macs(self) -> int:
        """Multiply-adds for one image."""
        weight = self.weights.get("weight")
        pixels = self.size[1] * self.size[2] if len(self.size) == 3 else 1
        if self.kind in ("attention", "qattention"):
            return int(pixels * self.settings["keys"] * (self.settings["heads"] * self.settings["depth"] + self.size[0]))
        if self.kind in ("patch_attention", "qpatch_attention"):
            return pixels * (pixels // math.prod(self.settings["patch"])) * 2 * self.size[0]
        if weight is None or self.kind.endswith("norm"):
            return 0
        return weight.numel() * pixels

    def __str__(self) -> str:
        what = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        shapes = ", ".join(f"{key} {'x'.join(map(str, value.shape))}" for key, value in self.weights.items())
        details = "; ".join(each for each in (what, shapes) if each)
        return f"{self.name}: {'x'.join(map(str, self.size))} = {self.kind}({', '.join(self.inputs)}){f'  [{details}]' if details else ''}"


class Program:
    """Nodes in order, and the names of those that are results. Passes give a new program; nodes and weights are never changed in place."""

    def __init__(self, nodes: Iterable[Node], outputs: Iterable[str], structure: Any = None) -> None:
        self._nodes: dict[str, Node] = {}
        for node in nodes:
            if node.kind not in KINDS:
                raise ValueError(f"Program: node {node.name}: expected one of the kinds {', '.join(KINDS)}, got {node.kind!r}")
            missing = [name for name in node.inputs if name not in self._nodes]
            if missing or node.name in self._nodes:
                got = f"{missing[0]!r}, which no node before it has" if missing else "its name a second time"
                raise ValueError(f"Program: node {node.name}: expected names of earlier nodes as inputs and a name of its own, got {got}")
            self._nodes[node.name] = node
        self.outputs = tuple(outputs)
        self.prepared: dict[Any, Any] = {}  # what interpreters make once of each node
        self.structure = structure  # how the model returned its outputs: a torch.utils._pytree spec, or None for one tensor
        for name in self.outputs:
            if name not in self._nodes:
                raise ValueError(f"Program: outputs: expected names of nodes, got {shown(name)}")

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def users(self) -> dict[str, list[str]]:
        """The names of the nodes that take the result of each node; a result of the program is taken by "" too."""
        users: dict[str, list[str]] = {node.name: [] for node in self}
        for node in self:
            for name in node.inputs:
                users[name].append(node.name)
        for name in self.outputs:
            users[name].append("")
        return users

    def macs(self) -> int:
        """Multiply-adds of convolutions, linear maps and products of queries, keys and values, for one image."""
        return sum(node.macs() for node in self)

    def rewritten(self, changed: Mapping[str, Node | None], instead: Mapping[str, str] | None = None) -> Program:
        """A program with other nodes in the place of some (None: without them), whose users take the result of `instead` of theirs."""
        instead = instead or {}

        def name_of(name: str) -> str:
            while name in instead:
                name = instead[name]
            return name

        nodes = []
        for node in self:
            new = changed.get(node.name, node)
            if new is not None:
                nodes.append(replace(new, inputs=tuple(map(name_of, new.inputs))))
        return Program(nodes, map(name_of, self.outputs), self.structure)

    def __str__(self) -> str:
        return "\n".join([*map(str, self), f"return {', '.join(self.outputs)}"])
