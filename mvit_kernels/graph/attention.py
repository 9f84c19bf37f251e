"""Attention that a network writes in several ops: products, sums and softmax, or `scaled_dot_product_attention`.

MobileViT's: softmax(scale Q K^T + bias) V among the pixels of a phase, or of all, with or without talking heads (arXiv 2003.02436: mixtures
of the scores of all heads, and of their softmax, by 1x1 convolutions). MobileViTv2's: relu(V) sum_n softmax_n(Q) K.

What lies on the way is no map, and torch makes it, for whoever else takes it. But it is known what it is: so the op at the end becomes one
node, and where that is all that took the others, nothing is left of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mvit_kernels.ops.attention import MOST_MIXED_HEADS

from .builder import Builder, Known, Named, number
from .views import IMAGES, Dim, Factor, View, patch_of, whole

Tensor = torch.Tensor


@dataclass(frozen=True)
class Scaled(Known):
    """factor times some of the channels of a map."""

    of: View
    factor: float


@dataclass(frozen=True)
class Scores(Known):
    """scale Q K^T + bias, or the softmax of it over keys; Q and K (..., pixels, channels of a head). mixtures: those of the node."""

    query: View
    key: View
    scale: float
    bias: Tensor | None = None
    softmax: bool = False
    mixtures: Mapping[str, Tensor | None] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.query.shape[:-1], self.key.shape[-2])


@dataclass(frozen=True)
class Weights(Known):
    """softmax(query) over the pixels in dimension `dim`; one channel."""

    query: View
    dim: int


@dataclass(frozen=True)
class Weighted(Known):
    """Keys times their weights, or what sums of those are: contexts."""

    key: View
    weights: Weights
    summed: bool = False


@dataclass(frozen=True)
class Rectified(Known):
    """relu of some of the channels of a map."""

    of: View


# --- MobileViT's ---


def matmul(build: Builder, named: Named, path: str) -> Any:
    a, b = named["self"], named.get("other", named.get("mat2"))
    if isinstance(a, Scores) and a.softmax and isinstance(b, View):
        return _attention(build, a, b)
    if isinstance(a, Tensor) and _scaled(b) is not None:
        a = _tokens(build, a)
    query, key = _scaled(a), _scaled(b)
    if query is None or key is None or len(key.of.dims) < 3:
        return None
    return _scores(query, key, [*range(len(key.of.dims) - 2), -1, -2])


def _tokens(build: Builder, x: Tensor) -> View | None:
    """Queries (1, heads, tokens, channels) that are the same for every image, or (1, tokens, channels)."""
    if not x.is_floating_point() or x.ndim not in (3, 4) or x.shape[0] != 1:
        return None
    count, channels = x.shape[-2:]
    heads = x[0].reshape(-1, count, channels)
    tokens = build.constant(heads.transpose(0, 1).flatten(1), "tokens")
    split = None if tokens is None else tokens.reshape([IMAGES, count, len(heads), channels])
    return None if split is None else split.permute([0, 2, 1, 3]).reshape([IMAGES, *x.shape[1:]])


def einsum(build: Builder, named: Named, path: str) -> Any:
    """Of queries and keys, "...id,...jd->...ij", or weights and values, "...ij,...jd->...id", with letters in any order but those of scores
    and weights."""
    operands, letters = named["tensors"], named["equation"].replace(" ", "").replace("->", ",").split(",")
    if len(operands) != 2 or len(letters) != 3 or "." in named["equation"] or any(len(set(each)) < len(each) for each in letters):
        return None
    (a, b), (first, second, result) = operands, letters
    lead = [each for each in first if each in second and each in result]
    summed = [each for each in first if each in second and each not in result]
    of_a, of_b = ([each for each in one if each not in other] for one, other in ((first, second), (second, first)))
    out = [*lead, *of_a, *of_b]
    if not len(summed) == len(of_a) == len(of_b) == 1 or sorted(result) != sorted(out):
        return None
    if isinstance(a, Scores) and isinstance(b, View):
        value = b.permute(second.index(each) for each in [*lead, *summed, *of_b])
        y = _attention(build, a, value) if a.softmax and list(first) == [*lead, *of_a, *summed] else None
        return None if y is None else y.permute(out.index(each) for each in result)
    query, key = _scaled(a), _scaled(b)
    if query is None or key is None or list(result) != out:
        return None
    query = replace(query, of=query.of.permute(first.index(each) for each in [*lead, *of_a, *summed]))
    return _scores(query, key, [second.index(each) for each in [*lead, *of_b, *summed]])


def scaled_dot_product_attention(build: Builder, named: Named, path: str) -> Any:
    query, key, value, bias = (named[name] for name in ("query", "key", "value", "attn_mask"))
    if not all(isinstance(each, View) and len(each.dims) >= 3 for each in (query, key, value)) or named["is_causal"] or named["enable_gqa"]:
        return None
    scale = named["scale"] if named["scale"] is not None else query.shape[-1] ** -0.5
    scores = _scores(Scaled(query, scale), Scaled(key, 1.0), range(len(key.dims)))
    if bias is not None and scores is not None:
        scores = _plus(scores, bias)
    return None if scores is None or named["dropout_p"] else _attention(build, scores, value)


def scale(build: Builder, named: Named, path: str) -> Any:
    """A number times scores, or times queries or keys that are some of a map's channels."""
    x, factor = named["self"], number(named["other"])
    if factor is None:
        return None
    if isinstance(x, Scores) and x.bias is None and not x.softmax and not x.mixtures:
        return replace(x, scale=x.scale * factor)
    return Scaled(x, factor) if isinstance(x, View) and not x.whole else None


