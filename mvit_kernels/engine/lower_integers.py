"""From the nodes of an integer program to steps. What the kernels are told is what the prepared nodes of the interpreter hold, so that a
plan computes what the interpreter does, bit for bit."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mvit_kernels.graph import Node, Program, integers
from mvit_kernels.graph.passes import fuse_dynamic
from mvit_kernels.ops.library import QTYPE_CODES
from mvit_kernels.ops.pack_weight import PackedWeight
from mvit_kernels.ops.qchannels import for_bytes
from mvit_kernels.ops.qconv2d import tiles_pay
from mvit_kernels.ops.qgemm import SEGMENTS, activation_code
from mvit_kernels.reference import ATTENTION_TABLE, attention_factors, norm_affine, pool_factors
from mvit_kernels.reference.quantize import single

from .blocks import find_qdynamic, is_qpointwise, rows_of
from .lower_floats import Lowering
from .steps import Lowered, Part, Ref, Value

Tensor = torch.Tensor
_WORTH_BANDS = 2**19  # bytes between the layers of an inverted residual
_CHANNELS = ("init", "scale", "bias", "inverse", "low", "high", "zero_point")  # the rows of QChannels


def lower(program: Program, dtype: torch.dtype = torch.float32) -> Lowered:
    """The steps of a float or an integer program for one image; floats are stored as dtype: float32, bfloat16 or float16."""
    return _Integers(fuse_dynamic(program), dtype).lowered()


class _Stage(NamedTuple):
    """A product, and what makes floats of it bytes: a dynamic ReLU and a quantization, or nothing."""

    product: Node
    relu: Node | None = None
    to_bytes: Node | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(each for each in self if each is not None)

    @property
    def last(self) -> Node:
        return self.to_bytes or self.product


class _Integers(Lowering):
    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        super().__init__(program, dtype)
        # Norms that the product behind them does while it loads its rows, and streams whose sums a norm of the whole image wants.
        norms = [node for node in program if node.kind == "qnorm"]
        self.loaded = {node.name for node in norms if self.is_loaded(node)}
        self.summed = {node.inputs[0] for node in norms if node.settings["norm"] == "group"}
        self.stages: dict[str, tuple[_Stage, ...]] = {}  # of a block, by the last of its nodes
        for block, find in (("qinverted", self.find_inverted), ("dynamic", self.find_dynamic)):
            for node in program:
                stages = None if node.name in self.grouped else find(node)
                if stages is not None:
                    nodes = tuple(each for stage in stages for each in stage.nodes)
                    self.stages[nodes[-1].name] = stages
                    self.group(block, nodes)

    def is_loaded(self, norm: Node) -> bool:
        user = self.only_user(norm.name)
        return user is not None and _is_product(user) and "residual" not in user.settings

    def stage(self, product: Node | None) -> _Stage | None:
        """A product that writes bytes, or does so by way of a dynamic ReLU."""
        if product is None or not (_is_product(product) or product.kind == "qdepthwise_conv2d") or product.settings.get("residual"):
            return None
        if product.settings["out"] == "uint8":
            return _Stage(product)
        nodes = find_qdynamic(self, product)
        return None if nodes is None else _Stage(*nodes)

    def find_dynamic(self, product: Node) -> tuple[_Stage, ...] | None:
        stage = self.stage(product)
        return None if stage is None or stage.relu is None else (stage,)

    def find_inverted(self, product: Node) -> tuple[_Stage, ...] | None:
        """A 1x1 convolution, a depthwise one and another 1x1, of maps that the second cache would not hold."""
        expand = self.stage(product) if product.kind == "qconv2d" else None
        depthwise = None if expand is None else self.stage(self.only_user(expand.last.name))
        if expand is None or depthwise is None or depthwise.product.kind != "qdepthwise_conv2d":
            return None
        reduce = self.only_user(depthwise.last.name)
        if reduce is None or reduce.kind != "qconv2d" or not _is_product(reduce) or reduce.inputs[0] != depthwise.last.name:
            return None
        channels, height, width = product.size
        return (expand, depthwise, _Stage(reduce)) if channels * height * width >= _WORTH_BANDS else None

    def dtype_of(self, name: str) -> torch.dtype:
        return self.value_of(name).dtype

    # --- in and out ---

    def _quantize(self, node: Node) -> None:
        settings, source = node.settings, self.value_of(node.inputs[0])
        channels, pixels = rows_of(node.size)
        out = integers.DTYPES[settings["out"]]
        if "scale" in node.weights:
            return self.by_torch(node, "no kernel for a scale of each channel", out)
        if out == torch.int16:
            fields = {"count": channels * pixels, "scale": settings["scale"], "from": self.ref(node.inputs[0]), "to": self.value(node, out)}
            return self.out.add("to_stream", (node,), fields)
        scale = {"scale": settings["scale"], "zero_point": settings["zero_point"], "bits": settings["bits"]}
        if source.channels_last:
            fields = {"count": channels * pixels, **scale, "from": self.ref(node.inputs[0]), "to": self.value(node, out)}
            return self.out.add("quantize", (node,), fields)
        fields = {"batch": 1, "channels": channels, "pixels": pixels, **scale, "x": Ref(node.inputs[0]), "y": self.value(node, out)}
        self.out.add("quantize_image", (node,), fields)

    def _dequantize(self, node: Node) -> None:
        settings, (channels, pixels) = node.settings, rows_of(node.size)
        if "scale" in node.weights:
            return self.by_torch(node, "no kernel for a scale of each channel")
        fields = {"count": channels * pixels, "scale": settings["scale"], "from": self.ref(node.inputs[0]), "to": self.value(node)}
        if settings["source"] == "int16":
            return self.out.add("from_stream", (node,), fields)
        self.out.add("dequantize", (node,), {**fields, "zero_point": settings["zero_point"], "bits": 8})

    # --- products ---

    def epilogue(self, prefix: str, stage: _Stage, handle: Any, *, inside: bool = False) -> dict[str, Any]:
        """inside: the result stays in the step."""
        node, settings, columns = stage.product, handle.settings, stage.product.size[0]
        channels, out_dtype = handle.channels, settings.out_dtype
        if stage.relu is not None and stage.to_bytes is not None:
            to_bytes = stage.to_bytes.settings
            channels, out_dtype = for_bytes(channels, to_bytes["scale"], to_bytes["zero_point"], to_bytes["bits"]), torch.uint8
        row = channels.shape[1] * 4
        code, _ = activation_code(settings.activation)
        fields: dict[str, Any] = {f"channels.{name}": Part(channels, i * row) for i, name in enumerate(_CHANNELS)}
        fields |= {"type": QTYPE_CODES[out_dtype], "plain": settings.plain, "activation": code}
        if stage.relu is not None:
            fields |= {"slopes": self.ref(stage.relu.inputs[1]), "slope_columns": columns}
        if settings.activation in SEGMENTS:
            fields["segments"] = SEGMENTS[settings.activation]
        if handle.table is not None:
            fields["curve" if handle.table.dtype == torch.int16 else "table"] = handle.table
        if node.settings.get("residual"):
            residual = node.inputs[-1]
            fields |= {
                "residual": self.ref(residual), "residual_type": QTYPE_CODES[self.dtype_of(residual)], "residual_stride": columns,
                "residual_scale": settings.residual_scale, "residual_zero_point": settings.residual_zero_point,
            }  # fmt: skip
        if not inside:
            fields |= {"y": self.value(stage.last, out_dtype), "y_stride": columns}
        return {f"{prefix}epilogue.{name}": value for name, value in fields.items()}

    def handle(self, node: Node) -> Any:
        return integers.prepared(self.program, node, None).handle

    def _qconv2d(self, node: Node) -> None:
        if _is_product(node):
            return self.qproduct(_Stage(node))
        handle, settings = self.handle(node), node.settings
        channels, height, width = self.program[node.inputs[0]].size
        fields = {
            "product.batch": 1, "product.height": height, "product.width": width, "product.kernel": handle.kernel_size,
            "product.stride": handle.stride, "product.x.data": self.ref(node.inputs[0]), "product.x.channels": channels,
            "product.x.row": width * channels, "product.x.pixel": channels, "product.zero_point": handle.zero_point,
            **_packed(handle.weight), **self.epilogue("product.", _Stage(node), handle),
        }  # fmt: skip
        if settings.get("second"):
            second = handle.second_channels
            fields |= {
                "product.second.data": self.ref(node.inputs[1]), "product.second.channels": second, "product.second.row": width * second,
                "product.second.pixel": second,
            }  # fmt: skip
        if handle.border is not None:
            fields["product.border"] = handle.border
        if handle.filtered is not None and tiles_pay(1, height, width):
            fields["product.filtered"] = handle.filtered
        self.out.add("qconv2d", (node,), fields)

    def qproduct(self, stage: _Stage) -> None:
        """Rows of bytes, or of a stream that a norm makes bytes, times a weight."""
        node = stage.product
        handle = self.handle(node)
        fields = {**self.operand(node, "product."), **_packed(handle.weight), **self.epilogue("product.", stage, handle)}
        fields |= self.sums_of(node, "product.")
        alone = any(name.endswith((".sums", ".collected", ".slopes")) for name in fields)  # sums and slopes are of an image
        self.out.add("qgemm", (*self.norm_before(node), *stage.nodes), fields, "" if alone else "product.rows")

    def dynamic(self, *nodes: Node) -> None:
        (stage,) = self.stages[nodes[-1].name]
        (self.qdepthwise if stage.product.kind == "qdepthwise_conv2d" else self.qproduct)(stage)

    def operand(self, node: Node, prefix: str) -> dict[str, Any]:
        """The rows that a product multiplies."""
        depth, rows = rows_of(self.program[node.inputs[0]].size)
        if norm := self.norm_before(node):
            return {f"{prefix}rows": rows, **_prefixed("norm", self.norm(*norm))}
        return {f"{prefix}rows": rows, f"{prefix}a": self.ref(node.inputs[0]), f"{prefix}a_stride": depth}

    def norm_before(self, node: Node) -> tuple[Node, ...]:
        """The norm that a product does while it loads its rows."""
        source = self.program[node.inputs[0]]
        return (source,) if source.name in self.loaded else ()

    def sums_of(self, node: Node, prefix: str) -> dict[str, Any]:
        if node.name not in self.summed:
            return {}
        return {f"{prefix}collected": self.sums_value(node.name), f"{prefix}groups": 1}

    def qinverted(self, *nodes: Node) -> None:
        expand, depthwise, reduce = self.stages[nodes[-1].name]
        first, middle, last = (self.handle(each.product) for each in (expand, depthwise, reduce))
        channels, height, width = expand.product.size
        fields = {
            **self.operand(expand.product, "block.expand."), **_packed(first.weight, "expand_packed"),
            **_packed(last.weight, "reduce_packed"),
            "block.depthwise.batch": 1, "block.depthwise.height": height, "block.depthwise.width": width,
            "block.depthwise.channels": channels, "block.depthwise.stride": middle.stride, "block.depthwise.blocks": middle.blocks,
            "block.depthwise.narrow": middle.narrow, **self.epilogue("block.expand.", expand, first, inside=True),
            **self.epilogue("block.depthwise.", depthwise, middle, inside=True), **self.epilogue("block.reduce.", reduce, last),
            **self.sums_of(reduce.product, "block.reduce."),
        }  # fmt: skip
        self.out.add("qinverted_residual", (*self.norm_before(expand.product), *nodes), fields)

    def _qlinear(self, node: Node) -> None:
        self.qproduct(_Stage(node))

    def _qdepthwise_conv2d(self, node: Node) -> None:
        self.qdepthwise(_Stage(node))

    def qdepthwise(self, stage: _Stage) -> None:
        handle = self.handle(stage.product)
        source, multiplier = self.unrepeated(stage.product)
        channels, height, width = self.program[source].size
        fields = {
            "batch": 1, "height": height, "width": width, "channels": stage.product.size[0], "stride": handle.stride,
            "multiplier": multiplier, "x": self.ref(source), "row_stride": width * channels, "pixel_stride": channels,
            "blocks": handle.blocks, "narrow": handle.narrow, **self.epilogue("", stage, handle),
        }  # fmt: skip
        self.out.add("qdepthwise_conv2d", stage.nodes, fields)

    # --- transformers ---

    def sums_value(self, name: str) -> Ref:
        self.out.values[f"{name}.sums"] = Value((2,), torch.int64)
        return Ref(f"{name}.sums")

    def sums(self, name: str) -> Ref:
        """Sum and sum of squares of a stream, computed if its producer has not collected them."""
        if f"{name}.sums" not in self.out.values:
            depth, rows = rows_of(self.program[name].size)
            fields = {"count": depth * rows, "x": self.ref(name), "sums": self.sums_value(name)}
            self.out.add("stream_sums", (self.program[name],), fields)
        return Ref(f"{name}.sums")

    def norm(self, node: Node) -> dict[str, Any]:
        settings, stream = node.settings, node.inputs[0]
        depth, rows = rows_of(node.size)
        fields = {
            "x": self.ref(stream), "x_stride": depth, "depth": depth, "scale": settings["scale"], "eps": settings["eps"],
            "y_scale": settings["out_scale"], **_byte(settings["out_zero_point"], settings["out_bits"]),
        }  # fmt: skip
        if "weight" in node.weights:
            gain, offset = norm_affine(node.weights["weight"], node.weights["bias"], settings["out_scale"])
            fields |= {"y_scale": 1.0, "gain": gain, "offset": offset}
        return fields | ({"sums": self.sums(stream), "group_rows": rows} if settings["norm"] == "group" else {})

    def _qnorm(self, node: Node) -> None:
        if node.name in self.loaded:
            return
        depth, rows = rows_of(node.size)
        norm = {f"norm.{key}": value for key, value in self.norm(node).items()}
        self.out.add("qnorm", (node,), {"rows": rows, **norm, "y": self.value(node, torch.uint8), "y_stride": depth})

    def _qseparable_context(self, node: Node) -> None:
        settings, (patch_h, patch_w) = node.settings, node.settings["patch"]
        depth, height, width = self.program[node.inputs[0]].size
        dim = node.size[0]
        to_bytes = settings["out"] == "uint8"
        fields = {
            "size.batch": 1, "size.dim": dim, "size.height": height, "size.width": width, "size.patch_h": patch_h,
            "size.patch_w": patch_w, "scores.data": self.ref(node.inputs[0]), "scores.row": width * depth, "scores.pixel": depth,
            "x.data": self.ref(node.inputs[1]), "x.row": width * dim, "x.pixel": dim, "table": node.weights["table"],
            "x_zero_point": settings["x_zero_point"], "bytes": to_bytes,
            "scale": settings["x_scale"] / settings["out_scale"] if to_bytes else settings["x_scale"],
            "y": self.value(node, integers.DTYPES[settings["out"]]),
        }  # fmt: skip
        if to_bytes:
            fields |= _prefixed("byte", _byte(settings["out_zero_point"], settings["out_bits"]))
        self.out.add("qseparable_context", (node,), fields)

    def _qseparable_gate(self, node: Node) -> None:
        settings, (patch_h, patch_w) = node.settings, node.settings["patch"]
        depth = self.program[node.inputs[0]].size[0]
        dim, height, width = node.size
        fields = {
            "size.batch": 1, "size.dim": dim, "size.height": height, "size.width": width, "size.patch_h": patch_h,
            "size.patch_w": patch_w, "v.data": self.ref(node.inputs[0])._replace(offset=1), "v.row": width * depth, "v.pixel": depth,
            "v_zero_point": settings["v_zero_point"], "context": self.ref(node.inputs[1]),
            "scale": settings["v_scale"] / settings["out_scale"], "y": self.value(node, torch.uint8),
            **_prefixed("byte", _byte(settings["out_zero_point"], settings["out_bits"])),
        }  # fmt: skip
        self.out.add("qseparable_gate", (node,), fields)

    def _qpatch_attention(self, node: Node) -> None:
        settings, (dim, height, width), (patch_h, patch_w) = node.settings, node.size, node.settings["patch"]
        scales = (float(single(settings[name])) for name in ("q_scale", "k_scale", "v_scale", "out_scale", "scale"))
        steps, ratio = attention_factors(*scales)
        fields = {
            "batch": 1, "dim": dim, "heads": settings["heads"], "height": height, "width": width, "patch_h": patch_h, "patch_w": patch_w,
            "qkv": self.ref(node.inputs[0]), "qkv_stride[1]": 3 * dim * width, "qkv_stride[2]": 3 * dim,
            "q_zero_point": settings["q_zero_point"], "v_zero_point": settings["v_zero_point"], "score_steps": steps, "ratio": ratio,
            "table": ATTENTION_TABLE, "y": self.value(node, torch.uint8), "y_stride[1]": dim * width, "y_stride[2]": dim,
            **_prefixed("byte", _byte(settings["out_zero_point"], settings["out_bits"])),
        }  # fmt: skip
        self.out.add("qpatch_attention", (node,), fields)

    def _qattention(self, node: Node) -> None:
        handle, sources = self.handle(node), node.inputs
        (channels, queries), (_, keys), (values, _) = (rows_of(self.program[name].size) for name in sources)
        heads, mixtures, points = handle.heads, handle.mixtures, handle.zero_points
        q, k, v = map(self.ref, sources)
        fields = {
            "batch": 1, "heads": heads, "queries": queries, "keys": keys, "depth": channels // heads, "value_depth": values // heads,
            "q": q, "k": k, "v": v, "q_stride[1]": channels, "k_stride[1]": channels, "v_stride[1]": values, "q_zero_point": points[0],
            "k_zero_point": points[1], "v_zero_point": points[2], "steps": mixtures.steps, "ratio": mixtures.ratio,
            "table": ATTENTION_TABLE, "y": self.value(node, torch.uint8), "y_stride[1]": values,
            **_prefixed("out", _byte(handle.out_zero_point, handle.out_bits)),
        }  # fmt: skip
        if mixtures.bias is not None:
            fields |= {"bias": mixtures.bias, "bias_stride": mixtures.bias.shape[2]}
        for name, value in (("mix", mixtures.scores), ("mix_weights", mixtures.weights), ("shift", mixtures.shift)):
            if value is not None:
                fields[name] = value
        self.out.add("qattention", (node,), fields)

    # --- the rest ---

    def _qadd(self, node: Node) -> None:
        settings, (channels, pixels) = node.settings, rows_of(node.size)
        a, b = (self.ref(name) for name in node.inputs)
        fields = {
            "count": channels * pixels, "a": a, "b": b, "y": self.value(node, torch.uint8),
            **_prefixed("a_real", _real(settings["a_scale"], settings["a_zero_point"])),
            **_prefixed("b_real", _real(settings["b_scale"], settings["b_zero_point"])),
            **_prefixed("out", _byte(settings["out_zero_point"], settings["out_bits"])), "out.inverse": _inverse(settings["out_scale"]),
        }  # fmt: skip
        if "activation" in settings:
            fields["activation"], _ = activation_code(settings["activation"])
            if settings["activation"] in SEGMENTS:
                fields["segments"] = SEGMENTS[settings["activation"]]
        self.out.add("qadd", (node,), fields)

    def _qpool_mixer(self, node: Node) -> None:
        settings, (channels, height, width) = node.settings, node.size
        keep, move = pool_factors(node.weights["scale"], settings["a_scale"], settings["out_scale"])
        fields = {
            "batch": 1, "height": height, "width": width, "channels": channels, "x": self.ref(node.inputs[0]),
            "zero_point": settings["a_zero_point"], "keep": keep, "move": move, "y": self.value(node, torch.uint8),
            **_prefixed("out", _byte(settings["out_zero_point"], settings["out_bits"])),
        }  # fmt: skip
        self.out.add("qpool_mixer", (node,), fields)

    def _qavg_pool(self, node: Node) -> None:
        settings, (channels, pixels) = node.settings, rows_of(self.program[node.inputs[0]].size)
        floats = settings["out"] == "float32"
        out_scale = 1.0 if floats else float(single(settings["out_scale"]))
        fields = {
            "batch": 1, "channels": channels, "pixels": pixels, "channels_last": True, "x": self.ref(node.inputs[0]),
            "zero_point": settings["a_zero_point"], "scale": float(single(settings["a_scale"])) / (pixels * out_scale), "floats": floats,
            "y": self.value(node, integers.DTYPES[settings["out"]]),
        }  # fmt: skip
        if not floats:
            fields |= _prefixed("out", _byte(settings["out_zero_point"], settings["out_bits"]))
        self.out.add("qavg_pool", (node,), fields)

    def _qresize(self, node: Node) -> None:
        channels, height, width = self.program[node.inputs[0]].size
        fields = {
            "batch": 1, "channels": channels, "height": height, "width": width, "out_height": node.size[1], "out_width": node.size[2],
            "align_corners": node.settings["align_corners"], "x": self.ref(node.inputs[0]), "y": self.value(node, torch.uint8),
        }  # fmt: skip
        self.out.add("qresize", (node,), fields)

    def _qlookup(self, node: Node) -> None:
        channels, pixels = rows_of(node.size)
        fields = {"count": channels * pixels, "table": node.weights["table"], "x": self.ref(node.inputs[0])}
        self.out.add("qlookup", (node,), {**fields, "y": self.value(node, torch.uint8)})


def _is_product(node: Node) -> bool:
    """Whether it multiplies rows: a linear map, or a 1x1 convolution of every pixel of one map."""
    return node.kind == "qlinear" or is_qpointwise(node)


def _packed(weight: PackedWeight, name: str = "packed") -> dict[str, Any]:
    return {f"{name}.data": weight.data, f"{name}.bytes": weight.data.nbytes}


def _prefixed(prefix: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in fields.items()}


def _byte(zero_point: int, bits: int) -> dict[str, Any]:
    """QByte of csrc/cpu/core/qreal.h, without its inverse."""
    return {"low": float(-zero_point), "high": float(2**bits - 1 - zero_point), "zero_point": zero_point}


def _inverse(scale: float) -> float:
    return float((1.0 / single(scale).double()).float())


def _real(scale: float, zero_point: int) -> dict[str, Any]:
    """QReal of csrc/cpu/core/qreal.h."""
    minus = -zero_point
    low = 0 if abs(minus) <= 2**23 else minus & 0xFFFF
    return {"scale": scale, "high": float(minus - low), "low": low}
