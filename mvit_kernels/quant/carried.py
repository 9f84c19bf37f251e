"""Integer programs of models that bring quantizers of their own: scales of results and of weights are taken as they are.

A product runs in integers if all that it multiplies or adds was quantized with one scale, and its weights are integers times a scale of
each output channel; sums, concatenations, resizes and lone activations if what they give was quantized too; averages of what was quantized.
All else stays floats. No quantizer is left out: where no integer node takes its bytes, it stands by itself.

Weights of -128 become -127, the least that kernels have, with a warning: it is half a step more than rounding does to weights anyway.
"""

from __future__ import annotations

import glob
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from mvit_kernels.graph import Node, Program

from .config import QuantConfig
from .layout import PRODUCTS
from .program import integer_program
from .representation import Byte, single
from .rounding import Layer

Tensor = torch.Tensor
_ONE_SCALE = ("cat", "resize")  # copies of bytes, or means of them


def carries_quantizers(program: Program) -> bool:
    return any(node.kind == "fake_quantize" for node in program)


def carried(program: Program) -> Program:
    """A program without nodes of kind "fake_quantize", most of it in integers. Its results differ from those of `program` by roundings: a
    value that lies between two integers may become the other one."""
    alone: set[str] = set()
    while True:
        plain, known = _without_quantizers(program, alone)
        integer = {node.name for node in plain if _fits(node, known)}
        users = plain.users()
        # Whoever takes floats of what is written in floats would take them as they were before the quantizer.
        lost = {name for name in known if _hands_floats_on(plain[name], users[name], integer)}
        if not lost:
            break
        alone |= lost
    layers = {name: _layer(plain[name]) for name in integer if plain[name].kind in PRODUCTS}
    beyond = sum(int((layer["weight"] == -128).sum()) for layer in layers.values())
    if beyond:
        warnings.warn(f"compile: model: expected integer weights in [-127, 127], got {beyond} of -128, which become -127", stacklevel=2)
        layers = {name: {**layer, "weight": layer["weight"].clamp_min(-127)} for name, layer in layers.items()}
    floats = [node.name for node in plain if node.name not in integer]
    config = QuantConfig(method="minmax", skip=tuple(map(glob.escape, floats)))
    return integer_program(_without_scales(plain), known, config, layers, floats)


def _hands_floats_on(node: Node, users: Collection[str], integer: Collection[str]) -> bool:
    """Integer nodes write bytes where an integer node takes them; behind a quantizer that stands alone floats are rounded."""
    if node.kind == "dequantize":
        return False
    others = [user for user in users if user not in integer]
    return bool(others) if node.name not in integer else len(others) == len(users)


def _without_quantizers(program: Program, alone: Collection[str]) -> tuple[Program, dict[str, Byte]]:
    """What is quantized by all who take it has bytes; other quantizers become two nodes. alone: names whose quantizers do in any case."""
    users, nodes = program.users(), []
    instead: dict[str, str] = {}
    known: dict[str, Byte] = {}
    for node in program:
        node = replace(node, inputs=tuple(instead.get(name, name) for name in node.inputs))
        if node.kind != "fake_quantize":
            nodes.append(node)
            continue
        source = program[node.name].inputs[0]
        takers = [program[user] if user else None for user in users[source]]
        same = all(taker is not None and taker.kind == "fake_quantize" and taker.settings == node.settings for taker in takers)
        byte = Byte(single(node.settings["scale"]), node.settings["zero_point"], node.settings["bits"])
        if same and "" not in users[node.name] and source not in alone and program[source].kind != "fake_quantize":
            instead[node.name], known[source] = source, byte
            continue
        known[node.name] = byte
        settings = {key: node.settings[key] for key in ("scale", "zero_point")}
        to_bytes = f"{node.name}.bytes"
        nodes.append(Node(to_bytes, "quantize", node.inputs, node.size, {"out": "uint8", **settings, "bits": node.settings["bits"]}))
        nodes.append(Node(node.name, "dequantize", (to_bytes,), node.size, {"source": "uint8", **settings}))
    return Program(nodes, program.outputs, program.structure), known


def _fits(node: Node, known: Mapping[str, Byte]) -> bool:
    """Whether a node runs in integers."""
    inputs = [known.get(name) for name in node.inputs]
    if not inputs or None in inputs:
        return False
    if node.kind in PRODUCTS:
        second = inputs[1] if node.settings.get("second") else inputs[0]
        return second == inputs[0] and _integers(node) is not None
    if node.kind in _ONE_SCALE:
        return set(inputs) == {known.get(node.name)}
    if node.kind in ("add", "activation"):
        return node.name in known
    return node.kind == "avg_pool"


def _integers(node: Node) -> Tensor | None:
    """int8 weights, if those of the node are such integers times weight_scale."""
    scale = node.weights.get("weight_scale")
    if scale is None:
        return None
    weight = node.weights["weight"].double()
    q = weight / scale.double().reshape(-1, *(1,) * (weight.ndim - 1))
    whole = q.round()
    if bool(((q - whole).abs() > 1e-3).any() or (whole > 127).any() or (whole < -128).any()):
        return None
    return whole.to(torch.int8)


def _layer(node: Node) -> Layer:
    weight, bias = _integers(node), node.weights.get("bias")
    assert weight is not None
    bias = torch.zeros(weight.shape[0]) if bias is None else bias.float()
    return {"weight": weight, "weight_scale": node.weights["weight_scale"], "bias": bias}


def _without_scales(program: Program) -> Program:
    """With weights that kernels for floats know."""
    held = {
        node.name: replace(node, weights={name: weight for name, weight in node.weights.items() if name != "weight_scale"})
        for node in program
        if "weight_scale" in node.weights
    }
    return program.rewritten(held)