def divide(build: Builder, named: Named, path: str) -> Any:
    divisor = number(named["other"])
    return scale(build, {**named, "other": 1.0 / divisor}, path) if divisor else None


def bias(build: Builder, named: Named, path: str) -> Any:
    x, other = named["self"], named["other"]
    return _plus(x, other) if isinstance(x, Scores) and named.get("alpha", 1) == 1 else None


def mix(build: Builder, named: Named, path: str) -> Any:
    """Talking heads. What is added to all scores of a head alike softmax takes away again."""
    x, weight, shift = (named[name] for name in ("input", "weight", "bias"))
    if not isinstance(x, Scores) or not isinstance(weight, Tensor) or x.query.shape[0] != IMAGES or len(x.query.dims) != 4:
        return None
    heads = x.query.shape[1]
    if [list(named[name]) for name in ("stride", "padding")] != [[1, 1], [0, 0]]:
        return None
    if weight.shape != (heads, heads, 1, 1) or heads > MOST_MIXED_HEADS or len(x.query.dims[0]) != 1:
        return None
    before, after = "mix_scores" in x.mixtures, "mix_weights" in x.mixtures
    weight = weight.flatten(1)
    if x.softmax:
        return None if after else replace(x, mixtures={**x.mixtures, "mix_weights": weight, "mix_bias": shift})
    bias = _bias(x, heads)
    if before or (bias is None and x.bias is not None):
        return None
    bias = None if bias is None else torch.einsum("hg,gnm->hnm", weight.double(), bias.double()).float()
    return replace(x, bias=bias, mixtures={"mix_scores": weight})


def softmax(build: Builder, named: Named, path: str) -> Any:
    x, dim = named["self"], named["dim"]
    if named["dtype"] not in (None, torch.float32):
        return None
    if isinstance(x, Scores) and not x.softmax and dim in (-1, len(x.query.dims) - 1):
        return replace(x, softmax=True)
    if not isinstance(x, View) or x.channels > 1 or len(x.size) != 3 or any(factor.axis == "b" for factor in x.dims[dim]):
        return None
    return Weights(x, dim % len(x.dims))


def same(build: Builder, named: Named, path: str) -> Any:
    """Of all that is known, in whatever file: in evaluation, in float32."""
    x = named["self"] if "self" in named else named["input"]
    return x if isinstance(x, Known) and not named.get("train") and named.get("dtype") in (None, torch.float32) else None


def _scaled(x: Any) -> Scaled | None:
    return x if isinstance(x, Scaled) else Scaled(x, 1.0) if isinstance(x, View) else None


