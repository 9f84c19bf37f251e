"""Quantized networks as ONNX files: integers at every edge as pairs of QuantizeLinear and DequantizeLinear, floats between.

Other runtimes find the integer operations in these pairs. What they compute between is rounded in other places than in our kernels, so
results are near ours, not equal: activation functions are floats, and norms and attention are spelled out in floats. Zero-points that
uint8 does not hold, and scales and zero-points of channels, have no pair that runtimes take: there the pair has scale 1 and zero-point 0,
and a product and a sum beside it do the rest, so that what takes the result runs in floats.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvit_kernels import __version__
from mvit_kernels.files import replace_file
from mvit_kernels.graph import Node, Program
from mvit_kernels.reference import ACTIVATIONS

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
        TypeError: another model.
        ValueError: quantizers that can only be simulated; a node that has no form in ONNX here (attention and pooling mixers of
            EfficientFormer, what runs through torch). It is named.
        ImportError: onnx is not installed.
    """
    if not isinstance(model, QuantizedModel):
        raise TypeError(f"export_onnx: model: expected a quantized model, of mk.quantize, got {type(model).__name__}")
    try:
        import onnx
    except ImportError as error:
        raise ImportError("export_onnx needs onnx: pip install 'mvit_kernels[export]'") from error
    sizes = None if size is None else (model.size[0], *size)
    model.require_kernels("export_onnx", sizes)
    program = model.program(sizes)
    graph = _Writer(program).graph()
    made = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="mvit_kernels", producer_version=__version__
    )
    made.ir_version = _IR
    onnx.checker.check_model(made, full_check=True)
    replace_file(Path(path), lambda temporary: temporary.write_bytes(made.SerializeToString()))


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
                raise ValueError(f"export_onnx: model: expected nodes of {', '.join(_WRITE)}, got {node.name}, which is {node.kind}")
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
        key = f"{array.dtype}|{array.shape}|{hash(array.tobytes())}"
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array.copy(order="C"), f"constant.{len(self.constants)}")
        return str(self.constants[key].name)

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
        form = settings.get("out", "uint8")
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
        raise ValueError(f"export_onnx: model: expected one of {', '.join(ACTIVATIONS)} as activation, got {activation!r}")

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
        zero = weights.get("a_zero_point", settings.get("a_zero_point"))
        count = len(node.inputs) - bool(settings.get("residual"))
        sizes = [self.program[name].size[0] for name in node.inputs[:count]]
        zeros = zero.split(sizes) if isinstance(zero, Tensor) and zero.numel() > 1 else [zero] * count
        taken = [self.dequantize(node, name, settings["a_scale"], z) for name, z in zip(node.inputs, zeros, strict=False)]
        x = taken[0] if count == 1 else self.op("Concat", taken, axis=1)
        weight = weights["weight"]
        none = self.constant(np.zeros(weight.shape[0]), np.int8)
        w = self.op("DequantizeLinear", [self.constant(weight, np.int8), self.constant(weights["weight_scale"], np.float32), none], axis=0)
        bias = self.constant(weights["bias"], np.float32)
        if node.kind == "qlinear":
            y = self.op("Gemm", [x, w, bias], transB=1)
        else:
            side, pad = weight.shape[-1], weight.shape[-1] // 2
            groups = weight.shape[0] if node.kind == "qdepthwise_conv2d" else 1
            y = self.op(
                "Conv", [x, w, bias], kernel_shape=[side, side], pads=[pad] * 4, strides=[settings["stride"]] * 2, group=groups
            )  # fmt: skip
        y = self.activate(y, settings.get("activation", "none"))
        if settings.get("residual"):
            name = node.inputs[-1]
            stream = "residual_scale" not in settings
            scale, zero = self.integer[name] if stream else (settings["residual_scale"], settings["residual_zero_point"])
            y = self.op("Add", [y, self.dequantize(node, name, scale, zero)])
        self.quantize(node, y)

    def norm(self, node: Node) -> None:
        x = self.dequantize(node, node.inputs[0], node.settings["scale"], 0)
        axes = self.constant([1, 2, 3] if node.settings["norm"] == "group" else [1], np.int64)
        centred = self.op("Sub", [x, self.op("ReduceMean", [x, axes])])
        variance = self.op("ReduceMean", [self.op("Mul", [centred, centred]), axes])
        deviation = self.op("Sqrt", [self.op("Add", [variance, self.constant(node.settings["eps"], np.float32)])])
        y = self.op("Div", [centred, deviation])
        if "weight" in node.weights:
            gamma, beta = (self.constant(node.weights[name].reshape(1, -1, 1, 1), np.float32) for name in ("weight", "bias"))
            y = self.op("Add", [self.op("Mul", [y, gamma]), beta])
        self.quantize(node, y)

    def context(self, node: Node) -> None:
        scores, x = node.inputs
        patch, settings = node.settings["patch"], node.settings
        first = self.op("Slice", [self.dequantize(node, scores, *self.integer[scores]), *(self.constant([i], np.int64) for i in (0, 1, 1))])
        size = self.program[x].size
        weight = self.softmax(self.phases(first, (1, *size[1:]), patch), [2, 4])
        values = self.phases(self.dequantize(node, x, settings["x_scale"], settings["x_zero_point"]), size, patch)
        sums = self.op("ReduceSum", [self.op("Mul", [values, weight]), self.constant([2, 4], np.int64)], keepdims=0)
        self.quantize(node, sums)

    def gate(self, node: Node) -> None:
        values, context = node.inputs
        patch, (d, h, w) = node.settings["patch"], node.size
        v = self.dequantize(node, values, *self.integer[values])
        v = self.op("Slice", [v, *(self.constant([i], np.int64) for i in (1, 1 + d, 1))])
        k = self.op("Reshape", [context, self.constant([0, d, 1, patch[0], 1, patch[1]], np.int64)])
        y = self.op("Mul", [self.phases(self.op("Relu", [v]), (d, h, w), patch), k])
        self.quantize(node, self.op("Reshape", [y, self.constant([0, d, h, w], np.int64)]))

    def softmax_attention(self, node: Node) -> None:
        name, heads, (d, h, w), (ph, pw) = node.inputs[0], node.settings["heads"], node.size, node.settings["patch"]
        x = self.dequantize(node, name, *self.integer[name])
        shape = self.constant([0, 3, heads, d // heads, h // ph, ph, w // pw, pw], np.int64)
        # (3, B, heads, ph, pw, H / ph, W / pw, c)
        x = self.op("Transpose", [self.op("Reshape", [x, shape])], perm=[1, 0, 2, 5, 7, 4, 6, 3])
        flat = self.constant([3, -1, heads * ph * pw, (h // ph) * (w // pw), d // heads], np.int64)
        x = self.op("Reshape", [x, flat])
        q, k, v = (self.op("Gather", [x, self.constant(i, np.int64)], axis=0) for i in range(3))
        scores = self.op("MatMul", [q, self.op("Transpose", [k], perm=[0, 1, 3, 2])])
        weights = self.op("Softmax", [self.op("Mul", [scores, self.constant(node.settings["scale"], np.float32)])], axis=-1)
        y = self.op("MatMul", [weights, v])
        apart = self.constant([0, heads, ph, pw, h // ph, w // pw, d // heads], np.int64)
        y = self.op("Transpose", [self.op("Reshape", [y, apart])], perm=[0, 1, 6, 4, 2, 5, 3])
        self.quantize(node, self.op("Reshape", [y, self.constant([0, d, h, w], np.int64)]))

    def plus(self, node: Node) -> None:
        settings = node.settings
        sides = [
            self.dequantize(node, name, settings[f"{i}_scale"], settings[f"{i}_zero_point"])
            for i, name in zip("ab", node.inputs, strict=True)
        ]
        self.quantize(node, self.activate(self.op("Add", sides), node.settings.get("activation", "none")))

    def pool(self, node: Node) -> None:
        settings = node.settings
        x = self.dequantize(node, node.inputs[0], settings["a_scale"], settings["a_zero_point"])
        self.quantize(node, self.op("ReduceMean", [x, self.constant([2, 3], np.int64)], keepdims=0))

    def resize(self, node: Node) -> None:
        name = node.inputs[0]
        pair = self.integer[name]
        x = self.dequantize(node, name, *pair)
        mode = "align_corners" if node.settings["align_corners"] else "half_pixel"
        sizes = self.constant(node.size[1:], np.int64)  # a float32 scale may give one pixel more or less
        y = self.op("Resize", [x, "", "", sizes], mode="linear", coordinate_transformation_mode=mode, axes=[2, 3])
        self.again(node, y, pair)

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

    def cat(self, node: Node) -> None:
        self.op("Concat", list(node.inputs), out=node.name, axis=1)
        if node.inputs[0] in self.integer:
            self.integer[node.name] = self.integer[node.inputs[0]]

    def activation(self, node: Node) -> None:
        self.op("Identity", [self.activate(node.inputs[0], node.settings["function"])], out=node.name)


_WRITE: dict[str, Callable[[_Writer, Node], None]] = {
    "quantize": _Writer.quantize_node,
    "dequantize": _Writer.dequantize_node,
    "qconv2d": _Writer.product,
    "qdepthwise_conv2d": _Writer.product,
    "qlinear": _Writer.product,
    "qnorm": _Writer.norm,
    "qseparable_context": _Writer.context,
    "qseparable_gate": _Writer.gate,
    "qpatch_attention": _Writer.softmax_attention,
    "qadd": _Writer.plus,
    "qavg_pool": _Writer.pool,
    "qresize": _Writer.resize,
    "qlookup": _Writer.lookup,
    "cat": _Writer.cat,
    "activation": _Writer.activation,
}
