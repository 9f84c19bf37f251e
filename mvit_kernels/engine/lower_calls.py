"""From nodes to calls of ops on tensors of one device, which a CUDA graph holds (`device_plan.py`): the blocks of `blocks.py`, one op each.

Maps are (B, C, H, W) in channels_last memory, vectors (B, C); any number of images. Ops choose kernels by the device of their tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mvit_kernels import ops
from mvit_kernels.graph import Node, Program, evaluate, integers
from mvit_kernels.ops.moments import moments_of
from mvit_kernels.ops.qnorm import pieces_of_sums

from .blocks import Blocks, activation_of, find_qattention, find_qdynamic, find_qinverted, find_qmlp, find_qnormed
from .steps import Value

Tensor = torch.Tensor


@dataclass(frozen=True)
class Call:
    """One op: `run` takes the results that `inputs` names and gives that of the last of `nodes`, and its moments after it if `collects`,
    which others take by that name and ".moments": of an int16 stream its sums."""

    op: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    run: Callable[..., Any]
    result: Value
    collects: bool = False
    macs: int = 0  # for one image, as the bytes
    bytes: int = 0  # read and written at least, weights included
    weight_bytes: int = 0
    reason: str | None = None  # why torch's kernels run it, where it is no op of ours
    foreign: bool = False  # an op of which nobody knows here whether a graph can hold it

    @property
    def name(self) -> str:
        return self.nodes[-1]


def lower_calls(program: Program, dtype: torch.dtype, device: torch.device) -> list[Call]:
    """The calls of a float or an integer program; floats are stored as dtype, weights are on the device.

    Weights are normal tensors whatever mode the caller is in: those of inference mode have no version, and would be packed in every call
    and every replay of a graph.
    """
    with torch.inference_mode(False), torch.no_grad():
        return _Calls(program, dtype, device).lowered()


class _Calls(Blocks):
    def __init__(self, program: Program, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(program)
        for node in program:
            for block, find in _FINDERS.items():
                nodes = None if node.name in self.grouped else find(self, node)
                if nodes is not None:
                    self.group(block, nodes)
        self.dtype, self.device = dtype, device
        self.calls: list[Call] = []
        self.values: dict[str, Value] = {}
        self.kept: dict[tuple[int, torch.dtype | None], tuple[Tensor, Tensor]] = {}
        self.normed = {node.inputs[0] for node in program if self.takes_moments(node)}
        self.collected: set[str] = set()

    def lowered(self) -> list[Call]:
        for node in self.program:
            if node.kind == "input":
                self.values[node.name] = Value(node.size, self.dtype, channels_last=False)
            elif node.name in self.groups:
                block, nodes = self.groups[node.name]
                getattr(self, block)(*nodes)
            elif node.name not in self.grouped and node.name not in self.absorbed:
                emit = getattr(self, f"_{node.kind}", None)
                if emit is not None:
                    emit(node)
                elif node.kind in integers.KINDS:
                    self.integers(node)
                else:
                    self.by_torch(node)
        return self.calls

    # --- weights and results ---

    def weight(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """On the device; the same tensor each time."""
        key = id(x), dtype
        if key not in self.kept:
            weight = x.detach().to(self.device, dtype).contiguous()
            self.kept[key] = x, weight.clone() if weight.is_inference() else weight
        return self.kept[key][1]

    def parameter(self, x: Tensor | None, count: int = 0, fill: float = 0.0) -> Tensor:
        """A vector in float32, by default of `count` times the same number."""
        return torch.full((count,), fill, device=self.device) if x is None else self.weight(x, torch.float32)

    def optional(self, node: Node) -> Tensor | None:
        bias = node.weights.get("bias")
        return None if bias is None else self.weight(bias, torch.float32)

    def matrix(self, node: Node) -> Tensor:
        return self.weight(node.weights["weight"], self.dtype)

    def add(
        self, op: str, nodes: tuple[Node, ...], inputs: tuple[str, ...], run: Callable[..., Any], reason: str | None = None,
        dtype: torch.dtype | None = None, collects: bool = False, foreign: bool = False, reads: bool = True,
    ) -> None:  # fmt: skip
        """reads: whether it does, or takes of its inputs how many images there are."""
        last = nodes[-1]
        value = self.values[last.name] = Value(last.size, dtype or self.dtype)
        weights = [weight for node in nodes for weight in node.weights.values()]
        sizes = [x.numel() * (self.dtype.itemsize if x.is_floating_point() else x.element_size()) for x in weights]
        taken = sum(self.values[name].bytes for name in set(inputs) if name in self.values) if reads else 0
        touched = value.bytes + taken + sum(sizes)
        names, macs = tuple(node.name for node in nodes), sum(node.macs() for node in nodes)
        self.calls.append(Call(op, names, inputs, run, value, collects, macs, touched, sum(sizes), reason, foreign))
        if collects:
            self.collected.add(last.name)

    def with_moments(self, norm: Node) -> tuple[str, ...]:
        """What a norm reads: a map, and its moments if its producer collected them."""
        (source,) = norm.inputs
        return (source, f"{source}.moments") if self.takes_moments(norm) and source in self.collected else (source,)

    def takes_moments(self, node: Node) -> bool:
        """Whether it is a norm of images that takes what is known of them."""
        if node.kind == "qnorm":
            return bool(node.settings["norm"] == "group")
        return node.kind == "group_norm" and node.name in self.grouped | self.absorbed

    # --- blocks ---

    def attention(self, norm: Node, conv: Node, context: Node, key: Node, gate: Node, out: Node) -> None:
        dim, eps, patch = norm.size[0], norm.settings["eps"], context.settings["patch"]
        first, keys = conv.weights["weight"].flatten(1), key.weights["weight"].flatten(1)
        bias = conv.weights["bias"]
        key_bias = key.weights.get("bias", bias.new_zeros(dim))
        qkv_w = self.weight(torch.cat([first[:1], keys, first[1:]]), self.dtype)
        qkv_b = self.weight(torch.cat([bias[:1], key_bias, bias[1:]]), torch.float32)
        one, zero = self.parameter(None, dim, 1.0), self.parameter(None, dim)
        out_w, out_b = self.matrix(out).flatten(1), self.parameter(out.weights.get("bias"), dim)

        collects = out.name in self.normed

        def run(x: Tensor, moments: Tensor | None = None) -> Any:
            return ops.separable_attention_block(
                x, one, zero, qkv_w, qkv_b, out_w, out_b, eps, patch_size=patch, moments=moments, collect=collects
            )  # fmt: skip

        nodes = norm, conv, context, key, gate, out
        self.add("separable_attention_block", nodes, self.with_moments(norm), run, collects=collects)

    def mlp(self, norm: Node, first: Node, second: Node) -> None:
        dim, hidden, eps = norm.size[0], first.size[0], norm.settings["eps"]
        kind, activation = "layer" if norm.kind == "layer_norm" else "group", _or_none(activation_of(first))
        one, zero = self.parameter(None, dim, 1.0), self.parameter(None, dim)
        weights = (
            one, zero, self.matrix(first), self.parameter(first.weights.get("bias"), hidden), self.matrix(second),
            self.parameter(second.weights.get("bias"), dim),
        )  # fmt: skip
        collects = second.name in self.normed

        def run(x: Tensor, moments: Tensor | None = None) -> Any:
            return ops.feed_forward(x, *weights, eps, norm=kind, activation=activation, moments=moments, collect=collects)

        self.add("feed_forward", (norm, first, second), self.with_moments(norm), run, collects=collects)

    def inverted(self, *nodes: Node) -> None:
        if any("dynamic" in node.settings for node in nodes):  # which no kernel has inside of the block
            for node in nodes:
                (self._depthwise_conv2d if node.kind == "depthwise_conv2d" else self._conv2d)(node)
            return
        expand, depthwise, reduce = nodes[0] if len(nodes) == 3 else None, nodes[-2], nodes[-1]
        hidden, stride = depthwise.size[0], depthwise.settings["stride"]
        residual, activation = "residual" in reduce.settings, _or_none(activation_of(depthwise))
        weights = (
            None if expand is None else self.matrix(expand),
            None if expand is None else self.parameter(expand.weights.get("bias"), hidden),
            self.matrix(depthwise), self.parameter(depthwise.weights.get("bias"), hidden), self.matrix(reduce), self.optional(reduce),
        )  # fmt: skip

        collects = reduce.name in self.normed

        def run(x: Tensor) -> Any:
            return ops.inverted_residual(x, *weights, stride=stride, residual=residual, activation=activation, collect=collects)

        self.add("inverted_residual", nodes, nodes[0].inputs[:1], run, collects=collects)

    def qinverted(self, *nodes: Node) -> None:
        """In one launch where that is faster, which depends on the number of images, else in three."""
        expand, depthwise, reduce = (integers.prepared(self.program, node, None).handle for node in nodes)
        block = ops.prepare_qinverted_residual(expand, depthwise, reduce)

        def run(x: Tensor, residual: Tensor | None = None) -> Tensor:
            return block(x, residual) if block.pays(x) else reduce(depthwise(expand(x)), residual=residual)

        self.add("qinverted_residual", nodes, (*nodes[0].inputs, *nodes[-1].inputs[1:]), run, dtype=_dtype_of(nodes[-1]))

    def qattention(self, *nodes: Node) -> None:
        self.half("qseparable_attention_block", ops.prepare_qseparable_attention_block, nodes)

    def qmlp(self, *nodes: Node) -> None:
        self.half("qfeed_forward", ops.prepare_qfeed_forward, nodes)

    def half(self, op: str, prepare: Callable[..., Any], nodes: tuple[Node, ...]) -> None:
        """Of a transformer layer, on an int16 stream."""
        block = prepare(*(integers.prepared(self.program, node, None).handle for node in nodes))
        collects = nodes[-1].name in self.normed

        def run(x: Tensor, sums: Tensor | None = None) -> Any:
            return block(x, sums, collect=collects)

        self.add(op, nodes, self.with_moments(nodes[0]), run, dtype=torch.int16, collects=collects)

    def qnormed(self, norm: Node, node: Node) -> None:
        norm_handle, layer = (integers.prepared(self.program, each, None).handle for each in (norm, node))
        product, by_image = ops.QNormGemm.of(norm_handle, layer), norm.settings["norm"] == "group"

        def run(x: Tensor, sums: Tensor | None = None) -> Tensor:
            rows = _rows(x)
            if by_image and sums is None:
                sums = pieces_of_sums(rows, x.shape[0])
            return _map(product(rows, sums), x)

        self.add("qnorm_gemm", (norm, node), self.with_moments(norm), run, dtype=torch.uint8)

    def qdynamic(self, product: Node, relu: Node, to_bytes: Node) -> None:
        settings = to_bytes.settings
        run = ops.prepare_qconv2d_dynamic_relu(
            integers.prepared(self.program, product, None).handle, out_scale=settings["scale"], out_zero_point=settings["zero_point"],
            out_bits=settings["bits"],
        )  # fmt: skip
        source = self.unrepeated(product)[0] if product.kind == "qdepthwise_conv2d" else product.inputs[0]
        self.add("qconv2d_dynamic_relu", (product, relu, to_bytes), (source, relu.inputs[1]), run, dtype=torch.uint8)

    def attended(self, node: Node, *behind: Node) -> None:
        """Attention with the sum, and the activation of that, behind it."""
        heads, scale, last = node.settings["heads"], node.settings["scale"], (node, *behind)[-1]
        mixtures: dict[str, Any] = {name: self.weight(value, torch.float32) for name, value in node.weights.items()}
        added = tuple(name for name in last.inputs if name != node.name) if behind else ()
        activation = _or_none(activation_of(last))

        def run(*inputs: Tensor) -> Tensor:
            q, k, v, *residual = (_channels_last(x).flatten(1, 2) for x in inputs)
            y = ops.attention(
                q, k, v, heads, scale=scale, **mixtures, residual=residual[0] if residual else None, activation=activation
            )  # fmt: skip
            return y.unflatten(1, inputs[0].shape[2:]).movedim(-1, 1)

        self.add("attention", (node, *behind), (*node.inputs, *added), run)

    def resized(self, node: Node, *behind: Node) -> None:
        (_, height, width), corners, activation = node.size, node.settings["align_corners"], _function_of(behind)
        self.add(
            "resize", (node, *behind), node.inputs,
            lambda x: ops.resize(x, (height, width), align_corners=corners, activation=activation),
        )  # fmt: skip

    def pooled(self, *nodes: Node) -> None:
        """A mean over pixels, with the GroupNorm in front of it, which is then no map of its own, and the activation behind it."""
        norm = nodes[0] if nodes[0].kind == "group_norm" else None
        pool, activation = nodes[0 if norm is None else 1], _function_of(nodes)
        source = pool.inputs if norm is None else self.with_moments(norm)

        def run(x: Tensor, moments: Tensor | None = None) -> Tensor:
            if norm is None:
                return ops.avg_pool(x, activation=activation)
            if moments is None:
                moments = moments_of(_rows(x), x.shape[0])
            return ops.avg_pool(x, moments=moments, eps=norm.settings["eps"], activation=activation)

        self.add("avg_pool", nodes, source, run)

    def joined(self, cat: Node, node: Node) -> None:
        """A linear map of two vectors side by side, which it takes from where they are."""
        if node.kind == "qlinear":
            weights = {**node.weights, "weight": node.weights["weight"][:, :, None, None]}
            more = {"stride": 1, "second": True, "second_channels": self.program[cat.inputs[1]].size[0]}
            product = integers.prepare(replace(node, kind="qconv2d", settings={**node.settings, **more}, weights=weights), None)
            self.add(
                node.kind, (cat, node), cat.inputs,
                lambda a, b: product(a[:, :, None, None], b[:, :, None, None]).flatten(1), dtype=_dtype_of(node),
            )  # fmt: skip
        else:
            weight, bias, activation = self.matrix(node), self.optional(node), _or_none(activation_of(node))
            self.add("gemm", (cat, node), cat.inputs, lambda a, b: ops.gemm(a, weight, bias, second=b, activation=activation))

    # --- single nodes ---

    def _conv2d(self, node: Node) -> None:
        norm = self.program[node.inputs[0]]
        if norm.name in self.absorbed:
            return self.product(norm, node)
        if "dynamic" in node.settings:
            return self.dynamic(node, node.inputs)
        weight, bias, stride, activation = self.matrix(node), self.optional(node), node.settings["stride"], _or_none(activation_of(node))
        second, residual = "second" in node.settings, "residual" in node.settings

        def run(x: Tensor, *more: Tensor) -> Any:
            beside, added = more[0] if second else None, more[-1] if residual else None
            return ops.conv2d(x, weight, bias, second=beside, stride=stride, activation=activation, residual=added)

        self.add("conv2d", (node,), node.inputs, run)

    def dynamic(self, node: Node, inputs: tuple[str, ...]) -> None:
        """A convolution with a dynamic ReLU by its last input."""
        weight, bias, stride = self.matrix(node), self.optional(node), node.settings["stride"]
        self.add("conv2d_dynamic_relu", (node,), inputs, lambda x, u: ops.conv2d_dynamic_relu(x, weight, bias, u, stride=stride))

    def product(self, norm: Node, node: Node) -> None:
        """A 1x1 convolution that does the norm before it while it loads its rows."""
        weight, bias, activation = self.matrix(node).flatten(1), self.optional(node), _or_none(activation_of(node))
        eps, by_pixel, residual = norm.settings["eps"], norm.kind == "layer_norm", "residual" in node.settings
        dynamic = "dynamic" in node.settings
        source = self.with_moments(norm)

        def run(x: Tensor, *more: Tensor) -> Any:
            rows = _rows(x)
            norms: dict[str, Any] = {"layer_norm": True}
            if not by_pixel:
                norms = {"moments": more[0] if len(source) == 2 else moments_of(rows, x.shape[0])}
            added = _rows(more[-1]) if residual else None
            y: Any = ops.gemm(rows, weight, bias, **norms, eps=eps, activation=activation, residual=added)
            return ops.dynamic_relu(_map(y, x), more[-1]) if dynamic else _map(y, x)

        self.add("gemm", (norm, node), (*source, *node.inputs[1:]), run)

    def _constant(self, node: Node) -> None:
        value, size = self.weight(node.weights["value"], self.dtype), node.size
        (source,) = (each.name for each in self.program if each.kind == "input")
        if all(user and self.program[user].kind == "attention" for user in self.users[node.name]):  # which takes any strides
            value = value.movedim(0, -1).contiguous().movedim(-1, 0)
            self.add(node.kind, (node,), (source,), lambda x: value.expand(x.shape[0], *size), "a view: nothing runs", reads=False)
            return
        memory = torch.channels_last if value.ndim == 3 else torch.contiguous_format
        self.add(
            node.kind, (node,), (source,),
            lambda x: value.expand(x.shape[0], *size).contiguous(memory_format=memory), _by_torch(node), reads=False,
        )  # fmt: skip

    def _linear(self, node: Node) -> None:
        weight, bias, activation = self.matrix(node), self.optional(node), _or_none(activation_of(node))
        self.add("gemm", (node,), node.inputs, lambda x: ops.gemm(x, weight, bias, activation=activation))

    def _depthwise_conv2d(self, node: Node) -> None:
        weight, bias, stride = self.matrix(node), self.optional(node), node.settings["stride"]
        activation, source = _or_none(activation_of(node)), self.unrepeated(node)
        if "dynamic" in node.settings:
            return self.dynamic(node, (source[0], node.inputs[-1]))
        self.add(
            "depthwise_conv2d", (node,), source,
            lambda x: ops.depthwise_conv2d(x, weight, bias, stride=stride, activation=activation),
        )  # fmt: skip

    def _qdepthwise_conv2d(self, node: Node) -> None:
        self.integers(node, self.unrepeated(node))

    def unrepeated(self, node: Node) -> tuple[str, ...]:
        """What a depthwise convolution reads."""
        source = self.program[node.inputs[0]]
        return source.inputs if self.is_repeated_in_place(source) else node.inputs

    def _repeat(self, node: Node) -> None:
        if not self.is_repeated_in_place(node):
            times = node.settings["times"]
            dtype = self.values[node.inputs[0]].dtype
            # Channels side by side stay so, and it is one launch.
            self.add(
                node.kind, (node,), node.inputs, lambda x: _channels_last(x).repeat_interleave(times, dim=-1).movedim(-1, 1),
                _by_torch(node), dtype,
            )  # fmt: skip

    def is_repeated_in_place(self, node: Node) -> bool:
        """Whether all who take repeated channels are depthwise convolutions, which have several filters for each channel."""
        kinds = "depthwise_conv2d", "qdepthwise_conv2d"
        return node.kind == "repeat" and all(user and self.program[user].kind in kinds for user in self.users[node.name])

    def _attention(self, node: Node) -> None:
        self.attended(node)

    def _resize(self, node: Node) -> None:
        self.resized(node)

    def _avg_pool(self, node: Node) -> None:
        self.pooled(node)

    def _dynamic_relu(self, node: Node) -> None:
        self.add(node.kind, (node,), node.inputs, ops.dynamic_relu)

    def _hard_gate(self, node: Node) -> None:
        """Element by element in the order of memory."""

        def run(x: Tensor, u: Tensor) -> Tensor:
            return ops.hard_gate(_channels_last(x), _channels_last(u)).movedim(-1, 1) if x.ndim == 4 else ops.hard_gate(x, u)

        self.add(node.kind, (node,), node.inputs, run)

    def _pool_mixer(self, node: Node) -> None:
        scale = self.parameter(node.weights["scale"])
        self.add(node.kind, (node,), node.inputs, lambda x: ops.pool_mixer(x, scale))

    def _patch_attention(self, node: Node) -> None:
        heads, patch, scale = node.settings["heads"], node.settings["patch"], node.settings["scale"]
        self.add("patch_attention", (node,), node.inputs, lambda x: ops.patch_attention(x, heads, patch, scale))

    def _separable_attention(self, node: Node) -> None:
        patch = node.settings["patch"]
        self.add("separable_attention", (node,), node.inputs, lambda x: ops.separable_attention(x, patch))

    def _group_norm(self, node: Node) -> None:
        weight, bias, eps = *self.scale_and_shift(node), node.settings["eps"]
        self.add(node.kind, (node,), node.inputs, lambda x: ops.group_norm(x, weight, bias, eps))

    def _layer_norm(self, node: Node) -> None:
        weight, bias, eps = *self.scale_and_shift(node), node.settings["eps"]
        self.add(node.kind, (node,), node.inputs, lambda x: ops.layer_norm(x.movedim(1, -1), weight, bias, eps).movedim(-1, 1))

    def scale_and_shift(self, node: Node) -> tuple[Tensor, Tensor]:
        channels = node.size[0]
        return self.parameter(node.weights.get("weight"), channels, 1.0), self.parameter(node.weights.get("bias"), channels)

    def _qnorm(self, node: Node) -> None:
        self.integers(node, self.with_moments(node))

    def integers(self, node: Node, inputs: tuple[str, ...] | None = None) -> None:
        run = integers.prepared(self.program, node, None)
        self.add(node.kind, (node,), inputs or node.inputs, run, dtype=_dtype_of(node))

    def _pixel(self, node: Node) -> None:
        index, dtype = node.settings["index"], self.values[node.inputs[0]].dtype
        self.add(node.kind, (node,), node.inputs, lambda x: x.flatten(2)[:, :, index], "a view: nothing runs", dtype)

    def by_torch(self, node: Node) -> None:
        """By torch's kernels: what is memory traffic alone, as sums in networks of others, and what we have no kernel for."""
        weights = {name: self.weight(x, self.dtype if x.is_floating_point() else None) for name, x in node.weights.items()}
        moved = replace(node, weights=weights)
        target = node.settings.get("target")
        foreign = target is not None
        name, reason = (str(target), "no kernel for it") if foreign else (node.kind, _by_torch(node))
        self.add(name, (node,), node.inputs, lambda *inputs: evaluate(moved, list(inputs)), reason, foreign=foreign)


