"""From a float program, what its results are in integers and integer weights to the integer program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from mvit_kernels import reference
from mvit_kernels.graph import Node, Program

from .config import QuantConfig
from .layout import NORMS, PRODUCTS, Layout
from .representation import Byte, Channels, Projection, Representation, Scores, Stream, completed
from .rounding import Layer, is_rounded, round_weight, with_rounded_weight
from .simulated import SOFTMAX, Twin
from .softmaxes import key_of, with_softmax

Tensor = torch.Tensor
_TWIN = "a twin uniform quantizer"


def integer_program(
    program: Program, representations: Mapping[str, Representation], config: QuantConfig, layers: Mapping[str, Layer] | None = None,
    floating: Collection[str] = (),
) -> Program:  # fmt: skip
    """The program in integers, as far as kernels and `config` go; nodes keep their names, and conversions between forms get their own:
    `<name>.quantize`, `<name>.dequantize`, and `<name>.bytes` for bytes of what is kept in a stream. What no kernel runs is a float node
    between quantizers, with the reason as its setting `simulated` (see `simulation_only`).

    layers: integer weights by name (see `rounding.rounded`); those that are missing are rounded here. floating: nodes that run in float32
    in any case. So do nodes that need a representation which is not given.
    """
    layout, found = settled(program, representations, config, floating)
    return _Builder(layout, found, config, layers or {}, representations).program()


def simulation_only(program: Program) -> dict[str, str]:
    """Why, by the names of the nodes of an integer program that no kernel runs."""
    return {node.name: node.settings["simulated"] for node in program if "simulated" in node.settings}


def _simulated(layout: Layout, found: Mapping[str, Representation]) -> dict[str, str]:
    """The reasons, by the names of nodes that kernels would run with other quantizers."""
    reasons = {node.name: _reasons(layout, found, node) for node in layout.program if node.name in layout.integer}
    return {name: " and ".join(each) for name, each in reasons.items() if each}


def _reasons(layout: Layout, found: Mapping[str, Representation], node: Node) -> list[str]:
    softmax = found.get(key_of(node.name))
    reasons = [] if softmax is None else [f"softmax by {type(softmax).__name__}"]
    edges = [*zip(node.inputs, layout.wanted(node), strict=True), (node.name, layout.written(node))]
    for i, (name, form) in enumerate(edges):
        value = found.get(layout.key(name, form)) if form != "float" else None
        channels = node.kind == "resize" or (node.kind in PRODUCTS and i in (0, len(edges) - 1))
        if isinstance(value, Twin):
            reasons.append(_TWIN)
        elif isinstance(value, Channels) and form == "stream":
            reasons.append("a stream of bytes with a scale for each channel")
        elif isinstance(value, Channels) and not channels:
            reasons.append("a scale for each channel where its kernel has one")
    return list(dict.fromkeys(reasons))


def settled(
    program: Program, known: Mapping[str, Representation], config: QuantConfig, floating: Collection[str] = ()
) -> tuple[Layout, dict[str, Representation]]:  # fmt: skip
    """The layout in which nothing lacks a representation, and these."""
    floating = set(floating)
    while True:
        layout = Layout(program, config, floating)
        found = completed(layout, known)
        missing = {name for key, (name, _) in layout.needed().items() if key not in found}
        if not missing:
            return layout, found
        takers = {user for name in missing for user in layout.users[name] if user}
        floating |= layout.integer & (missing | takers)


class _Builder:
    def __init__(
        self, layout: Layout, found: Mapping[str, Representation], config: QuantConfig, layers: Mapping[str, Layer],
        known: Mapping[str, Representation],
    ) -> None:  # fmt: skip
        """known: the representations that layers were rounded for; at other image sizes some of them may not be found."""
        self.layout, self.found, self.config, self.layers, self.known = layout, found, config, layers, known
        self.simulated = _simulated(layout, found)
        self.nodes: list[Node] = []
        self.have: dict[tuple[str, str], str] = {}  # (name, form) -> the node of the integer program that has it
        self.sizes = {node.name: node.size for node in layout.program}

    def program(self) -> Program:
        source = self.layout.program
        for node in source:
            self.add(node)
        outputs = [self.get(name, "float") for name in source.outputs]
        return Program(self.nodes, outputs, source.structure)

    def add(self, node: Node) -> None:
        if node.name in self.simulated:
            self.simulate(node)
            return
        inputs = tuple(self.get(name, form) for name, form in zip(node.inputs, self.layout.wanted(node), strict=True))
        node = replace(node, inputs=inputs) if node.name in self.layout.integer else replace(self.in_floats(node), inputs=inputs)
        written = self.layout.written(node)
        if node.name in self.layout.integer:
            node = _MAKE[node.kind](self, node, written)
        self.nodes.append(node)
        self.have[node.name, written] = node.name

    def simulate(self, node: Node) -> None:
        """In floats, on what its inputs hold; the result is quantized as the kernel would write it."""
        name, written, wanted = node.name, self.layout.written(node), self.layout.wanted(node)
        inputs = tuple(self.values(each, form) for each, form in zip(node.inputs, wanted, strict=True))
        if is_rounded(node, self.config):
            source = self.representation(node.inputs[0], "byte")
            node = with_rounded_weight(node, self.layers.get(name) or round_weight(node, self.config, source), source)
        softmax = self.found.get(key_of(name))
        if isinstance(softmax, SOFTMAX):
            node = with_softmax(node, softmax)
        self.nodes.append(replace(node, inputs=inputs, settings={**node.settings, "simulated": self.simulated[name]}))
        self.have[name, "float"] = name
        if written != "float":
            self.get(name, written)
            del self.have[name, "float"]  # who takes floats takes what the integers hold

    def in_floats(self, node: Node) -> Node:
        if not is_rounded(node, self.config):
            return node
        layer = self.layers.get(node.name)
        if layer is None:
            return with_rounded_weight(node, round_weight(node, self.config, None))
        source = self.source(node)
        while source not in self.known and self.layout.program[source].kind == "resize":  # one that the calibration did not have
            source = self.layout.program[source].inputs[0]
        return with_rounded_weight(node, layer, self.known.get(source))

    # --- forms ---

    def get(self, name: str, form: str) -> str:
        """The node that has a result in this form, made if there is none."""
        have = self.have.get((name, form))
        if have is not None:
            return have
        if form == "float":
            self.have[name, form] = self.values(name, "byte" if (name, "byte") in self.have else "stream")
            return self.have[name, form]
        node = self.quantize(name, form)
        self.nodes.append(node)
        self.have[name, form] = node.name
        return node.name

    def values(self, name: str, form: str) -> str:
        """The node that has, as floats, what a form of a result holds."""
        if form == "float":
            return self.get(name, form)
        held = self.get(name, form)
        if isinstance(self.representation(name, form), Twin):
            return held
        have = self.have.get((name, f"values of {form}"))
        if have is None:
            node = self.dequantize(name, form)
            self.nodes.append(node)
            have = self.have[name, f"values of {form}"] = node.name
        return have

    def dequantize(self, name: str, form: str) -> Node:
        settings, weights = self.scale_of(name, form)
        source = "int16" if isinstance(self.representation(name, form), Stream) else "uint8"
        settings = {"source": source, **{key: settings[key] for key in settings if key != "bits"}}
        held = self.have[name, form]
        return Node(f"{held}.dequantize", "dequantize", (held,), self.sizes[name], settings, weights)

    def quantize(self, name: str, form: str) -> Node:
        source, found = self.get(name, "float"), self.representation(name, form)
        own = f"{name}.quantize" if self.layout.key(name, form) == name else f"{name}.bytes"
        if isinstance(found, Twin):
            settings: dict[str, Any] = {"quantizer": found, "simulated": _TWIN}
            return Node(own, "simulate", (source,), self.sizes[name], settings)
        settings, weights = self.scale_of(name, form)
        settings = {"out": "int16" if isinstance(found, Stream) else "uint8", **settings}
        return Node(own, "quantize", (source,), self.sizes[name], settings, weights)

    def representation(self, name: str, form: str) -> Representation:
        return self.found[self.layout.key(name, form)]

    def byte(self, name: str) -> Byte:
        found = self.representation(name, "byte")
        assert isinstance(found, Byte)
        return found

    def scores(self, name: str) -> Scores:
        found = self.representation(name, "byte")
        assert isinstance(found, Scores)
        return found

    def projection(self, name: str) -> Projection:
        found = self.representation(name, "byte")
        assert isinstance(found, Projection)
        return found

    def stream(self, name: str) -> Stream:
        found = self.representation(name, "stream")
        assert isinstance(found, Stream)
        return found

    def scale_of(self, name: str, form: str, prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Scale, zero-point and bits: (among the settings, among the weights)."""
        found = self.representation(name, form)
        if isinstance(found, Stream):
            return {f"{prefix}scale": found.scale, f"{prefix}zero_point": 0}, {}
        if isinstance(found, Byte):
            return {f"{prefix}scale": found.scale, f"{prefix}zero_point": found.zero_point, f"{prefix}bits": found.bits}, {}
        if not isinstance(found, Channels):
            assert isinstance(found, (Scores, Projection))
            parts = found.of_channels(self.sizes[name][0])
            found = Channels(tuple(part.scale for part in parts), tuple(part.zero_point for part in parts), parts[0].bits)
        weights = {
            f"{prefix}scale": torch.tensor(found.scales, dtype=torch.float32),
            f"{prefix}zero_point": torch.tensor(found.zero_points, dtype=torch.int32),
        }
        return {f"{prefix}bits": found.bits}, weights

    def source(self, node: Node, which: int = 0) -> str:
        """The name, in the float program, of an input."""
        return self.layout.program[node.name].inputs[which]

    def written_as(self, node: Node, form: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """out, and the scale of the result."""
        if form == "float":
            return {"out": "float32"}, {}
        settings, weights = self.scale_of(node.name, form, "out_")
        return {"out": "int16" if form == "stream" else "uint8", **settings}, weights

    # --- nodes ---

    def product(self, node: Node, form: str) -> Node:
        layer, source = self.layers.get(node.name), self.representation(self.source(node), "byte")
        assert isinstance(source, (Byte, Channels))
        if layer is None:
            layer = round_weight(node, self.config, source)
        out, channels = self.written_as(node, form)
        settings: dict[str, Any] = {
            **node.settings, "weight_bits": self.config.weight_bits_of(node.name), "a_scale": source.scale, "a_bits": source.bits, **out,
        }  # fmt: skip
        if isinstance(source, Byte):
            settings["a_zero_point"] = source.zero_point
        else:
            channels = {**channels, "a_zero_point": torch.tensor(source.zero_points, dtype=torch.int32)}
        if settings.get("second"):
            settings["second_channels"] = self.sizes[self.source(node, 1)][0]
        if settings.get("residual") and form != "stream":
            settings |= self.residual_of(node)
        curve = self.curve_of(node, form)
        if curve is not None:
            settings["form"], channels = "curve", channels | {"table": curve}
        kind = "qlinear" if node.kind == "linear" else f"q{node.kind}"
        return replace(node, kind=kind, settings=settings, weights={**layer, **channels})

    def curve_of(self, node: Node, form: str) -> Tensor | None:
        """The activation on int16 numbers, where bytes of one scale leave and nothing is added: much faster than a polynomial on floats."""
        name, found = node.settings.get("activation"), self.found.get(self.layout.key(node.name, form)) if form == "byte" else None
        if name not in reference.CURVES or not isinstance(found, Byte) or node.settings.get("residual"):
            return None
        if reference.curve_shift(name, found.scale) is None or not 0 <= found.zero_point < 2**found.bits:
            return None
        return reference.activation_curve(name, found.scale, found.zero_point, found.bits)

    def residual_of(self, node: Node) -> dict[str, Any]:
        form = "stream" if node.name in self.layout.streams else "byte"
        settings, _ = self.scale_of(self.source(node, -1), form, "residual_")
        return {key: settings[key] for key in ("residual_scale", "residual_zero_point")}

    def norm(self, node: Node, form: str) -> Node:
        settings = {"norm": node.kind.removesuffix("_norm"), "eps": node.settings["eps"], "scale": self.stream(self.source(node)).scale}
        return replace(node, kind="qnorm", settings=settings | self.as_byte(node))  # with gamma and beta where no product took them

    def as_byte(self, node: Node) -> dict[str, Any]:
        return self.scale_of(node.name, "byte", "out_")[0]

    def context(self, node: Node, form: str) -> Node:
        x, scores = self.byte(self.source(node, 1)), self.scores(self.source(node)).scores
        settings = {**node.settings, "x_scale": x.scale, "x_zero_point": x.zero_point, **self.written_as(node, form)[0]}
        return replace(node, kind="qseparable_context", settings=settings, weights={"table": reference.exponential_table(scores.scale)})

    def gate(self, node: Node, form: str) -> Node:
        values = self.scores(self.source(node)).values
        settings = {**node.settings, "v_scale": values.scale, "v_zero_point": values.zero_point, **self.as_byte(node)}
        return replace(node, kind="qseparable_gate", settings=settings)

    def softmax(self, node: Node, form: str) -> Node:
        x = self.projection(self.source(node))
        settings = {
            **node.settings, "q_scale": x.q.scale, "q_zero_point": x.q.zero_point, "k_scale": x.k.scale, "v_scale": x.v.scale,
            "v_zero_point": x.v.zero_point, **self.as_byte(node),
        }  # fmt: skip
        return replace(node, kind="qpatch_attention", settings=settings)

    def attention(self, node: Node, form: str) -> Node:
        settings = {**node.settings, **self.as_byte(node)}
        for which, name in enumerate("qkv"):
            x = self.byte(self.source(node, which))
            settings |= {f"{name}_scale": x.scale, f"{name}_zero_point": x.zero_point}
        return replace(node, kind="qattention", settings=settings)

    def plus(self, node: Node, form: str) -> Node:
        a, b = self.byte(self.source(node, 0)), self.byte(self.source(node, 1))
        settings = {"a_scale": a.scale, "a_zero_point": a.zero_point, "b_scale": b.scale, "b_zero_point": b.zero_point}
        return replace(node, kind="qadd", settings={**node.settings, **settings, **self.as_byte(node)})

    def pool(self, node: Node, form: str) -> Node:
        x = self.byte(self.source(node))
        settings = {"a_scale": x.scale, "a_zero_point": x.zero_point, **self.written_as(node, form)[0]}
        return replace(node, kind="qavg_pool", settings=settings)

    def mixer(self, node: Node, form: str) -> Node:
        x = self.byte(self.source(node))
        settings = {"a_scale": x.scale, "a_zero_point": x.zero_point, **self.as_byte(node)}
        return replace(node, kind="qpool_mixer", settings=settings)

    def activation(self, node: Node, form: str) -> Node:
        x, y = self.byte(self.source(node)), self.byte(node.name)
        table = reference.activation_table(node.settings["function"], x.scale, x.zero_point, y.scale, y.zero_point, y.bits)
        return replace(node, kind="qlookup", weights={"table": table})

    def resize(self, node: Node, form: str) -> Node:
        return replace(node, kind="qresize")

    def copy(self, node: Node, form: str) -> Node:
        return node  # bytes of one scale


_MAKE: dict[str, Callable[[_Builder, Node, str], Node]] = {
    "conv2d": _Builder.product,
    "depthwise_conv2d": _Builder.product,
    "linear": _Builder.product,
    **dict.fromkeys(NORMS, _Builder.norm),
    "separable_context": _Builder.context,
    "separable_gate": _Builder.gate,
    "patch_attention": _Builder.softmax,
    "attention": _Builder.attention,
    "add": _Builder.plus,
    "avg_pool": _Builder.pool,
    "pool_mixer": _Builder.mixer,
    "activation": _Builder.activation,
    "resize": _Builder.resize,
    **dict.fromkeys(("cat", "pixel", "repeat"), _Builder.copy),
}
