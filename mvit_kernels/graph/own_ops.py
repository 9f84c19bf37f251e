"""What our own ops are made of, which modules that are known have become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mvit_kernels.ops.attention import MOST_MIXED_HEADS

from .builder import Builder, Moments, Named, is_map, origin
from .torch_ops import group_norm, layer_norm
from .views import View, patch_of

Tensor = torch.Tensor


def _conv2d(build: Builder, named: Named, path: str) -> Any:
    x, weight, second, residual = named["x"], named["weight"], named["second"], named["residual"]
    if not isinstance(x, View):
        return None
    name = origin(named, "weight", path)
    y: View | None
    if x.is_map:
        y = build.map(build.conv2d(_beside(build, x.name, second), weight, named["bias"], named["stride"], name))
    elif second is None and x.channel == 1 and weight.shape[2:].numel() == named["stride"] == 1:
        y = build.product(x, weight, named["bias"], name)  # of pixels in any order, or of one, pooled
    else:
        return None
    if y is None or (residual is not None and not y.alike(residual)):
        return None
    y = y.on(build.activate(y.name, named["activation"]))
    return y if residual is None else y.on(build.plus(y.name, residual.name))


def _beside(build: Builder, x: str, second: View | None) -> str:
    return x if second is None else build.cat(x, second.name)


def _depthwise(build: Builder, named: Named, path: str) -> Any:
    if not is_map(named["x"]):
        return None
    x = build.repeated(named["x"].name, named["weight"])
    y = build.depthwise(x, named["weight"], named["bias"], named["stride"], origin(named, "weight", path))
    return build.map(build.activate(y, named["activation"]))


def _inverted_residual(build: Builder, named: Named, path: str) -> Any:
    if not is_map(named["x"]):
        return None
    y = x = named["x"].name
    if named["expand_w"] is not None:
        y = build.conv2d(x, named["expand_w"], named["expand_b"], 1, origin(named, "expand_w", path))
        y = build.activate(y, named["activation"])
    y = build.depthwise(y, named["depthwise_w"], named["depthwise_b"], named["stride"], origin(named, "depthwise_w", path))
    y = build.activate(y, named["activation"])
    y = build.conv2d(y, named["reduce_w"], named["reduce_b"], 1, origin(named, "reduce_w", path))
    return _with_moments(build, build.plus(y, x) if named["residual"] else y)


def _attention_block(build: Builder, named: Named, path: str) -> Any:
    if not is_map(named["x"]) or named["patch_size"] is None:
        return None
    x = named["x"].name
    y = build.norm("group_norm", x, named["norm_w"], named["norm_b"], named["eps"], origin(named, "norm_w", path))
    y = build.conv2d(y, named["qkv_w"], named["qkv_b"], 1, origin(named, "qkv_w", path))
    channels, height, width = build.size(y)
    y = build.add("separable_attention", (y,), ((channels - 1) // 2, height, width), f"{y}.attention", {"patch": _patch(named)})
    y = build.conv2d(y, named["out_w"], named["out_b"], 1, origin(named, "out_w", path))
    return _with_moments(build, build.plus(y, x))


def _feed_forward(build: Builder, named: Named, path: str) -> Any:
    if not is_map(named["x"]):
        return None
    x = named["x"].name
    kind = "group_norm" if named["norm"] == "group" else "layer_norm"
    y = build.norm(kind, x, named["norm_w"], named["norm_b"], named["eps"], origin(named, "norm_w", path))
    y = build.conv2d(y, named["fc1_w"], named["fc1_b"], 1, origin(named, "fc1_w", path))
    y = build.activate(y, named["activation"])
    y = build.conv2d(y, named["fc2_w"], named["fc2_b"], 1, origin(named, "fc2_w", path))
    return _with_moments(build, build.plus(y, x))


def _gemm(build: Builder, named: Named, path: str) -> Any:
    x, moments, second, residual = (named[name] for name in ("a", "moments", "second", "residual"))
    if not isinstance(x, View) or not x.whole or x.channel is None or x.channel != len(x.dims) - 1:
        return None
    if len(x.size) == 1 and (named["layer_norm"] or any(each is not None for each in (moments, second, residual))):
        return None
    if moments is not None and moments.of != x.name:
        return None
    if named["layer_norm"] or moments is not None:
        kind = "layer_norm" if named["layer_norm"] else "group_norm"
        x = x.on(build.norm(kind, x.name, None, None, named["eps"]))
    if second is not None:
        both = build.cat(x.name, second.name)
        x = x.on(both, build.size(both))
    y = build.product(x, named["weight"], named["bias"], origin(named, "weight", path))
    assert y is not None
    y = y.on(build.activate(y.name, named["activation"]))
    if residual is not None:
        y = y.on(build.plus(y.name, residual.name))
    return y, Moments(y.name)


def _patch_attention(build: Builder, named: Named, path: str) -> Any:
    if not is_map(named["qkv"]):
        return None
    qkv, heads = named["qkv"].name, named["heads"]
    channels, height, width = build.size(qkv)
    scale = named["scale"] if named["scale"] is not None else (channels // 3 // heads) ** -0.5
    settings = {"heads": heads, "patch": _patch(named), "scale": scale}
    return build.map(build.add("patch_attention", (qkv,), (channels // 3, height, width), f"{qkv}.attention", settings))


def _separable_attention(build: Builder, named: Named, path: str) -> Any:
    """Of a map, or of patches (B, C, phases, patches)."""
    qkv = named["qkv"]
    if not isinstance(qkv, View) or not qkv.whole or len(qkv.size) != 3 or len(qkv.dims) != 4 or qkv.channel != 1:
        return None
    if named["patch_size"] is not None and not qkv.is_map:
        return None
    patch = patch_of(qkv.size, *qkv.dims[2:]) if named["patch_size"] is None else _patch(named)
    if patch is None:
        return None
    size = ((qkv.size[0] - 1) // 2, *qkv.size[1:])
    return qkv.on(build.add("separable_attention", (qkv.name,), size, f"{qkv.name}.attention", {"patch": patch}), size)


def _attention(build: Builder, named: Named, path: str) -> Any:
    inputs, heads, residual = [named[name] for name in ("q", "k", "v")], named["heads"], named["residual"]
    mixed = any(named[name] is not None for name in ("mix_scores", "mix_weights", "mix_bias"))
    if not all(isinstance(each, View) and each.is_tokens for each in (*inputs, *([] if residual is None else [residual]))):
        return None
    if mixed and heads > MOST_MIXED_HEADS:
        return None
    (channels, height, width), (_, *of_keys), (values, *_) = (each.size for each in inputs)
    scale = named["scale"] if named["scale"] is not None else (channels // heads) ** -0.5
    weights = {name: named[name] for name in ("bias", "mix_scores", "mix_weights", "mix_bias")}
    names = tuple(each.name for each in inputs)
    settings = {"heads": heads, "scale": scale, "depth": channels // heads, "keys": of_keys[0] * of_keys[1]}
    y = build.add("attention", names, (values, height, width), f"{names[0]}.attention", settings, weights)
    return build.tokens(build.activate(y if residual is None else build.plus(residual.name, y), named["activation"]))


def _pool_mixer(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not is_map(x):
        return None
    name = origin(named, "scale", path)
    return build.map(build.add("pool_mixer", (x.name,), x.size, name, {}, {"scale": named["scale"]}))


def _resize(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not is_map(x):
        return None
    size, settings = (x.size[0], *named["output_size"]), {"align_corners": named["align_corners"]}
    return build.map(build.activate(build.add("resize", (x.name,), size, f"{x.name}.resize", settings), named["activation"]))


def _avg_pool(build: Builder, named: Named, path: str) -> Any:
    x = named["x"]
    if not is_map(x):
        return None
    y = x.name
    if named["moments"] is not None:
        if named["moments"].of != y:
            return None
        y = build.norm("group_norm", y, None, None, named["eps"])
    return build.vector(build.activate(build.pool(y), named["activation"]))


def _dynamic_relu(build: Builder, named: Named, path: str) -> Any:
    x, u = named["x"], named["u"]
    if not is_map(x) or not isinstance(u, View) or not u.is_vector:
        return None
    return build.map(build.add("dynamic_relu", (x.name, u.name), x.size, f"{x.name}.dynamic_relu"))


def _hard_gate(build: Builder, named: Named, path: str) -> Any:
    x, u = named["x"], named["u"]
    if not isinstance(x, View) or not x.alike(u):
        return None
    return x.on(build.add("hard_gate", (x.name, u.name), x.size, f"{x.name}.hard_gate"))


def _with_moments(build: Builder, y: str) -> tuple[View, Moments]:
    return build.map(y), Moments(y)


def _patch(named: Named) -> tuple[int, int]:
    patch = list(named["patch_size"])
    return (patch[0], patch[-1])


_ours = torch.ops.mvit_kernels
RULES: dict[Any, Callable[[Builder, Named, str], Any]] = {
    _ours.conv2d.default: _conv2d,
    _ours.depthwise_conv2d.default: _depthwise,
    _ours.inverted_residual.default: _inverted_residual,
    _ours.separable_attention_block.default: _attention_block,
    _ours.feed_forward.default: _feed_forward,
    _ours.gemm.default: _gemm,
    _ours.patch_attention.default: _patch_attention,
    _ours.separable_attention.default: _separable_attention,
    _ours.attention.default: _attention,
    _ours.pool_mixer.default: _pool_mixer,
    _ours.avg_pool.default: _avg_pool,
    _ours.resize.default: _resize,
    _ours.dynamic_relu.default: _dynamic_relu,
    _ours.hard_gate.default: _hard_gate,
    _ours.layer_norm.default: layer_norm,
    _ours.group_norm.default: group_norm,
}
