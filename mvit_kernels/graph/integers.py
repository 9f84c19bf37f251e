"""Integer nodes on our ops: what is computed once of each node, and how maps and vectors enter and leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mvit_kernels import ops
from mvit_kernels.ops.placed import Placed

from .program import Node, Program

Tensor = torch.Tensor

DTYPES = {"uint8": torch.uint8, "int16": torch.int16, "float32": torch.float32}


class Prepared:
    """A node that is ready to run: call it with the results of the node's inputs.

    Attributes:
        handle: what `ops.prepare_qconv2d` and the like made, with packed weights; None for other nodes.
    """

    def __init__(self, call: Callable[..., Tensor], handle: Any = None) -> None:
        self.call, self.handle = call, handle

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.call(*inputs)


def prepare(node: Node, backend: str | None) -> Prepared:
    """Everything that does not depend on the image. backend: "reference", "cpu" or None for automatic choice; the bits are the same.

    Maps are (B, C, H, W) and leave in channels_last memory, vectors (B, C).
    """
    return _PREPARE[node.kind](node, backend)


def prepared(program: Program, node: Node, backend: str | None) -> Prepared:
    """`prepare`, once for each node of a program."""
    step = program.prepared.get((node.name, backend))
    if step is None:
        step = program.prepared[node.name, backend] = prepare(node, backend)
    return step


def _value(node: Node, name: str) -> Any:
    """A number, or one for each channel."""
    return node.weights.get(name, node.settings.get(name))


class _Values:
    """Numbers, or tensors that are on the device of who asks for them (`Placed`)."""

    def __init__(self, *values: Any) -> None:
        self._values = values
        self._placed = Placed(*(each if isinstance(each, Tensor) else None for each in values))
        self._numbers = not any(isinstance(each, Tensor) for each in values)

    def on(self, device: torch.device) -> tuple[Any, ...]:
        if self._numbers:
            return self._values
        return tuple(value if x is None else x for value, x in zip(self._values, self._placed.on(device), strict=True))


def _in_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def _pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def _map(x: Tensor) -> Tensor:
    """(B, H, W, C) as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


# --- in and out ---


def _quantize(node: Node, backend: str | None) -> Prepared:
    scale, bits = _value(node, "scale"), node.settings.get("bits", 8)
    if node.settings["out"] == "int16":
        return Prepared(lambda x: ops.quantize_stream(_in_channels_last(x), scale, backend=backend))
    values = _Values(scale, _value(node, "zero_point"))

    def call(x: Tensor) -> Tensor:
        return ops.quantize(x, *values.on(x.device), bits=bits, axis=1, channels_last=x.ndim == 4, backend=backend)

    return Prepared(call)


def _dequantize(node: Node, backend: str | None) -> Prepared:
    scale = _value(node, "scale")
    if node.settings["source"] == "int16":
        return Prepared(lambda x: ops.dequantize_stream(_in_channels_last(x), scale, backend=backend))
    values = _Values(scale, _value(node, "zero_point"))
    return Prepared(lambda x: ops.dequantize(_in_channels_last(x), *values.on(x.device), axis=1, backend=backend))


# --- products ---


def _epilogue(node: Node) -> dict[str, Any]:
    settings = node.settings
    values: dict[str, Any] = {
        "w_scale": node.weights["weight_scale"], "bias": node.weights["bias"], "table": node.weights.get("table"),
        "activation": None if settings.get("form") == "curve" else settings.get("activation"),  # a curve is the activation
        "out_dtype": DTYPES[settings["out"]], "a_bits": settings.get("a_bits", 8),
    }  # fmt: skip
    if settings["out"] != "float32":
        values |= {name: _value(node, name) for name in ("out_scale", "out_zero_point")} | {"out_bits": settings.get("out_bits", 8)}
    return values


def _qconv2d(node: Node, backend: str | None) -> Prepared:
    settings, weight = node.settings, node.weights["weight"]
    second, residual = bool(settings.get("second")), bool(settings.get("residual"))
    packed = ops.pack_weight(weight, bits=settings["weight_bits"])
    common = {
        **_epilogue(node), "kernel_size": weight.shape[-1], "stride": settings["stride"], "backend": backend,
        "residual_scale": settings.get("residual_scale"), "residual_zero_point": settings.get("residual_zero_point"),
    }  # fmt: skip

    handle = ops.prepare_qconv2d(
        packed, settings["a_scale"], _value(node, "a_zero_point"), second_channels=settings["second_channels"] if second else 0, **common
    )  # fmt: skip

    def call(x: Tensor, *more: Tensor) -> Tensor:
        return handle(x, more[0] if second else None, more[-1] if residual else None)

    return Prepared(call, handle)


def _qdepthwise_conv2d(node: Node, backend: str | None) -> Prepared:
    settings = node.settings
    handle = ops.prepare_qdepthwise_conv2d(
        node.weights["weight"], stride=settings["stride"], a_scale=settings["a_scale"], a_zero_point=_value(node, "a_zero_point"),
        backend=backend, **_epilogue(node),
    )  # fmt: skip
    return Prepared(handle, handle)