_ONE_PASS = ("add", "activation", "cat", "constant", "repeat")  # each of which reads and writes once: torch's are at the floor, too


def _by_torch(node: Node) -> str:
    """Why torch's kernels run a node that we know."""
    floor = ", at its floor" if node.kind in _ONE_PASS and "activation" not in node.settings else ""
    return f"torch's kernel for {node.kind}{floor}"


def _dtype_of(node: Node) -> torch.dtype:
    """Of the result of an integer node."""
    return integers.DTYPES[node.settings.get("out", "float32" if node.kind == "dequantize" else "uint8")]


def _find_attended(low: Blocks, node: Node) -> tuple[Node, ...] | None:
    """Attention, and the sum with another map that is all that takes it."""
    total = low.only_user(node.name) if node.kind == "attention" else None
    if total is None or total.kind != "add" or total.name in low.grouped or total.inputs[0] == total.inputs[1]:
        return None
    return node, total


def _find_joined(low: Blocks, node: Node) -> tuple[Node, ...] | None:
    product = low.only_user(node.name) if node.kind == "cat" and len(node.size) == 1 else None
    return (node, product) if product is not None and product.kind in ("linear", "qlinear") else None


def _find_resized(low: Blocks, node: Node) -> tuple[Node, ...] | None:
    behind = low.only_user(node.name) if node.kind == "resize" else None
    return (node, behind) if behind is not None and behind.kind == "activation" else None


