"""Integer programs: the same bits on every backend, near the float program, and integers wherever kernels are."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_checks import needs_native
from test_graph_capture import random_statistics
from torch.utils import _pytree as pytree

import mvit_kernels as mk
from mvit_kernels import reference
from mvit_kernels.graph import Program, capture, optimize, run
from mvit_kernels.graph.builder import Builder
from mvit_kernels.graph.integers import KINDS, prepare
from mvit_kernels.quant import Byte, Projection, Scores, Stream, integer_program
from mvit_kernels.quant.alignment import aligned, rewritten_otherwise
from mvit_kernels.quant.calibrate import Range, ranges
from mvit_kernels.quant.layout import Layout
from mvit_kernels.quant.representation import TINY, byte_of, from_json, representations, to_json

Tensor = torch.Tensor


def sqnr(exact: Tensor, y: Tensor) -> float:
    return float(10 * torch.log10(exact.square().sum() / (y - exact).square().sum()))


@functools.cache
def network(name: str) -> tuple[Program, dict[str, Range], Tensor]:
    torch.manual_seed(0)
    program = optimize(capture(random_statistics(mk.create_model(name, num_classes=7)), (3, 64, 64)))
    x = torch.rand(2, 3, 64, 64)
    return program, ranges(program, [x], progress=False), x


def quantized(program: Program, found: dict[str, Range], **settings: Any) -> Program:
    config = mk.QuantConfig(method="minmax", **settings)
    return integer_program(program, representations(Layout(program, config), found, config), config)


def kinds(program: Program) -> Counter[str]:
    return Counter(node.kind for node in program)


def leaves(program: Program, x: Tensor, backend: str = "reference") -> list[Tensor]:
    return pytree.tree_leaves(run(program, x, backend=backend))


@needs_native
@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("name", ["mobilevitv2_050", "mobilevit_xxs"])
def test_networks_have_the_same_bits_on_every_backend(name: str, bits: int, threads: Callable[[int], None]) -> None:
    program, found, x = network(name)
    integers = quantized(program, found, weight_bits=bits, activation_bits=bits)
    expected = run(integers, x)
    for count in (1, 2):
        threads(count)
        assert torch.equal(run(integers, x, backend="cpu"), expected)
    exact = run(program, x)
    assert expected.dtype == torch.float32
    assert sqnr(exact, expected) > (20 if bits == 8 else 10)


def test_a_network_of_version_2_is_integers_from_stem_to_head() -> None:
    program, found, _ = network("mobilevitv2_050")
    integers = quantized(program, found)
    assert [node.name for node in integers if node.kind not in KINDS] == ["input"]
    assert [node.name for node in integers if node.kind in ("quantize", "dequantize")] == ["input.quantize"]
    assert [node.name for node in integers if node.name != "input.quantize"] == [node.name for node in program]
    count, of = kinds(integers), kinds(program)
    assert {kind: count[f"q{kind}"] for kind in ("conv2d", "depthwise_conv2d", "linear", "separable_gate")} == {
        kind: of[kind] for kind in ("conv2d", "depthwise_conv2d", "linear", "separable_gate")
    }
    assert integers.macs() == program.macs()
    out = {node.settings["out"] for node in integers if node.name.endswith(".key")}
    assert out == {"float32"}
    block = [node.settings for node in integers if node.name.startswith("stages.2.1")]
    streams = {settings["out_scale"] for settings in block if settings.get("out") == "int16"}
    assert len(streams) == 1


def test_a_network_of_version_1_is_integers_too() -> None:
    program, found, _ = network("mobilevit_xxs")
    integers = quantized(program, found)
    assert [node.name for node in integers if node.kind not in KINDS] == ["input"]
    assert [node.name for node in integers if node.kind in ("quantize", "dequantize")] == ["input.quantize"]
    attentions = [node for node in integers if node.kind == "qpatch_attention"]
    assert len(attentions) == kinds(program)["patch_attention"] == 9
    for node in attentions:
        made, thirds = integers[node.inputs[0]], found[node.inputs[0]].high.chunk(3)
        scale = made.weights["out_scale"].chunk(3)
        assert [float(each[0]) for each in scale][::2] == [node.settings["q_scale"], node.settings["v_scale"]]
        assert all((each == each[0]).all() for each in scale)
        assert all(255 * float(each[0]) >= 0.99 * float(high.max()) for each, high in zip(scale, thirds, strict=True))


def test_a_skipped_attention_is_float() -> None:
    program, found, x = network("mobilevit_xxs")
    integers = quantized(program, found, skip=("stages.2.1.*.attention",))
    floats = [node for node in integers if node.kind == "patch_attention"]
    assert len(floats) == 2
    assert all(integers[node.inputs[0]].settings["out"] == "float32" for node in floats)
    assert all(f"{node.name}.quantize" in integers for node in floats)
    assert sqnr(run(program, x), run(integers, x)) > 20


def test_both_inputs_of_a_convolution_have_one_scale() -> None:
    program, found, _ = network("mobilevit_xxs")
    integers = quantized(program, found)
    fusions = [node for node in integers if node.settings.get("second")]
    assert len(fusions) == 3
    for node in fusions:
        for name in node.inputs:
            made = integers[name].settings
            assert (made["out_scale"], made["out_zero_point"]) == (node.settings["a_scale"], node.settings["a_zero_point"])


def test_skip_and_overrides() -> None:
    program, found, x = network("mobilevitv2_050")
    overrides = {"stages.2.*": {"weight_bits": 6}, "stages.1.1.conv1_1x1.conv": {"activation_bits": 6}}
    integers = quantized(program, found, skip=("stem.*", "*.transformer.1.attn.qkv_proj.attention"), overrides=overrides)
    assert torch.equal(integers["stem.conv"].weights["weight"], program["stem.conv"].weights["weight"])
    assert integers["stem.conv"].kind == "conv2d"
    assert integers["stem.conv.quantize"].kind == "quantize"
    attention = "stages.2.1.transformer.1.attn.qkv_proj"
    assert integers[attention].settings["out"] == "float32"  # context and gate read the same bytes: both are floats
    assert integers[f"{attention}.attention"].kind == "separable_gate"
    assert integers[f"{attention}.attention.context"].kind == "separable_context"
    assert integers[attention.replace("1.attn", "0.attn")].kind == "qconv2d"
    for node in integers:
        if node.kind in ("qconv2d", "qdepthwise_conv2d", "qlinear"):
            bits = 6 if node.name.startswith("stages.2.") else 8
            assert node.settings["weight_bits"] == bits
            assert int(node.weights["weight"].abs().max()) == (31 if bits == 6 else 127)
    assert integers["stages.1.1.conv1_1x1.conv"].settings["out_bits"] == 6
    assert integers["stages.1.1.conv2_kxk.conv"].settings["a_bits"] == 6
    assert sqnr(run(program, x), run(integers, x)) > 15


def test_weights_only() -> None:
    program, found, x = network("mobilevitv2_050")
    integers = quantized(program, found, activation_bits=None, skip=("head.fc",))
    assert not KINDS.intersection(kinds(integers))
    assert torch.equal(integers["head.fc"].weights["weight"], program["head.fc"].weights["weight"])
    weight, exact = integers["stem.conv"].weights["weight"], program["stem.conv"].weights["weight"]
    assert all(len(row.unique()) <= 255 for row in weight)
    assert (weight - exact).abs().amax() <= exact.abs().amax() / 127 * 0.51
    assert sqnr(run(program, x), run(integers, x)) > 25


# --- networks that nobody builds ---


def conv(build: Builder, x: str, out: int, kernel: int, name: str, stride: int = 1, activation: str = "none") -> str:
    depth = build.size(x)[0]
    weight = torch.randn(out, depth, kernel, kernel) / (depth * kernel * kernel) ** 0.5
    return build.activate(build.conv2d(x, weight, 0.3 * torch.randn(out), stride, name), activation)


def norm(build: Builder, x: str, kind: str = "layer_norm", affine: bool = False) -> str:
    weights = (torch.rand(build.size(x)[0]) + 0.5, torch.randn(build.size(x)[0])) if affine else (None, None)
    return build.norm(kind, x, *weights, 1e-5)


def hard_swish(build: Builder, x: str) -> str:
    settings = {"target": torch.ops.aten.hardswish.default, "arguments": ((("input", 0),), {})}
    return build.add("torch", (x,), build.size(x), f"{x}.hardswish", settings)


def resize(build: Builder, x: str, *size: int) -> str:
    return build.add("resize", (x,), (build.size(x)[0], *size), f"{x}.resize", {"align_corners": False})


def stream_of_an_activation(build: Builder, x: str) -> list[str]:
    """A norm of something that no kernel writes as int16, which is read as bytes too."""
    y = conv(build, x, 8, 3, "first", activation="gelu")
    normal = conv(build, norm(build, y), 8, 1, "second", activation="silu")
    return [build.plus(conv(build, normal, 8, 1, "third"), y), conv(build, y, 4, 1, "fourth")]


def norm_of_a_norm(build: Builder, x: str) -> list[str]:
    y = norm(build, conv(build, x, 8, 1, "first"), "group_norm")
    return [build.plus(conv(build, norm(build, y), 8, 1, "second"), y)]


def norm_of_the_image(build: Builder, x: str) -> list[str]:
    return [conv(build, norm(build, x), 5, 1, "first")]


def norm_with_weights(build: Builder, x: str) -> list[str]:
    y = norm(build, conv(build, x, 8, 1, "first"), affine=True)
    return [conv(build, y, 5, 3, "second"), y]


def result_in_a_stream(build: Builder, x: str) -> list[str]:
    y = conv(build, x, 8, 3, "first")
    z = build.plus(conv(build, norm(build, y), 8, 1, "second"), y)
    return [z, conv(build, norm(build, z), 8, 1, "third")]


def resized_stream_and_cat(build: Builder, x: str) -> list[str]:
    y = resize(build, conv(build, x, 8, 3, "first", stride=2), 8, 8)
    both = build.cat(norm(build, y), conv(build, x, 3, 1, "second"))
    return [build.cat(both, y), conv(build, both, 6, 3, "third")]


def floats_between(build: Builder, x: str) -> list[str]:
    y = hard_swish(build, conv(build, x, 8, 3, "first"))
    z = build.activate(build.plus(conv(build, y, 8, 1, "second"), y), "relu")
    return [build.add("linear", (build.pool(z),), (5,), "head", {}, {"weight": torch.randn(5, 8)}), build.pool(y)]


def scores_that_others_take(build: Builder, x: str) -> list[str]:
    y = conv(build, x, 17, 1, "first")
    z = build.add("separable_attention", (y,), (8, 8, 8), "attention", {"patch": (2, 2)})
    return [conv(build, z, 8, 1, "second"), conv(build, y, 4, 1, "third")]


def softmax(build: Builder, x: str, scale: float = 0.3) -> str:
    depth, height, width = build.size(x)
    return build.add(
        "patch_attention", (x,), (depth // 3, height, width), f"{x}.attention{scale}", {"heads": 2, "patch": (2, 2), "scale": scale}
    )


def softmax_that_writes_a_result(build: Builder, x: str) -> list[str]:
    return [softmax(build, conv(build, x, 12, 1, "first"))]


def softmax_of_what_others_take(build: Builder, x: str) -> list[str]:
    y = conv(build, x, 12, 1, "first")
    return [conv(build, softmax(build, y), 8, 1, "second"), conv(build, y, 4, 1, "third")]


def softmax_twice_of_a_sum(build: Builder, x: str) -> list[str]:
    y = build.plus(conv(build, x, 12, 3, "first"), conv(build, x, 12, 1, "second"))
    return [build.cat(softmax(build, y), softmax(build, y, -0.5))]


def softmax_into_a_norm(build: Builder, x: str) -> list[str]:
    y = softmax(build, hard_swish(build, conv(build, x, 12, 1, "first")))
    return [conv(build, norm(build, y), 8, 1, "second")]


def depthwise_in_a_stream(build: Builder, x: str) -> list[str]:
    y = build.depthwise(conv(build, x, 8, 1, "first"), torch.randn(8, 1, 3, 3) / 3, None, 2, "second")
    return [conv(build, norm(build, y), 8, 1, "third")]


NETWORKS = (
    stream_of_an_activation, norm_of_a_norm, norm_of_the_image, norm_with_weights, result_in_a_stream, resized_stream_and_cat,
    floats_between, scores_that_others_take, depthwise_in_a_stream, softmax_that_writes_a_result,
    softmax_of_what_others_take, softmax_twice_of_a_sum, softmax_into_a_norm,
)  # fmt: skip


@needs_native
@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_forms_meet(make: Callable[[Builder, str], list[str]], bits: int) -> None:
    build = Builder()
    outputs = make(build, build.add("input", (), (3, 8, 8), "input"))
    program = optimize(Program(build.nodes, outputs, pytree.tree_structure(list(outputs))))
    x = torch.randn(3, 3, 8, 8)
    integers = quantized(program, ranges(program, [x], progress=False), activation_bits=bits)
    assert KINDS.intersection(kinds(integers))
    for exact, y, fast in zip(leaves(program, x), leaves(integers, x), leaves(integers, x, "cpu"), strict=True):
        assert y.dtype == torch.float32
        assert torch.equal(y, fast)
        assert sqnr(exact, y) > (25 if bits == 8 else 12)


# --- parts ---


def test_bytes_of_ranges() -> None:
    assert byte_of(0.0, 0.0, 8) == byte_of(0.0, 1e-30, 8) == Byte(TINY, 0, 8)
    assert byte_of(2.0, 255.0, 8) == Byte(1.0, 0, 8)  # 0 is among the values
    assert byte_of(-63.0, -5.0, 6) == Byte(1.0, 63, 6)
    assert byte_of(-1e-30, 1e-30, 8).scale == 2.0**-32
    for representation in (Byte(0.5, -3, 6), Stream(0.25), Scores(Byte(0.5, 1), Byte(0.25, 2)), Projection(*[Byte(0.5, 7)] * 3)):
        assert from_json(to_json(representation)) == representation


def test_streams_in_and_out() -> None:
    scale = 0.25
    x = torch.tensor([0.0, 0.124, 0.125, 0.375, -0.375, 1e9, -1e9, float("inf"), -float("inf"), float("nan")])
    q = reference.quantize_stream(x, scale)
    assert q.tolist() == [0, 0, 0, 2, -2, 32767, -32768, 32767, -32768, -32768]
    assert torch.equal(reference.dequantize_stream(q[:5], scale), q[:5] * 0.25)


def test_handles_hold_what_kernels_read() -> None:
    program, found, _ = network("mobilevitv2_050")
    for node in quantized(program, found):
        if node.kind in ("qconv2d", "qlinear"):
            handle = prepare(node, None).handle
            assert handle.weight.columns == node.weights["weight"].shape[0]
            assert handle.channels.dtype == torch.int32


def test_programs_of_two_sizes_are_aligned() -> None:
    def program(resized: bool, scale: float = 1.0) -> Program:
        build = Builder()
        y = build.conv2d(build.add("input", (), (3, 8, 8), "input"), torch.ones(4, 3, 1, 1), None, 1, "first")
        if resized:
            y = resize(build, y, 6, 6)
        y = build.norm("layer_norm", y, None, None, 1e-5, "odd" if resized else "even")
        y = build.conv2d(y, torch.full((4, 4, 1, 1), scale), None, 1, "second")
        return Program(build.nodes, [y])

    for of, like, name in ((True, False, "even"), (False, True, "odd")):
        both = aligned(program(of), program(like))
        assert name in both
        assert both["second"].inputs == (name,)
        assert rewritten_otherwise(both, program(like)) == set()
    assert rewritten_otherwise(program(True, scale=2.0), program(False)) == {"second"}