def _scores(query: Scaled, key: Scaled, order: Iterable[int]) -> Scores | None:
    """Where channels of a head meet, and both have the same heads, phases and images; order: of the dimensions of keys."""
    scale, keys = query.factor * key.factor, key.of.permute(order)
    (lead, of_query), (others, of_key) = _heads(query.of), _heads(keys)
    return Scores(query.of, keys, scale) if of_query is not None and (lead, of_query) == (others, of_key) else None


def _plus(scores: Scores, bias: Any) -> Scores | None:
    if not isinstance(bias, Tensor) or not bias.is_floating_point() or scores.bias is not None or scores.softmax:
        return None
    shape = scores.shape[-bias.ndim :] if bias.ndim else ()
    if len(shape) < bias.ndim or any(size not in (1, each) for size, each in zip(bias.shape, shape, strict=True)):
        return None  # of more scores than there were
    return replace(scores, bias=bias)


def _heads(x: View) -> tuple[list[Dim], int | None]:
    """The dimensions in front of pixels and the channels of a head, with how many heads alone; and how many channels. None if there are no
    such dimensions."""
    if len(x.dims) < 2:
        return [], None
    *lead, tokens, channels = x.alone(x.name).dims
    count = math.prod(factor.size for factor in channels)
    heads = [factor for dim in lead for factor in dim if factor.axis == "c"]
    right = (
        len(x.size) == 3
        and channels == (() if count == 1 else (Factor("c", 1, count),))
        and all(factor.axis in "hw" for factor in tokens)
        and heads == ([] if x.channels == count else [Factor("c", count, x.channels // count)])
        and sum(factor.axis == "b" for dim in lead for factor in dim) == 1
    )
    return [tuple(replace(each, step=0) if each.axis == "c" else each for each in dim) for dim in lead], count if right else None


def _attention(build: Builder, scores: Scores, value: View) -> View | None:
    """One node, seen as (..., pixels, channels of a head)."""
    query, key = scores.query, scores.key
    (lead, depth), (others, of_value) = _heads(query), _heads(value)
    if depth is None or of_value is None or lead != others or key.dims[-2] != value.dims[-2] or key.size[1:] != value.size[1:]:
        return None
    heads = query.channels // depth
    settings: dict[str, Any] = {"heads": heads, "scale": scores.scale}
    phases = _pixels(lead)
    patch = patch_of(query.size, phases, query.dims[-2])
    one_map = query.size[1:] == key.size[1:] and depth == of_value and scores.bias is None and not scores.mixtures
    size = (value.channels, *query.size[1:])
    thirds = query.channels == value.channels and _side_by_side(query, key, value)
    if patch is not None and one_map and (phases or thirds) and patch_of(key.size, phases, key.dims[-2]) is not None:
        qkv = query.name if thirds else _cat(build, query, key, value)
        if qkv is None:
            return None
        name = build.add("patch_attention", (qkv,), size, f"{qkv}.attention", {**settings, "patch": patch})
    elif not phases:
        parts = [_part(build, each) for each in (query, key, value)]
        weight = _bias(scores, heads)
        if None in parts or (weight is None and scores.bias is not None):
            return None
        settings |= {"depth": depth, "keys": math.prod(key.size[1:])}
        name = build.add("attention", tuple(map(str, parts)), size, f"{parts[0]}.attention", settings, {"bias": weight, **scores.mixtures})
    else:
        return None
    channels = Factor("c", of_value, heads)
    dims = [tuple(channels if each.axis == "c" else each for each in dim) for dim in query.dims[:-2]]
    return View(name, size, (*dims, query.dims[-2], value.alone(name).dims[-1]))


def _bias(scores: Scores, heads: int) -> Tensor | None:
    """(H, N, M), where there is one and pixels are in order."""
    query, key, bias = scores.query, scores.key, scores.bias
    if bias is None:
        return None
    in_order = all(each.dims[-2] == whole(each.name, each.size, "hw").dims[0] for each in (query, key))
    while bias.ndim > 3 and bias.shape[0] == 1:
        bias = bias[0]
    if not in_order or bias.ndim > 3 or query.shape[:-2] not in ((IMAGES, heads), (IMAGES,)):
        return None
    return bias.float().expand(heads, query.shape[-2], key.shape[-2]).contiguous()


# --- MobileViTv2's ---


def multiply(build: Builder, named: Named, path: str) -> Any:
    for x, other in ((named["self"], named["other"]), (named["other"], named["self"])):
        if isinstance(other, Weights) and isinstance(x, View):
            weighted = Weighted(x, other)
            return weighted if _fits(x, weighted) else None
        value = _rectified(build, x)
        if isinstance(other, Weighted) and other.summed and value is not None:
            return _separable_attention(build, other, value)
    return scale(build, named, path)


def total(build: Builder, named: Named, path: str) -> Any:
    """Of weighted keys, over what the weights are a softmax over."""
    x = named["self"]
    if not isinstance(x, Weighted) or x.summed or not named["keepdim"] or named["dtype"] is not None:
        return None
    count = len(x.key.dims)
    return replace(x, summed=True) if [each % count for each in named["dim"] or ()] == [x.weights.dim] else None


def expand(build: Builder, named: Named, path: str) -> Any:
    """Of contexts, to all pixels."""
    x = named["self"]
    return x if isinstance(x, Weighted) and x.summed and named["_shape"] == x.key.shape else None


def relu(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    return Rectified(x) if isinstance(x, View) and not x.whole else None


def _fits(x: View, weighted: Weighted) -> bool:
    """Whether a map's channels are a dimension, and the others those of the weights, which are not a softmax over channels."""
    query, channels = weighted.weights.query, (Factor("c", 1, x.channels),) if x.channels > 1 else ()
    if x.size[1:] != query.size[1:] or len(x.dims) != len(query.dims):
        return False
    different = [i for i, dim in enumerate(x.dims) if dim != query.dims[i]]
    return weighted.weights.dim not in different and [x.dims[i] for i in different] in ([channels], [])


def _rectified(build: Builder, x: Any) -> View | None:
    """What it is the relu of."""
    if isinstance(x, Rectified):
        return x.of
    node = build.node(x.name) if isinstance(x, View) and x.whole else None
    if node is None or node.kind != "activation" or node.settings["function"] != "relu":
        return None
    return replace(x, name=node.inputs[0])


def _separable_attention(build: Builder, context: Weighted, value: View) -> View | None:
    query, key = context.weights.query, context.key
    pixels = [dim for i, dim in enumerate(query.dims) if i != context.weights.dim]
    patch = patch_of(query.size, _pixels(pixels), query.dims[context.weights.dim])
    if patch is None or (value.dims, value.size[1:]) != (key.dims, key.size[1:]):
        return None
    qkv = query.name if _side_by_side(query, key, value) else _cat(build, query, key, value)
    if qkv is None:
        return None
    size = (value.channels, *value.size[1:])
    return View(build.add("separable_attention", (qkv,), size, f"{qkv}.attention", {"patch": patch}), size, value.dims)


# --- of both ---


def _pixels(dims: Iterable[Dim]) -> list[Factor]:
    return [factor for dim in dims for factor in dim if factor.axis in "hw"]


def _side_by_side(*views: View) -> bool:
    """Whether they are all channels of one map, in this order."""
    results = {(each.name, each.size) for each in views}
    return len(results) == 1 and [index for each in views for index in each.indices] == list(range(views[0].size[0]))


def _cat(build: Builder, *views: View) -> str | None:
    """One map of the channels of several."""
    first, *others = [_part(build, each) for each in views]
    for other in others:
        if first is None or other is None:
            return None
        first = build.cat(first, other)
    return first


def _part(build: Builder, x: View) -> str | None:
    """A map of just the channels of a view. None where it would be a copy."""
    return x.name if x.whole else build.rows(x.name, x.indices)


_aten = torch.ops.aten
RULES: dict[Any, Callable[[Builder, Named, str], Any]] = {
    _aten.matmul.default: matmul,
    _aten.bmm.default: matmul,
    _aten.einsum.default: einsum,
    _aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
    _aten.mul.Tensor: multiply,
    _aten.div.Tensor: divide,
    _aten.add.Tensor: bias,
    _aten.conv2d.default: mix,
    _aten.softmax.int: softmax,
    _aten.to.dtype: same,
    _aten.dropout.default: same,
    _aten.contiguous.default: same,
    _aten.clone.default: same,
    _aten.sum.dim_IntList: total,
    _aten.expand.default: expand,
    _aten.expand_as.default: expand,
    _aten.relu.default: relu,
}