def _qlinear(node: Node, backend: str | None) -> Prepared:
    settings = node.settings
    handle = ops.prepare_qgemm(
        ops.pack_weight(node.weights["weight"], bits=settings["weight_bits"]), settings["a_scale"], _value(node, "a_zero_point"),
        backend=backend, **_epilogue(node),
    )  # fmt: skip
    return Prepared(handle, handle)


# --- transformers ---


def _qnorm(node: Node, backend: str | None) -> Prepared:
    settings = node.settings
    values = {name: settings[name] for name in ("scale", "out_scale", "out_zero_point", "eps")} | {"bits": settings["out_bits"]}
    values |= {name: node.weights[name] for name in ("weight", "bias") if name in node.weights}
    handle = ops.prepare_qnorm(settings["norm"], backend=backend, **values)
    return Prepared(handle, handle)


def _of_settings(node: Node, *names: str) -> dict[str, Any]:
    return {name: node.settings[name] for name in names}


def _qseparable_context(node: Node, backend: str | None) -> Prepared:
    patch = node.settings["patch"]
    values = _of_settings(node, "x_scale", "x_zero_point")
    if node.settings["out"] == "uint8":
        values |= _of_settings(node, "out_scale", "out_zero_point", "out_bits")
    handle = ops.prepare_qseparable_context(node.weights["table"], patch_size=patch, backend=backend, **values)
    return Prepared(lambda scores, x: _map(handle(scores[:, 0], _pixels(x)).unflatten(1, patch)), handle)


def _qseparable_gate(node: Node, backend: str | None) -> Prepared:
    values = _of_settings(node, "v_scale", "v_zero_point", "out_scale", "out_zero_point", "out_bits")
    handle = ops.prepare_qseparable_gate(patch_size=node.settings["patch"], backend=backend, **values)
    return Prepared(lambda v, context: _map(handle(_pixels(v[:, 1:]), _pixels(context).flatten(1, 2))), handle)


def _qpatch_attention(node: Node, backend: str | None) -> Prepared:
    heads, patch = node.settings["heads"], node.settings["patch"]
    values = _of_settings(
        node, "q_scale", "q_zero_point", "k_scale", "v_scale", "v_zero_point", "out_scale", "out_zero_point", "out_bits", "scale"
    )
    return Prepared(lambda x: _map(ops.qpatch_attention(_pixels(x), heads, patch_size=patch, backend=backend, **values)))


def _qattention(node: Node, backend: str | None) -> Prepared:
    points = [f"{name}_{what}" for name in ("q", "k", "v", "out") for what in ("scale", "zero_point")]
    values = _of_settings(node, *points, "out_bits", "scale") | {
        name: node.weights[name] for name in ("bias", "mix_scores", "mix_weights", "mix_bias") if name in node.weights
    }
    handle = ops.prepare_qattention(node.settings["heads"], backend=backend, **values)

    def call(*inputs: Tensor) -> Tensor:
        tokens = handle(*(_pixels(x).flatten(1, 2) for x in inputs))
        return _map(tokens.unflatten(1, inputs[0].shape[2:]))

    return Prepared(call, handle)


# --- the rest ---


def _qadd(node: Node, backend: str | None) -> Prepared:
    values = _of_settings(node, "a_scale", "a_zero_point", "b_scale", "b_zero_point", "out_scale", "out_zero_point", "out_bits")
    values["activation"] = node.settings.get("activation")
    return Prepared(lambda a, b: ops.qadd(_in_channels_last(a), b, backend=backend, **values))


def _qavg_pool(node: Node, backend: str | None) -> Prepared:
    values = _of_settings(node, "a_scale", "a_zero_point")
    if node.settings["out"] == "uint8":
        values |= _of_settings(node, "out_scale", "out_zero_point", "out_bits")
    return Prepared(lambda x: ops.qavg_pool(x, out_dtype=DTYPES[node.settings["out"]], backend=backend, **values))


def _qpool_mixer(node: Node, backend: str | None) -> Prepared:
    values = _of_settings(node, "a_scale", "a_zero_point", "out_scale", "out_zero_point", "out_bits")
    handle = ops.prepare_qpool_mixer(node.weights["scale"], backend=backend, **values)
    return Prepared(lambda x: handle(_in_channels_last(x)), handle)


def _qresize(node: Node, backend: str | None) -> Prepared:
    size, align_corners = (node.size[1], node.size[2]), node.settings["align_corners"]
    return Prepared(lambda x: ops.qresize(x, size, align_corners=align_corners, backend=backend))


def _qlookup(node: Node, backend: str | None) -> Prepared:
    table = _Values(node.weights["table"])
    return Prepared(lambda x: ops.qlookup(_in_channels_last(x), *table.on(x.device), backend=backend))


_PREPARE: dict[str, Callable[[Node, str | None], Prepared]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "qconv2d": _qconv2d,
    "qdepthwise_conv2d": _qdepthwise_conv2d,
    "qlinear": _qlinear,
    "qnorm": _qnorm,
    "qseparable_context": _qseparable_context,
    "qseparable_gate": _qseparable_gate,
    "qpatch_attention": _qpatch_attention,
    "qattention": _qattention,
    "qadd": _qadd,
    "qpool_mixer": _qpool_mixer,
    "qavg_pool": _qavg_pool,
    "qresize": _qresize,
    "qlookup": _qlookup,
}
KINDS = frozenset(_PREPARE)