def _find_pooled(low: Blocks, node: Node) -> tuple[Node, ...] | None:
    if node.kind == "group_norm" and not node.weights:
        pool = low.only_user(node.name)
        return (node, *(_find_pooled(low, pool) or (pool,))) if pool is not None and pool.kind == "avg_pool" else None
    behind = low.only_user(node.name) if node.kind == "avg_pool" else None
    return (node, behind) if behind is not None and behind.kind == "activation" else None


_FINDERS: dict[str, Callable[[Blocks, Node], tuple[Node, ...] | None]] = {
    "qinverted": find_qinverted, "qattention": find_qattention, "qmlp": find_qmlp, "qnormed": find_qnormed, "qdynamic": find_qdynamic,
    "attended": _find_attended, "joined": _find_joined, "resized": _find_resized, "pooled": _find_pooled,
}  # fmt: skip


def _function_of(nodes: tuple[Node, ...]) -> str | None:
    """Of the activation that nodes end in."""
    return nodes[-1].settings["function"] if nodes and nodes[-1].kind == "activation" else None


def _or_none(activation: str) -> str | None:
    return None if activation == "none" else activation


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B H W, C), in place where it is channels_last; a vector is a row."""
    return _channels_last(x).reshape(-1, x.shape[1]) if x.ndim == 4 else x


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def _map(rows: Tensor, like: Tensor) -> Tensor:
    """Rows as a map of the height and width of another."""
    if like.ndim != 4:
        return rows
    return rows.unflatten(0, (like.shape[0], like.shape[2], like.shape[3])).permute(0, 3, 1, 2)
