"""Runs a program in plain torch, node by node: what every engine is held against."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from mvit_kernels import reference

from . import integers
from .program import Node, Program

Tensor = torch.Tensor


def run(
    program: Program, x: Tensor, watch: Callable[[Node, Tensor], Tensor | None] | None = None, *, backend: str | None = "reference"
) -> object:  # fmt: skip
    """The results for images x (B, C, H, W), as the model returned them. `watch` sees the result of every node; a tensor
    that it returns takes the place of the result.

    backend: of integer nodes, None for automatic choice; the bits are the same on each.
    """
    values: dict[str, Tensor] = {}
    last_use = {name: node.name for node in program for name in node.inputs}
    for node in program:
        inputs = [values[name] for name in node.inputs]
        if node.kind == "input":
            y = x
        elif node.kind == "constant":
            y = constant(node, x)
        elif node.kind in integers.KINDS:
            y = integers.prepared(program, node, backend)(*inputs)
        else:
            y = evaluate(node, inputs)
        if watch is not None:
            instead = watch(node, y)
            y = y if instead is None else instead
        values[node.name] = y
        for name in set(node.inputs):
            if last_use[name] == node.name and name not in program.outputs:
                del values[name]
    results = [values[name] for name in program.outputs]
    return results[0] if program.structure is None else pytree.tree_unflatten(results, program.structure)


def constant(node: Node, images: Tensor) -> Tensor:
    """A node of kind "constant", for each of some images."""
    return node.weights["value"].to(images.dtype).expand(images.shape[0], *node.size)


def evaluate(node: Node, inputs: list[Tensor]) -> Tensor:
    """The result of one node."""
    if node.kind in integers.KINDS:
        return integers.prepare(node, None)(*inputs)
    return _EVALUATE[node.kind](node, *inputs)


def _weights(node: Node, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    weight, bias = node.weights.get("weight"), node.weights.get("bias")
    return (None if weight is None else weight.to(like.dtype)), (None if bias is None else bias.to(like.dtype))


def _channels(node: Node, name: str, like: Tensor) -> Tensor:
    value = node.weights[name].to(like.dtype)
    return value[:, None, None] if like.ndim == 4 else value


def _conv2d(node: Node, *inputs: Tensor) -> Tensor:
    maps = inputs[:2] if node.settings.get("second") else inputs[:1]
    x = torch.cat(maps, dim=1) if len(maps) == 2 else maps[0]
    weight, bias = _weights(node, x)
    assert weight is not None
    groups = x.shape[1] if node.kind == "depthwise_conv2d" else 1
    y = F.conv2d(x, weight, bias, node.settings["stride"], weight.shape[-1] // 2, groups=groups)
    if node.settings.get("dynamic"):
        return reference.dynamic_relu(y, inputs[-1])
    y = reference.activate(y, node.settings.get("activation", "none"))
    return y + inputs[-1] if node.settings.get("residual") else y


def _group_norm(node: Node, x: Tensor) -> Tensor:
    return F.group_norm(x, 1, *_weights(node, x), node.settings["eps"])


def _layer_norm(node: Node, x: Tensor) -> Tensor:
    weight, bias = _weights(node, x)
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], weight, bias, node.settings["eps"]).movedim(-1, 1)


def _separable_attention(node: Node, qkv: Tensor) -> Tensor:
    patch = node.settings["patch"]
    y = reference.separable_attention(reference.unfold_patches(qkv, patch))
    return reference.fold_patches(y, (qkv.shape[2], qkv.shape[3]), patch)


def _separable_context(node: Node, scores: Tensor, x: Tensor) -> Tensor:
    patch = node.settings["patch"]
    scores, softmax = reference.unfold_patches(scores[:, :1], patch), node.settings.get("softmax")
    weights = scores.softmax(dim=-1) if softmax is None else softmax(scores)
    return (reference.unfold_patches(x, patch) * weights).sum(-1).unflatten(2, patch)


def _separable_gate(node: Node, values: Tensor, context: Tensor) -> Tensor:
    patches = (values.shape[2] // context.shape[2], values.shape[3] // context.shape[3])
    return torch.relu(values[:, 1:]) * context.repeat(1, 1, *patches)


def _patch_attention(node: Node, qkv: Tensor) -> Tensor:
    settings = node.settings
    return reference.patch_attention(qkv, settings["heads"], settings["patch"], settings["scale"], settings.get("softmax"))


def _attention(node: Node, *inputs: Tensor) -> Tensor:
    names = ("bias", "mix_scores", "mix_weights", "mix_bias")
    mixtures = reference.Mixtures(*(node.weights[name].to(inputs[0].dtype) if name in node.weights else None for name in names))
    query, key, value = (x.flatten(2).transpose(1, 2) for x in inputs)
    y = reference.attention(query, key, value, node.settings["heads"], node.settings["scale"], mixtures, node.settings.get("softmax"))
    return y.transpose(1, 2).unflatten(2, inputs[0].shape[2:])


def _linear(node: Node, x: Tensor) -> Tensor:
    weight, bias = _weights(node, x)
    assert weight is not None
    return reference.activate(F.linear(x, weight, bias), node.settings.get("activation", "none"))


def _fake_quantize(node: Node, x: Tensor) -> Tensor:
    scale, zero_point = node.settings["scale"], node.settings["zero_point"]
    q = (torch.round(x / scale) + zero_point).clamp(0, 2 ** node.settings["bits"] - 1)
    return (q - zero_point) * scale


def _torch(node: Node, *inputs: Tensor) -> Tensor:
    """Arguments hold ("input", i) in the places of tensors, and ("weight", name) in those of weights."""

    floats = [x.dtype for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]

    def fill(x: object) -> object:
        if isinstance(x, tuple) and len(x) == 2 and x[0] == "input":
            return inputs[x[1]]
        if not (isinstance(x, tuple) and len(x) == 2 and x[0] == "weight"):
            return x
        weight = node.weights[x[1]]
        return weight.to(floats[0]) if floats and weight.is_floating_point() else weight  # indices and masks stay as they are

    is_leaf = lambda x: isinstance(x, tuple) and len(x) == 2 and x[0] in ("input", "weight")  # noqa: E731
    args, kwargs = pytree.tree_map(fill, node.settings["arguments"], is_leaf=is_leaf)
    return node.settings["target"](*args, **kwargs)


_EVALUATE: dict[str, Callable[..., Tensor]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _conv2d,
    "repeat": lambda node, x: x.repeat_interleave(node.settings["times"], dim=1),
    "dynamic_relu": lambda node, x, u: reference.dynamic_relu(x, u),
    "hard_gate": lambda node, x, u: reference.hard_gate(x, u),
    "pixel": lambda node, x: x.flatten(2)[:, :, node.settings["index"]],
    "affine": lambda node, x: x * _channels(node, "scale", x) + _channels(node, "shift", x),
    "activation": lambda node, x: reference.activate(x, node.settings["function"]),
    "add": lambda node, a, b: reference.activate(a + b, node.settings.get("activation", "none")),
    "cat": lambda node, *inputs: torch.cat(inputs, dim=1),
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "separable_attention": _separable_attention,
    "separable_context": _separable_context,
    "separable_gate": _separable_gate,
    "patch_attention": _patch_attention,
    "attention": _attention,
    "pool_mixer": lambda node, x: reference.pool_mixer(x, node.weights["scale"].to(x.dtype)),
    "avg_pool": lambda node, x: reference.avg_pool(x),
    "resize": lambda node, x: reference.resize(x, node.size[1:], node.settings["align_corners"]),
    "linear": _linear,
    "fake_quantize": _fake_quantize,
    "simulate": lambda node, x: node.settings["quantizer"].fake(x),
    "torch": _torch,
}
