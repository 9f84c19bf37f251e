"""Quantized networks as ONNX files: integers at every edge as pairs of QuantizeLinear and DequantizeLinear, floats between.

Other runtimes find the integer operations in these pairs. What they compute between is rounded in other places than in our kernels, so
results are near ours, not equal: activation functions are floats, and norms and attention are spelled out in floats. Nodes that a
configuration left in floats are written as they are. Zero-points that
uint8 does not hold, and scales and zero-points of channels, have no pair that runtimes take: there the pair has scale 1 and zero-point 0,
and a product and a sum beside it do the rest, so that what takes the result runs in floats.

On x86 processors without VNNI, ONNX Runtime adds pairs of products of uint8 and int8 in 16 bits, and loses what these do not hold, unless
its session has the entry "session.x64quantprecision": "1", which costs it some speed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mvit_kernels import __version__
from mvit_kernels.files import new_file, replace_file
from mvit_kernels.graph import Node, Program
from mvit_kernels.graph.integers import KINDS
from mvit_kernels.messages import shown
from mvit_kernels.reference import ACTIVATIONS

from .layout import NORMS
from .model import QuantizedModel

Tensor = torch.Tensor
OPSET = 21  # the first whose QuantizeLinear has int16
_IR = 10


def export_onnx(model: QuantizedModel, path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> None:
    """Write a quantized network as ONNX (opset 21) with Q/DQ pairs. The batch is free. The file is written whole or not at all.

    Args:
        model: of `mk.quantize` or `mk.load_quantized`.
        size: (height, width) of its images, by default those of the calibration.

    Raises:
        TypeError: another model, or what is no path.
        ValueError: quantizers that can only be simulated; a node that runs through torch, whose form in ONNX is not known. It is named.
        ImportError: onnx is not installed.
    """
    if not isinstance(model, QuantizedModel):
        raise TypeError(f"export_onnx: model: expected a quantized model, of mk.quantize, got {type(model).__name__}")
    path = new_file("export_onnx: path", path)
    try:
        import onnx
    except ImportError as error:
        raise ImportError("export_onnx needs onnx: pip install 'mvit_kernels[export]'") from error
    if size is not None and (not isinstance(size, (tuple, list)) or len(size) != 2):
        raise ValueError(f"export_onnx: size: expected (height, width) or None, got {shown(size)}")
    sizes = None if size is None else (model.size[0], *size)
    model.require_kernels("export_onnx", sizes)
    program = model.program(sizes)
    graph = _Writer(program).graph()
    made = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="mvit_kernels", producer_version=__version__
    )
    made.ir_version = _IR
    onnx.checker.check_model(made, full_check=True)
    replace_file(path, lambda temporary: temporary.write_bytes(made.SerializeToString()))


class _Writer:
    """integer: name of an integer result -> (scale, zero-point) with which it was written. The tensor of a node has the node's name."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.integer: dict[str, tuple[Any, Any]] = {}
        self.count = 0

    def graph(self) -> Any:
        from onnx import TensorProto, helper

        (source,) = (node for node in self.program if node.kind == "input")
        for node in self.program:
            if node.kind == "input":
                continue
            write = _WRITE.get(node.kind)
            if write is None:
                what = f"torch's {node.settings['target']}" if node.kind == "torch" else node.kind
                raise ValueError(f"export_onnx: model: expected nodes of {', '.join(_WRITE)}, got {node.name}, which is {what}")
            write(self, node)
        outputs = []
        for i, name in enumerate(self.program.outputs):
            self.op("Identity", [name], out=f"output.{i}" if len(self.program.outputs) > 1 else "output")
            shape = ["batch", *self.program[name].size]
            outputs.append(helper.make_tensor_value_info(self.nodes[-1].output[0], TensorProto.FLOAT, shape))
        image = helper.make_tensor_value_info(source.name, TensorProto.FLOAT, ["batch", *source.size])
        return helper.make_graph(self.nodes, "mvit_kernels", [image], outputs, list(self.constants.values()))

    # --- pieces ---

    def op(self, kind: str, inputs: Sequence[str], out: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        self.count += 1
        out = out or f"{kind.lower()}.{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"{kind}.{self.count}", **attributes))
        return out

    def constant(self, values: Any, dtype: Any) -> str:
        from onnx import numpy_helper

        array = values.detach().numpy().astype(dtype) if isinstance(values, Tensor) else np.asarray(values, dtype)
        # Weights and their zero-points have one reader each: asked to make them uint8, ONNX Runtime does so for every reader, and fails at
        # the second.
        key = f"{array.dtype}|{array.shape}|{hash(array.tobytes())}|{len(self.constants) if array.dtype == np.int8 else 0}"
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array.copy(order="C"), f"constant.{len(self.constants)}")
        return str(self.constants[key].name)

    def taken(self, node: Node, which: int, prefix: str | None = None) -> str:
        """The reals of an input: floats as they are, integers by what the node says of them, or as they were written."""
        name = node.inputs[which]
        if node.kind not in KINDS:
            return name
        if prefix is None:
            return self.dequantize(node, name, *self.integer[name])
        return self.dequantize(node, name, node.settings[f"{prefix}_scale"], node.settings[f"{prefix}_zero_point"])

    def dequantize(self, node: Node, name: str, scale: Any, zero_point: Any, out: str | None = None) -> str:
        """The reals of an integer result, as `node` takes them."""
        dtype = np.uint8 if self.program[name].settings.get("out", "uint8") != "int16" else np.int16
        if self.fits(scale, zero_point, dtype):
            return self.op("DequantizeLinear", [name, self.constant(scale, np.float32), self.constant(zero_point, dtype)], out)
        x = self.op("DequantizeLinear", [name, self.constant(1.0, np.float32), self.constant(0, dtype)])
        x = self.op("Sub", [x, self.along(node, name, zero_point)])
        return self.op("Mul", [x, self.along(node, name, scale)], out)

    def quantize(self, node: Node, x: str, prefix: str = "out_") -> None:
        """The result of a node, from its reals."""
        settings, weights = node.settings, node.weights
        form = settings.get("out", "uint8") if node.kind in KINDS else "float32"
        if form == "float32":
            self.op("Identity", [x], out=node.name)
            return
        scale, zero = (weights.get(f"{prefix}{each}", settings.get(f"{prefix}{each}")) for each in ("scale", "zero_point"))
        dtype = np.int16 if form == "int16" else np.uint8
        self.integer[node.name] = (scale, zero)
        fits, most = self.fits(scale, zero, dtype), 2 ** settings.get(f"{prefix}bits", 8) - 1
        if not fits:
            x = self.op("Mul", [x, self.along(node, node.name, 1 / torch.as_tensor(scale).double())])
            x = self.op("Add", [x, self.along(node, node.name, zero)])
        if form == "uint8" and most < 255:  # QuantizeLinear saturates at 255
            x = self.op("Min", [x, self.constant((most - zero) * scale if fits else most, np.float32)])
        pair = (scale, zero) if fits else (1.0, 0)
        self.op("QuantizeLinear", [x, self.constant(pair[0], np.float32), self.constant(pair[1], dtype)], out=node.name)

    @staticmethod
    def fits(scale: Any, zero_point: Any, dtype: Any) -> bool:
        """Whether a pair of Q and DQ holds it: numbers, not one for each channel, and the zero-point within the type."""
        if any(isinstance(each, Tensor) and each.numel() > 1 for each in (scale, zero_point)):
            return False
        return np.iinfo(dtype).min <= int(zero_point) <= np.iinfo(dtype).max

    def along(self, node: Node, name: str, values: Any) -> str:
        """A number, or one for each channel of a result."""
        values = torch.as_tensor(values).double()
        if values.numel() > 1:
            values = values.reshape(-1, *(1,) * (len(self.program[name].size) - 1))
        return self.constant(values, np.float32)

    def activate(self, x: str, activation: str) -> str:
        if activation == "none":
            return x
        if activation == "relu":
            return self.op("Relu", [x])
        if activation == "silu":
            return self.op("Mul", [x, self.op("Sigmoid", [x])])
        if activation == "gelu":
            return self.op("Gelu", [x])
        if activation == "hard_swish":
            return self.op("HardSwish", [x])
        if activation == "relu6":
            return self.op("Clip", [x, self.constant(0.0, np.float32), self.constant(6.0, np.float32)])
        raise ValueError(f"export_onnx: model: expected one of {', '.join(ACTIVATIONS)} as activation, got {shown(activation)}")

    def phases(self, x: str, size: tuple[int, ...], patch: tuple[int, int]) -> str:
        """(B, C, H, W) as (B, C, H / ph, ph, W / pw, pw)."""
        c, h, w = size
        ph, pw = patch
        return self.op("Reshape", [x, self.constant([0, c, h // ph, ph, w // pw, pw], np.int64)])

    def softmax(self, x: str, axes: list[int]) -> str:
        where = self.constant(axes, np.int64)
        e = self.op("Exp", [self.op("Sub", [x, self.op("ReduceMax", [x, where])])])
        return self.op("Div", [e, self.op("ReduceSum", [e, where])])

    # --- nodes ---

    def quantize_node(self, node: Node) -> None:
        self.quantize(node, node.inputs[0], "")

    def dequantize_node(self, node: Node) -> None:
        name, weights, settings = node.inputs[0], node.weights, node.settings
        scale, zero = (weights.get(each, settings.get(each)) for each in ("scale", "zero_point"))
        self.dequantize(node, name, scale, zero, node.name)

    def product(self, node: Node) -> None:
        settings, weights = node.settings, node.weights
        residual, dynamic = bool(settings.get("residual")), bool(settings.get("dynamic"))
        inputs = self.multiplied(node, len(node.inputs) - residual - dynamic)
        weight, integer = weights["weight"], node.kind in KINDS
        w = self.integer_weight(node) if integer else self.constant(weight, np.float32)
        bias = [self.constant(weights["bias"], np.float32)] if "bias" in weights else []
        x = inputs[0] if len(inputs) == 1 else self.op("Concat", inputs, axis=1)
        if weight.ndim == 2:
            y = self.op("Gemm", [x, w, *bias], transB=1)
        else:
            side, pad = weight.shape[-1], weight.shape[-1] // 2
            groups = weight.shape[0] if node.kind.endswith("depthwise_conv2d") else 1
            y = self.op("Conv", [x, w, *bias], kernel_shape=[side, side], pads=[pad] * 4, strides=[settings["stride"]] * 2, group=groups)
        y = self.slopes(node, y, node.inputs[-1]) if dynamic else self.activate(y, settings.get("activation", "none"))
        if residual:
            y = self.op("Add", [y, self.taken(node, -1, "residual" if "residual_scale" in settings else None)])
        self.quantize(node, y)

    def multiplied(self, node: Node, count: int) -> list[str]:
        """The reals that a product multiplies."""
        names = list(node.inputs[:count])
        if node.kind not in KINDS:
            return names
        zero = node.weights.get("a_zero_point", node.settings.get("a_zero_point"))
        sizes = [self.program[name].size[0] for name in names]
        zeros = zero.split(sizes) if isinstance(zero, Tensor) and zero.numel() > 1 else [zero] * count
        return [self.dequantize(node, name, node.settings["a_scale"], z) for name, z in zip(names, zeros, strict=True)]

    def integer_weight(self, node: Node) -> str:
        weight = node.weights["weight"]
        zero = self.constant(np.zeros(weight.shape[0]), np.int8)
        scale = self.constant(node.weights["weight_scale"], np.float32)
        return self.op("DequantizeLinear", [self.constant(weight, np.int8), scale, zero], axis=0)

    def norm(self, node: Node) -> None:
        integer = node.kind in KINDS
        x = self.dequantize(node, node.inputs[0], node.settings["scale"], 0) if integer else node.inputs[0]
        group = node.settings["norm"] == "group" if integer else node.kind == "group_norm"
        axes = self.constant([1, 2, 3] if group else [1], np.int64)
        centred = self.op("Sub", [x, self.op("ReduceMean", [x, axes])])
        variance = self.op("ReduceMean", [self.op("Mul", [centred, centred]), axes])
        deviation = self.op("Sqrt", [self.op("Add", [variance, self.constant(node.settings["eps"], np.float32)])])
        y = self.op("Div", [centred, deviation])
        for name, kind in (("weight", "Mul"), ("bias", "Add")):
            if name in node.weights:
                y = self.op(kind, [y, self.along(node, node.name, node.weights[name])])
        self.quantize(node, y)

    def context(self, node: Node) -> None:
        patch, size = node.settings["patch"], self.program[node.inputs[1]].size
        first = self.op("Slice", [self.taken(node, 0), *(self.constant([i], np.int64) for i in (0, 1, 1))])
        weight = self.softmax(self.phases(first, (1, *size[1:]), patch), [2, 4])
        values = self.phases(self.taken(node, 1, "x"), size, patch)
        sums = self.op("ReduceSum", [self.op("Mul", [values, weight]), self.constant([2, 4], np.int64)], keepdims=0)
        self.quantize(node, sums)

    def gate(self, node: Node) -> None:
        patch, (d, h, w) = node.settings["patch"], node.size
        v = self.op("Slice", [self.taken(node, 0), *(self.constant([i], np.int64) for i in (1, 1 + d, 1))])
        k = self.op("Reshape", [node.inputs[1], self.constant([0, d, 1, patch[0], 1, patch[1]], np.int64)])
        y = self.op("Mul", [self.phases(self.op("Relu", [v]), (d, h, w), patch), k])
        self.quantize(node, self.op("Reshape", [y, self.constant([0, d, h, w], np.int64)]))

    def softmax_attention(self, node: Node) -> None:
        heads, (d, h, w), (ph, pw) = node.settings["heads"], node.size, node.settings["patch"]
        shape = self.constant([0, 3, heads, d // heads, h // ph, ph, w // pw, pw], np.int64)
        # (3, B, heads, ph, pw, H / ph, W / pw, c)
        x = self.op("Transpose", [self.op("Reshape", [self.taken(node, 0), shape])], perm=[1, 0, 2, 5, 7, 4, 6, 3])
        flat = self.constant([3, -1, heads * ph * pw, (h // ph) * (w // pw), d // heads], np.int64)
        x = self.op("Reshape", [x, flat])
        q, k, v = (self.op("Gather", [x, self.constant(i, np.int64)], axis=0) for i in range(3))
        scores = self.op("MatMul", [q, self.op("Transpose", [k], perm=[0, 1, 3, 2])])
        weights = self.op("Softmax", [self.op("Mul", [scores, self.constant(node.settings["scale"], np.float32)])], axis=-1)
        y = self.op("MatMul", [weights, v])
        apart = self.constant([0, heads, ph, pw, h // ph, w // pw, d // heads], np.int64)
        y = self.op("Transpose", [self.op("Reshape", [y, apart])], perm=[0, 1, 6, 4, 2, 5, 3])
        self.quantize(node, self.op("Reshape", [y, self.constant([0, d, h, w], np.int64)]))

    def attention(self, node: Node) -> None:
        """Maps (B, heads c, H, W) as (B, heads, c, H W)."""
        settings, weights = node.settings, node.weights
        shapes = [(0, settings["heads"], -1, math.prod(self.program[name].size[1:])) for name in node.inputs]
        q, k, v = (
            self.op("Reshape", [self.taken(node, i, name), self.constant(shapes[i], np.int64)]) for i, name in enumerate("qkv")
        )  # fmt: skip
        scores = self.op("MatMul", [self.op("Transpose", [q], perm=[0, 1, 3, 2]), k])
        scores = self.mixed(weights.get("mix_scores"), self.op("Mul", [scores, self.constant(settings["scale"], np.float32)]))
        if "bias" in weights:
            scores = self.op("Add", [scores, self.constant(weights["bias"], np.float32)])
        shares = self.mixed(weights.get("mix_weights"), self.op("Softmax", [scores], axis=-1))
        if "mix_bias" in weights:
            shares = self.op("Add", [shares, self.constant(weights["mix_bias"].reshape(-1, 1, 1), np.float32)])
        y = self.op("MatMul", [v, self.op("Transpose", [shares], perm=[0, 1, 3, 2])])
        self.quantize(node, self.op("Reshape", [y, self.constant([0, *node.size], np.int64)]))

    def mixed(self, mixture: Tensor | None, x: str) -> str:
        """Heads, (heads, heads) of (B, heads, queries, keys)."""
        return x if mixture is None else self.op("Einsum", [self.constant(mixture, np.float32), x], equation="hg,bgnm->bhnm")

    def plus(self, node: Node) -> None:
        y = self.op("Add", [self.taken(node, i, name) for i, name in enumerate("ab")])
        self.quantize(node, self.activate(y, node.settings.get("activation", "none")))

    def pool(self, node: Node) -> None:
        self.quantize(node, self.op("ReduceMean", [self.taken(node, 0, "a"), self.constant([2, 3], np.int64)], keepdims=0))

    def mixer(self, node: Node) -> None:
        x = self.taken(node, 0, "a")
        mean = self.op("AveragePool", [x], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=0)
        moved = self.op("Mul", [self.op("Sub", [mean, x]), self.along(node, node.name, node.weights["scale"])])
        self.quantize(node, self.op("Add", [x, moved]))

    def resize(self, node: Node) -> None:
        mode = "align_corners" if node.settings["align_corners"] else "half_pixel"
        sizes = self.constant(node.size[1:], np.int64)  # a float32 scale may give one pixel more or less
        y = self.op("Resize", [self.taken(node, 0), "", "", sizes], mode="linear", coordinate_transformation_mode=mode, axes=[2, 3])
        if node.kind in KINDS:
            self.again(node, y, self.integer[node.inputs[0]])
        else:
            self.quantize(node, y)

    def again(self, node: Node, x: str, pair: tuple[Any, Any]) -> None:
        """As the input was quantized."""
        scale, zero = pair
        values = {"out_scale": scale, "out_zero_point": zero}
        of_channels = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        self.quantize(replace(node, settings={**node.settings, **values}, weights=of_channels), x)

    def lookup(self, node: Node) -> None:
        index = self.op("Cast", [node.inputs[0]], to=6)  # int32
        self.op("Gather", [self.constant(node.weights["table"], np.uint8), index], out=node.name, axis=0)
        # Its scale is nowhere: who computes with the bytes knows theirs, and a resize, whose weights sum to 1, is the same with any.
        self.integer[node.name] = (1.0, 0)

    def copied(self, node: Node, kind: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Numbers that stay as they are: integers of one scale, or floats."""
        self.op(kind, inputs, out=node.name, **attributes)
        if node.inputs[0] in self.integer:
            self.integer[node.name] = self.integer[node.inputs[0]]

    def cat(self, node: Node) -> None:
        self.copied(node, "Concat", node.inputs, axis=1)

    def repeat(self, node: Node) -> None:
        channels = torch.arange(self.program[node.inputs[0]].size[0]).repeat_interleave(node.settings["times"])
        self.copied(node, "Gather", [node.inputs[0], self.constant(channels, np.int64)], axis=1)

    def pixel(self, node: Node) -> None:
        pixels = self.op("Reshape", [node.inputs[0], self.constant([0, 0, -1], np.int64)])
        self.copied(node, "Gather", [pixels, self.constant(node.settings["index"], np.int64)], axis=2)

    def value(self, node: Node) -> None:
        """A constant, for every image."""
        (source,) = (each.name for each in self.program if each.kind == "input")
        images = self.op("Shape", [source], start=0, end=1)
        shape = self.op("Concat", [images, self.constant(node.size, np.int64)], axis=0)
        self.op("Expand", [self.constant(node.weights["value"].reshape(1, *node.size), np.float32), shape], out=node.name)

    def affine(self, node: Node) -> None:
        scale, shift = (self.along(node, node.name, node.weights[name]) for name in ("scale", "shift"))
        self.op("Add", [self.op("Mul", [node.inputs[0], scale]), shift], out=node.name)

    def activation(self, node: Node) -> None:
        self.op("Identity", [self.activate(node.inputs[0], node.settings["function"])], out=node.name)

    def dynamic_relu(self, node: Node) -> None:
        self.op("Identity", [self.slopes(node, *node.inputs)], out=node.name)

    def slopes(self, node: Node, x: str, u: str) -> str:
        """max((1 + a) x, b x) of u = a|b, within -1 and 1."""
        count, low, high = node.size[0], *(self.constant(each, np.float32) for each in (-1.0, 1.0))
        shape = self.constant([0, 2 * count, *(1,) * (len(node.size) - 1)], np.int64)
        u = self.op("Reshape", [self.op("Clip", [u, low, high]), shape])
        a, b = (
            self.op("Slice", [u, *(self.constant([i], np.int64) for i in (first, first + count, 1))]) for first in (0, count)
        )  # fmt: skip
        return self.op("Max", [self.op("Mul", [x, self.op("Add", [a, high])]), self.op("Mul", [x, b])])

    def hard_gate(self, node: Node) -> None:
        x, u = node.inputs
        three, zero, six = (self.constant(each, np.float32) for each in (3.0, 0.0, 6.0))
        share = self.op("Div", [self.op("Clip", [self.op("Add", [u, three]), zero, six]), six])
        self.op("Mul", [x, share], out=node.name)


_BOTH: dict[str, Callable[[_Writer, Node], None]] = {  # of bytes with a q before their names, and of floats
    "conv2d": _Writer.product,
    "depthwise_conv2d": _Writer.product,
    "linear": _Writer.product,
    "separable_context": _Writer.context,
    "separable_gate": _Writer.gate,
    "patch_attention": _Writer.softmax_attention,
    "attention": _Writer.attention,
    "add": _Writer.plus,
    "avg_pool": _Writer.pool,
    "pool_mixer": _Writer.mixer,
    "resize": _Writer.resize,
}
_WRITE: dict[str, Callable[[_Writer, Node], None]] = {
    "quantize": _Writer.quantize_node,
    "dequantize": _Writer.dequantize_node,
    **_BOTH,
    **{f"q{kind}": write for kind, write in _BOTH.items()},
    "qnorm": _Writer.norm,
    **dict.fromkeys(NORMS, _Writer.norm),
    "qlookup": _Writer.lookup,
    "constant": _Writer.value,
    "cat": _Writer.cat,
    "repeat": _Writer.repeat,
    "pixel": _Writer.pixel,
    "affine": _Writer.affine,
    "activation": _Writer.activation,
    "dynamic_relu": _Writer.dynamic_relu,
    "hard_gate": _Writer.hard_gate,
}
