"""From float nodes to steps: which of them one kernel runs together, and what it is told.

Kernels take whole blocks: the attention and the feed-forward half of a transformer layer, inverted residuals. A norm in front of 1x1
convolutions is done while these load their rows; the moments of a GroupNorm are collected by whatever wrote its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mvit_kernels import reference
from mvit_kernels.graph import Node, Program
from mvit_kernels.ops.attention import pack_bias, pack_mixtures
from mvit_kernels.ops.conv2d import MOST_PLANES, filtering_pays
from mvit_kernels.ops.library import FLOAT_CODES
from mvit_kernels.ops.packing import Packed, pack_convolution, pack_convolution_by_planes, pack_depthwise, pack_matrix, pack_winograd

from .blocks import Blocks, activation_of, adds, is_pointwise, kernel_of, rows_of
from .steps import Lowered, Ref, TorchStep, Value

Tensor = torch.Tensor
_GATHERED, _PLANES, _WINOGRAD = range(3)
# Of both products of a feed-forward layer: more than that is not at hand anymore for the next block of rows, and each product by itself
# reads its weight once.
_LARGE_WEIGHTS = 2 << 20
_LARGE_MAP, _SMALL_WEIGHTS = 1 << 19, 1 << 19


class Lowering(Blocks):
    """Steps for one image; floats are stored as dtype: float32, bfloat16 or float16."""

    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        super().__init__(program)
        self.dtype = dtype
        self.out = Lowered(outputs=program.outputs, structure=program.structure)
        self.constants: dict[str, Tensor] = {}
        self.normed = {node.inputs[0] for node in program if node.kind == "group_norm"}
        for node in program:
            nodes = None if node.name in self.grouped else self.find_pair(node)
            if nodes is not None:
                self.group("pair", nodes)

    def lowered(self) -> Lowered:
        for node in self.program:
            if node.name in self.groups:
                block, nodes = self.groups[node.name]
                getattr(self, block)(*nodes)
            elif node.name not in self.grouped and node.name not in self.absorbed:
                self.single(node)
        for name in self.program.outputs:
            self.materialize(name)
        return self.out

    # --- values ---

    def value(self, node: Node, dtype: torch.dtype | None = None) -> Ref:
        """Memory for the result of a node."""
        self.out.values[node.name] = Value(node.size, dtype or self.dtype)
        return Ref(node.name)

    def ref(self, name: str) -> Any:
        """The result of an earlier node, channels last: a Ref, or a tensor among the weights."""
        if name not in self.out.values:
            return self.view(self.program[name])
        value = self.out.values[name]
        if value.channels_last or len(value.size) != 3:
            return Ref(name)
        last = f"{name}.channels_last"
        if last not in self.out.values:
            self.out.values[last] = value._replace(channels_last=True)
            channels, height, width = value.size
            fields = {"element_size": value.dtype.itemsize, "batch": 1, "channels": channels, "pixels": height * width}
            self.out.add("channels_last", (self.program[name],), {**fields, "from": Ref(name), "to": Ref(last)})
        return Ref(last)

    def view(self, node: Node) -> Any:
        """Of what no step makes: a constant, or a pixel of another result."""
        if node.kind == "constant":
            value = node.weights["value"]
            pixels = value.movedim(0, -1) if value.ndim == 3 else value
            return self.constants.setdefault(node.name, pixels.to(self.dtype).contiguous())
        source, index = self.ref(node.inputs[0]), node.settings["index"]
        if isinstance(source, Tensor):
            return self.constants.setdefault(node.name, source.flatten(0, -2)[index].contiguous())
        return source._replace(offset=source.offset + index * node.size[0] * self.value_of(node.inputs[0]).dtype.itemsize)

    def value_of(self, name: str) -> Value:
        """What an earlier node gives, whether or not a step makes it."""
        node = self.program[name]
        if name in self.out.values:
            return self.out.values[name]
        return Value(node.size, self.dtype if node.kind == "constant" else self.value_of(node.inputs[0]).dtype)

    def materialize(self, name: str) -> None:
        """A view as a value of its own."""
        if name not in self.out.values:
            source, value = self.ref(name), self.value_of(name)
            node = self.program[name]
            fields = {"rows": 1, "a_bytes": value.bytes, "b_bytes": 0, "a": source, "b": source, "y": self.value(node, value.dtype)}
            self.out.add("cat", (node,), fields)

    def collected(self, node: Node) -> dict[str, Ref]:
        """Where a producer leaves its moments, if a norm wants them."""
        if node.name not in self.normed:
            return {}
        self.out.values[f"{node.name}.moments"] = Value((2,), torch.float64)
        return {"collected": Ref(f"{node.name}.moments")}

    def moments(self, name: str) -> Ref:
        """Those of an earlier result, computed if nobody collected them."""
        key = f"{name}.moments"
        if key not in self.out.values:
            channels, rows = rows_of(self.program[name].size)
            x = self.ref(name)
            self.out.values[key] = Value((2,), torch.float64)
            fields = {**self.code(), "groups": 1, "rows": rows, "depth": channels, "x": x, "y": Ref(key)}
            self.out.add("moments", (self.program[name],), fields)
        return Ref(key)

    def packed(self, node: Node) -> Packed:
        """The matrix of a node, for maps of the dtype of this plan."""
        return _packed(node, self.dtype)

    def code(self) -> dict[str, int]:
        return {"dtype": FLOAT_CODES[self.dtype]}

    # --- blocks ---

    def attention(self, norm: Node, conv: Node, context: Node, key: Node, gate: Node, out: Node) -> None:
        x, (dim, height, width), (patch_h, patch_w) = norm.inputs[0], norm.size, context.settings["patch"]
        weight, bias = conv.weights["weight"].flatten(1), conv.weights["bias"]
        keys, values, outs = _packed(key), pack_matrix(weight[1:], bias[1:], self.dtype), self.packed(out)
        fields = {
            **self.code(), "batch": 1, "dim": dim, "height": height, "width": width, "patch_h": patch_h, "patch_w": patch_w,
            "query": weight[0].float().contiguous(), "key_weight": keys.weight, "key_bias": keys.bias, "value_weight": values.weight,
            "value_bias": values.bias, "out_weight": outs.weight, "out_bias": outs.bias, "moments": self.moments(x),
            "eps": norm.settings["eps"], "x": self.ref(x), "y": self.value(out), **self.collected(out),
        }  # fmt: skip
        self.out.add("separable_attention_block", (norm, conv, context, key, gate, out), fields, "batch")

    def mlp(self, norm: Node, first: Node, second: Node) -> None:
        x, (dim, rows), layer_norm = norm.inputs[0], rows_of(norm.size), norm.kind == "layer_norm"
        one, two = self.packed(first), self.packed(second)
        if one.weight.nbytes + two.weight.nbytes > _LARGE_WEIGHTS:
            self.product(first, norm)
            return self.product(second)
        fields = {
            **self.code(), "groups": 1, "rows": rows, "dim": dim, "hidden": first.size[0], "weight1": one.weight, "bias1": one.bias,
            "weight2": two.weight, "bias2": two.bias, "layer_norm": layer_norm, "eps": norm.settings["eps"],
            "activation": _activation(first), "x": self.ref(x), "y": self.value(second), **self.collected(second),
        }  # fmt: skip
        if not layer_norm:
            fields["moments"] = self.moments(x)
        self.out.add("feed_forward", (norm, first, second), fields, _count(fields))

    def find_pair(self, first: Node) -> tuple[Node, ...] | None:
        """A feed-forward layer without a norm, whose hidden map no cache that is near would hold, but its weights."""
        if not is_pointwise(first) or first.inputs[0] in self.absorbed or first.settings.keys() & {"residual", "dynamic"}:
            return None
        second = self.only_user(first.name)
        if second is None or not adds(second, first, first.inputs[0]):
            return None
        hidden, pixels = rows_of(first.size)
        size = self.dtype.itemsize
        pays = hidden * pixels * size >= _LARGE_MAP and 2 * hidden * second.size[0] * size <= _SMALL_WEIGHTS
        return (first, second) if pays else None

    def pair(self, first: Node, second: Node) -> None:
        dim, rows = rows_of(second.size)
        one, two = self.packed(first), self.packed(second)
        fields = {
            **self.code(), "groups": 1, "rows": rows, "dim": dim, "hidden": first.size[0], "weight1": one.weight, "bias1": one.bias,
            "weight2": two.weight, "bias2": two.bias, "as_it_is": True, "activation": _activation(first),
            "x": self.ref(first.inputs[0]), "y": self.value(second), **self.collected(second),
        }  # fmt: skip
        self.out.add("feed_forward", (first, second), fields, _count(fields))

    def inverted(self, *nodes: Node) -> None:
        first, depthwise, reduce = nodes[0], nodes[-2], nodes[-1]
        x = first.inputs[0]
        channels, height, width = self.program[x].size
        taps, last = pack_depthwise(depthwise.weights["weight"], depthwise.weights.get("bias")), self.packed(reduce)
        fields = {
            **self.code(), "batch": 1, "height": height, "width": width, "channels": channels, "hidden": depthwise.size[0],
            "columns": reduce.size[0], "stride": depthwise.settings["stride"], "depthwise_weight": taps.weight,
            "depthwise_bias": taps.bias, "reduce_weight": last.weight, "reduce_bias": last.bias, "activation": _activation(depthwise),
            **self.slopes(depthwise, "depthwise_slopes"), "residual": "residual" in reduce.settings, "x": self.ref(x),
            "y": self.value(reduce), **self.collected(reduce),
        }  # fmt: skip
        if len(nodes) == 3:
            expand = self.packed(first)
            fields |= {"expand_weight": expand.weight, "expand_bias": expand.bias, **self.slopes(first, "expand_slopes")}
        self.out.add("inverted_residual", nodes, fields, "batch")

    # --- single nodes ---

    def single(self, node: Node) -> None:
        emit = getattr(self, f"_{node.kind}", None)
        if emit is None:
            self.by_torch(node, "no kernel for it" if node.kind == "torch" else f"no kernel for {node.kind} outside of a block")
        else:
            emit(node)

    def by_torch(self, node: Node, reason: str, dtype: torch.dtype | None = None) -> None:
        for name in node.inputs:
            self.materialize(name)
        self.value(node, dtype)
        raw = all(user and self.program[user].kind == "torch" for user in self.users[node.name])
        self.out.steps.append(TorchStep(node, reason, raw))

    def _constant(self, node: Node) -> None:
        """Whoever takes it finds it among the weights."""

    def _pixel(self, node: Node) -> None:
        """Whoever takes it looks there."""

    def _repeat(self, node: Node) -> None:
        if not all(user and "depthwise_conv2d" in self.program[user].kind for user in self.users[node.name]):  # which do it themselves
            self.by_torch(node, "no kernel for repeat outside of a depthwise convolution", self.value_of(node.inputs[0]).dtype)

    def unrepeated(self, node: Node) -> tuple[str, int]:
        """What a depthwise convolution reads, and how many filters it has for each channel of that."""
        source = self.program[node.inputs[0]]
        if source.kind != "repeat" or source.name in self.out.values:
            return source.name, 1
        return source.inputs[0], source.settings["times"]

    def slopes(self, node: Node, name: str = "slopes") -> dict[str, Any]:
        return {name: self.ref(node.inputs[-1])} if "dynamic" in node.settings else {}

    def _input(self, node: Node) -> None:
        self.out.values[node.name] = Value(node.size, self.dtype, channels_last=False)

    def _conv2d(self, node: Node) -> None:
        norm = self.program[node.inputs[0]]
        if is_pointwise(node) or (kernel_of(node) == 1 and node.settings["stride"] == 1):
            return self.product(node, norm if norm.name in self.absorbed else None)
        weight, bias, stride = node.weights["weight"], node.weights.get("bias"), node.settings["stride"]
        columns, both, kernel, _ = weight.shape
        source = self.value_of(node.inputs[0])
        channels, height, width = source.size
        second = node.inputs[1] if "second" in node.settings else None
        if kernel == 3 and second is None and 1 < channels <= MOST_PLANES and not source.channels_last:
            method, packed = _PLANES, pack_convolution_by_planes(weight, bias)
            x: dict[str, Any] = {
                "x.data": Ref(node.inputs[0]), "x.channel": height * width, "x.row": width, "x.pixel": 1,
            }  # fmt: skip
        else:
            filtered = kernel == 3 and stride == 1 and filtering_pays(both, columns, height, width, self.dtype)
            method, packed = (
                (_WINOGRAD, pack_winograd(weight, bias)) if filtered else (_GATHERED, pack_convolution(weight, bias, self.dtype))
            )
            x = {"x.data": self.ref(node.inputs[0]), "x.channel": 1, "x.row": width * channels, "x.pixel": channels}
        x["x.image"] = height * width * channels
        if second is not None:
            size = self.program[second].size[0]
            x |= {"second.data": self.ref(second), "second.channels": size, "second.channel": 1}
            x |= {"second.row": width * size, "second.pixel": size, "second.image": height * width * size}
        if "residual" in node.settings:
            x["residual"] = self.ref(node.inputs[-1])
        fields = {
            **self.code(), "batch": 1, "height": height, "width": width, "columns": columns, "kernel": kernel, "stride": stride,
            "method": method, "x.channels": channels, **x, "weight": packed.weight, "bias": packed.bias,
            "activation": _activation(node), "y": self.value(node),
        }  # fmt: skip
        self.out.add("conv2d", (node,), fields, "batch")

    def product(self, node: Node, norm: Node | None = None) -> None:
        """A 1x1 convolution or a linear map, by way of a norm."""
        source = node.inputs[0] if norm is None else norm.inputs[0]
        depth, rows = rows_of(self.program[source].size)
        packed, columns = self.packed(node), node.size[0]
        fields = {
            **self.code(), "groups": 1, "rows": rows, "depth": depth, "columns": columns, "a": self.ref(source), "a_stride": depth,
            "weight": packed.weight, "bias": packed.bias, "activation": _activation(node),
        }  # fmt: skip
        if "second" in node.settings:
            second = self.program[node.inputs[1]].size[0]
            fields |= {"second": self.ref(node.inputs[1]), "second_depth": second, "second_stride": second}
        if norm is not None:
            fields["eps"] = norm.settings["eps"]
            fields |= {"layer_norm": True} if norm.kind == "layer_norm" else {"moments": self.moments(source)}
        if "residual" in node.settings:
            fields |= {"residual": self.ref(node.inputs[-1]), "residual_stride": columns}
        fields |= self.slopes(node)
        fields |= {"y": self.value(node), "y_stride": columns, **self.collected(node)}
        self.out.add("gemm", (node,) if norm is None else (norm, node), fields, _count(fields))

    def _linear(self, node: Node) -> None:
        self.product(node)

    def _depthwise_conv2d(self, node: Node) -> None:
        source, multiplier = self.unrepeated(node)
        channels, height, width = self.program[source].size
        packed = pack_depthwise(node.weights["weight"], node.weights.get("bias"))
        fields = {
            **self.code(), "batch": 1, "height": height, "width": width, "channels": node.size[0], "stride": node.settings["stride"],
            "multiplier": multiplier, "x": self.ref(source), "image_stride": height * width * channels, "row_stride": width * channels,
            "pixel_stride": channels, "weight": packed.weight, "bias": packed.bias, "weight_stride": packed.weight.shape[1],
            "activation": _activation(node), **self.slopes(node), "y": self.value(node),
        }  # fmt: skip
        self.out.add("depthwise_conv2d", (node,), fields, "batch")

    def _patch_attention(self, node: Node) -> None:
        (dim, height, width), (patch_h, patch_w) = node.size, node.settings["patch"]
        fields = {
            **self.code(), "batch": 1, "dim": dim, "heads": node.settings["heads"], "height": height, "width": width,
            "patch_h": patch_h, "patch_w": patch_w, "scale": node.settings["scale"], "qkv": self.ref(node.inputs[0]),
            "qkv_stride[0]": 3 * dim * width * height, "qkv_stride[1]": 3 * dim * width, "qkv_stride[2]": 3 * dim, "y": self.value(node),
            "y_stride[0]": dim * width * height, "y_stride[1]": dim * width, "y_stride[2]": dim,
        }  # fmt: skip
        self.out.add("patch_attention", (node,), fields, "batch")

    def _attention(self, node: Node) -> None:
        heads, sources = node.settings["heads"], node.inputs
        (channels, queries), (_, keys), (values, _) = (rows_of(self.program[name].size) for name in sources)
        q, k, v = map(self.ref, sources)
        fields = {
            **self.code(), "batch": 1, "heads": heads, "queries": queries, "keys": keys, "depth": channels // heads,
            "value_depth": values // heads, "scale": node.settings["scale"], "q": q, "k": k, "v": v, "q_stride[1]": channels,
            "k_stride[1]": channels, "v_stride[1]": values, "q_stride[0]": queries * channels, "k_stride[0]": keys * channels,
            "v_stride[0]": keys * values, "y": self.value(node), "y_stride[0]": queries * values, "y_stride[1]": values,
        }  # fmt: skip
        if "bias" in node.weights:
            bias = pack_bias(node.weights["bias"])
            fields |= {"bias": bias, "bias_stride": bias.shape[2]}
        mixtures = pack_mixtures(*(node.weights.get(name) for name in ("mix_scores", "mix_weights", "mix_bias")))
        for name, value in zip(("mix_scores", "mix_weights", "mix_bias"), mixtures, strict=True):
            if value is not None:
                fields[name] = value
        self.out.add("attention", (node,), fields, "batch")

    def _pool_mixer(self, node: Node) -> None:
        channels, height, width = node.size
        fields = {
            **self.code(), "batch": 1, "height": height, "width": width, "channels": channels, "x": self.ref(node.inputs[0]),
            "scale": node.weights["scale"].float().contiguous(), "y": self.value(node),
        }  # fmt: skip
        self.out.add("pool_mixer", (node,), fields, "batch")

    def _dynamic_relu(self, node: Node) -> None:
        channels, pixels = rows_of(node.size)
        x, u = map(self.ref, node.inputs)
        fields = {**self.code(), "batch": 1, "pixels": pixels, "channels": channels, "x": x, "u": u, "y": self.value(node)}
        self.out.add("dynamic_relu", (node,), fields)

    def _hard_gate(self, node: Node) -> None:
        channels, rows = rows_of(node.size)
        x, u = map(self.ref, node.inputs)
        self.out.add("hard_gate", (node,), {**self.code(), "count": channels * rows, "x": x, "u": u, "y": self.value(node)})

    def _separable_attention(self, node: Node) -> None:
        (dim, height, width), (patch_h, patch_w) = node.size, node.settings["patch"]
        depth = 1 + 2 * dim
        fields = {
            **self.code(), "batch": 1, "dim": dim, "size[0]": height, "size[1]": width, "patch_h": patch_h, "patch_w": patch_w,
            "qkv.data": self.ref(node.inputs[0]), "qkv.stride[1]": 1, "qkv.stride[2]": depth * width, "qkv.stride[3]": depth,
            "y.data": self.value(node), "y.stride[1]": 1, "y.stride[2]": dim * width, "y.stride[3]": dim,
        }  # fmt: skip
        self.out.add("separable_attention", (node,), fields)

    def _group_norm(self, node: Node) -> None:
        channels, positions = rows_of(node.size)
        weight, bias = _scale_and_shift(node)
        fields = {
            **self.code(), "channels_last": True, "batch": 1, "channels": channels, "positions": positions,
            "eps": node.settings["eps"], "weight": weight, "bias": bias, "x": self.ref(node.inputs[0]), "y": self.value(node),
        }  # fmt: skip
        self.out.add("group_norm", (node,), fields)

    def _layer_norm(self, node: Node) -> None:
        channels, rows = rows_of(node.size)
        weight, bias = _scale_and_shift(node)
        fields = {
            **self.code(), "rows": rows, "channels": channels, "eps": node.settings["eps"], "weight": weight, "bias": bias,
            "x": self.ref(node.inputs[0]), "y": self.value(node),
        }  # fmt: skip
        self.out.add("layer_norm", (node,), fields, "rows")

    def _avg_pool(self, node: Node) -> None:
        channels, pixels = rows_of(self.program[node.inputs[0]].size)
        fields = {**self.code(), "batch": 1, "pixels": pixels, "channels": channels, "x": self.ref(node.inputs[0]), "y": self.value(node)}
        self.out.add("avg_pool", (node,), fields, "batch")

    def _resize(self, node: Node) -> None:
        channels, height, width = self.program[node.inputs[0]].size
        fields = {
            **self.code(), "batch": 1, "channels": channels, "height": height, "width": width, "out_height": node.size[1],
            "out_width": node.size[2], "align_corners": node.settings["align_corners"], "x": self.ref(node.inputs[0]),
            "y": self.value(node),
        }  # fmt: skip
        self.out.add("resize", (node,), fields)

    def _add(self, node: Node) -> None:
        a, b = map(self.ref, node.inputs)
        channels, rows = rows_of(node.size)
        fields = {**self.code(), "count": channels * rows, "activation": _activation(node), "a": a, "b": b, "y": self.value(node)}
        self.out.add("add", (node,), fields, "count")

    def _activation(self, node: Node) -> None:
        channels, rows = rows_of(node.size)
        code = reference.ACTIVATIONS.index(node.settings["function"])
        fields = {**self.code(), "count": channels * rows, "activation": code, "a": self.ref(node.inputs[0]), "y": self.value(node)}
        self.out.add("add", (node,), fields, "count")

    def _cat(self, node: Node) -> None:
        (a, rows), (b, _) = (rows_of(self.program[name].size) for name in node.inputs)
        dtype = self.value_of(node.inputs[0]).dtype
        size = dtype.itemsize
        fields: Mapping[str, Any] = {
            "rows": rows, "a_bytes": a * size, "b_bytes": b * size, "a": self.ref(node.inputs[0]), "b": self.ref(node.inputs[1]),
            "y": self.value(node, dtype),
        }  # fmt: skip
        self.out.add("cat", (node,), fields)


def _activation(node: Node) -> int:
    return reference.ACTIVATIONS.index(activation_of(node))


def _count(fields: Mapping[str, Any]) -> str:
    """What several images are more of: groups, where each has moments or slopes of its own, else rows."""
    return "groups" if fields.keys() & {"moments", "collected", "slopes"} else "rows"


def _packed(node: Node, dtype: torch.dtype = torch.float32) -> Packed:
    return pack_matrix(node.weights["weight"].flatten(1), node.weights.get("bias"), dtype)


def _scale_and_shift(node: Node) -> tuple[Tensor, Tensor]:
    channels = node.size[0]
    weight, bias = node.weights.get("weight"), node.weights.get("bias")
    return (
        torch.ones(channels, dtype=torch.float32) if weight is None else weight.float().contiguous(),
        torch.zeros(channels, dtype=torch.float32) if bias is None else bias.float().contiguous(),
    )
