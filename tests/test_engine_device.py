"""Plans of a GPU on the CPU: the same calls, by kernels of the CPU and without a graph. What only a GPU shows: tests/gpu/test_engine.py."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from op_checks import needs_native
from torch import nn
from torch.utils import _pytree as pytree

import mvit_kernels as mk
from mvit_kernels import reference
from mvit_kernels.engine import device_report
from mvit_kernels.engine.blocks import Blocks, find_qattention
from mvit_kernels.engine.device_plan import DevicePlan
from mvit_kernels.engine.lower_calls import Call
from mvit_kernels.graph import Node, Program, capture, optimize, run
from mvit_kernels.ops import packing
from mvit_kernels.ops.qavg_pool import choose as choose_qavg_pool
from mvit_kernels.ops.qdepthwise_conv2d import choose as choose_qdepthwise_conv2d
from mvit_kernels.ops.qfeed_forward import QFeedForward
from mvit_kernels.ops.qinverted_residual import QInvertedResidual
from mvit_kernels.ops.qseparable_attention_block import QSeparableAttentionBlock

CPU = torch.device("cpu")


def device_plan(program: Program, dtype: torch.dtype = torch.float32) -> DevicePlan:
    return DevicePlan(program, dtype, CPU)


def programs(model: nn.Module, side: int) -> Program:
    return optimize(capture(model, (3, side, side)), device=True)


@pytest.fixture(scope="module")
def v2() -> nn.Module:
    torch.manual_seed(0)
    return mk.create_model("mobilevitv2_050").eval()


@pytest.fixture(scope="module")
def v2_program(v2) -> Program:
    return programs(v2, 64)


@pytest.fixture(scope="module")
def v2_plan(v2_program) -> DevicePlan:
    return device_plan(v2_program)


@pytest.fixture(scope="module")
def v2_integers(v2) -> Program:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return mk.quantize(v2, [images], mk.QuantConfig(method="minmax"), progress=False).program()


@pytest.mark.parametrize(("name", "side"), [
    ("mobilevit_xxs", 64), ("mobilevitv2_050", 64), *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        ("efficientformer_l1", 224), ("efficientformerv2_s0", 224), ("mobile_former_26m", 64),
    )),
])  # fmt: skip
def test_calls_compute_the_network(name: str, side: int) -> None:
    torch.manual_seed(0)
    model = mk.create_model(name).eval()
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        right = model(x)
    plan = device_plan(programs(model, side))
    (y,) = plan.run(x)
    assert (y - right).abs().max() <= 1e-4 * right.abs().max()
    assert {call.op for call in plan.calls if call.reason} <= {"constant", "pixel"}  # a few values for every image, and views


def test_blocks_are_single_calls(v2_plan) -> None:
    plan = v2_plan
    counts = {op: sum(call.op == op for call in plan.calls) for op in {call.op for call in plan.calls}}
    assert counts["separable_attention_block"] == counts["feed_forward"] == 9
    assert counts["inverted_residual"] == 6 + 3  # the depthwise and 1x1 convolutions before the transformers are some without expansion
    assert [call.op for call in plan.calls if call.reason] == []
    report = plan.report()
    assert sum(row.macs for row in report.rows) == sum(call.macs for call in plan.calls) > 1e7
    assert {row.op for row in report.fallbacks} <= {"avg_pool"}  # of a norm, for which the CPU has no kernel
    assert "GPU" not in str(report.machine)
    assert plan.arena_bytes >= max(call.result.bytes for call in plan.calls)


def no_kernel(op: str, why: str) -> tuple[str, str, str]:
    """Kind, backend and reason of a row of an op that no kernel of the CPU takes."""
    return "torch", "torch", f"{op} in plain torch ({why})"


@needs_native
def test_reports_say_whose_kernels_run_a_call_and_why_torch_does(v2, v2_program) -> None:
    """The CPU's, which stand for a GPU's."""
    plan = device_plan(v2_program)
    report = plan.report()
    of_norms = no_kernel("avg_pool", "cpu: it has no kernel for the mean of a norm")
    whose = {row.op: (row.kind, row.backend, row.reason) for row in report.rows}
    assert whose == {**dict.fromkeys(whose, ("float", "cpu", None)), "avg_pool": of_norms}
    assert [row.op for row in report.fallbacks] == ["avg_pool"]
    assert " backend " in str(report)
    assert of_norms[2] in str(report)
    assert report.to_dict()["rows"][0]["backend"] == "cpu"
    assert "backend" not in str(mk.compile(v2, torch.zeros(1, 3, 64, 64)).report())

    with mk.use_backend("reference"):
        plain = plan.report()
    refused = device_plan(v2_program, torch.float64).report()
    for rows, why in ((plain, "requested"), (refused, "cpu: it has no kernel for torch.float64")):
        assert rows.fallbacks == rows.rows
        assert {row.op: (row.kind, row.backend, row.reason) for row in rows.rows} == {op: no_kernel(op, why) for op in whose}


@needs_native
def test_calls_that_are_refused_in_part_are_named(v2_integers, monkeypatch) -> None:
    """A call of several ops, and one op whose kernels refuse a size."""
    monkeypatch.setattr(QInvertedResidual, "pays", lambda *_: False)
    for choose in (choose_qdepthwise_conv2d, choose_qavg_pool):
        of_cpu = replace(choose.implementations["cpu"], refuse=lambda *_: "it is too large")
        implementations = {**choose.implementations, "cpu": of_cpu}
        monkeypatch.setattr(choose, "implementations", implementations)
        monkeypatch.setattr(choose, "_on_cpu", (of_cpu, implementations["reference"]))
    report = device_plan(v2_integers).report()
    whose = {row.op: (row.kind, row.backend, row.reason) for row in report.rows}
    too_large = "cpu: it is too large"
    assert whose["qinverted_residual"] == ("torch", "cpu+torch", no_kernel("qdepthwise_conv2d", too_large)[2])
    assert whose["qavg_pool"] == no_kernel("qavg_pool", too_large)
    assert whose["qfeed_forward"] == ("integer", "cpu", None)
    assert {row.op for row in report.fallbacks} == {"qinverted_residual", "qdepthwise_conv2d", "qavg_pool"}


@needs_native
def test_profiles_are_of_the_images_that_they_are_asked_for(v2_program, monkeypatch) -> None:
    """All but the clock, which needs a GPU."""
    plan, batches = device_plan(v2_program), []

    def seconds(call: Call, inputs: list[torch.Tensor], repeats: int) -> float:
        batches.append(inputs[0].shape[0])
        return 0.5

    monkeypatch.setattr(device_report, "_seconds", seconds)
    monkeypatch.setattr(device_report, "_ceilings", lambda device, dtype: {"float": 1.0, "integer": 1.0})
    profile, report = device_report.profile_of(plan, torch.randn(5, 3, 64, 64), 1), plan.report()
    assert set(batches) == {5}
    assert (profile.batch, profile.seconds) == (5, pytest.approx(0.1 * len(plan.calls)))
    assert [replace(row, seconds=None, share=None) for row in profile.rows] == list(report.rows)
    assert (profile.weight_bytes, profile.arena_bytes) == (report.weight_bytes, report.arena_bytes)


def test_what_nobody_knows_is_told_apart_from_what_torch_does_well() -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return torch.cat([(y.cumsum(2) + y).mean((2, 3)), y.mean((2, 3))], 1)

    plan = device_plan(programs(Foreign().eval(), 8))
    reasons = {call.op: (call.reason, call.foreign) for call in plan.calls if call.reason}
    assert {op for op, (_, foreign) in reasons.items() if foreign} == {"aten.cumsum.default"}
    assert reasons["add"] == ("torch's kernel for add, at its floor", False)
    assert reasons["cat"] == ("torch's kernel for cat, at its floor", False)


def test_constants_do_not_read_the_image() -> None:
    constant = Node("constant", "constant", (), (4,), {}, {"value": torch.randn(4)})
    plan = device_plan(Program([Node("input", "input", (), (3, 64, 64)), constant], ["constant"]))
    assert [(call.bytes, call.reason) for call in plan.calls] == [(32, "torch's kernel for constant, at its floor")]
    assert torch.equal(plan.run(torch.randn(5, 3, 64, 64))[0], constant.weights["value"].expand(5, 4))


def test_dynamic_relus_are_part_of_convolutions() -> None:
    """But behind a norm that the product does while it loads its rows."""
    torch.manual_seed(0)
    nodes = [
        Node("input", "input", (), (6, 5, 4)),
        Node("pool", "avg_pool", ("input",), (6,)),
        Node("u", "linear", ("pool",), (24,), {}, {"weight": torch.randn(24, 6)}),
        Node("v", "linear", ("pool",), (14,), {}, {"weight": torch.randn(14, 6)}),
        Node("expand", "conv2d", ("input",), (12, 5, 4), {"stride": 1}, {"weight": torch.randn(12, 6, 1, 1)}),
        Node("first", "dynamic_relu", ("expand", "u"), (12, 5, 4)),
        Node("filter", "depthwise_conv2d", ("first",), (12, 3, 2), {"stride": 2}, {"weight": torch.randn(12, 1, 3, 3)}),
        Node("second", "dynamic_relu", ("filter", "u"), (12, 3, 2)),
        Node("reduce", "conv2d", ("second",), (6, 3, 2), {"stride": 1}, {"weight": torch.randn(6, 12, 1, 1)}),
        Node("norm", "layer_norm", ("reduce",), (6, 3, 2), {"eps": 1e-5}),
        Node("out", "conv2d", ("norm",), (7, 3, 2), {"stride": 1}, {"weight": torch.randn(7, 6, 1, 1)}),
        Node("third", "dynamic_relu", ("out", "v"), (7, 3, 2)),
    ]  # fmt: skip
    program, x = Program(nodes, ["third"]), torch.randn(2, 6, 5, 4)
    plan = device_plan(program)
    assert [call.op for call in plan.calls[3:]] == ["conv2d_dynamic_relu", "conv2d_dynamic_relu", "conv2d", "gemm"]
    torch.testing.assert_close(plan.run(x)[0], run(program, x), rtol=1e-4, atol=1e-4)


def test_the_smallest_maps_are_what_is_written(v2, v2_plan) -> None:
    """On the CPU the last convolution of an inverted residual and the first of the next are one; what is between them is smaller."""
    merged = device_plan(optimize(capture(v2, (3, 64, 64))))
    assert sum(call.bytes for call in v2_plan.calls) < sum(call.bytes for call in merged.calls)


def test_integers_have_the_bits_of_the_program(v2_integers, monkeypatch) -> None:
    x = torch.randn(3, 3, 64, 64)
    plan, right = device_plan(v2_integers), run(v2_integers, x)
    assert torch.equal(plan.run(x)[0], right)
    blocks = [call for call in plan.calls if call.op == "qinverted_residual"]
    assert len(blocks) >= 4
    halves = [call for call in plan.calls if call.op == "qfeed_forward"]
    attentions = [call for call in plan.calls if call.op == "qseparable_attention_block"]
    assert len(halves) == len(attentions) == 9
    assert all(len(call.nodes) == 3 and call.macs > 0 for call in blocks + halves)
    assert all(len(call.nodes) == 6 and call.macs > 0 for call in attentions)
    monkeypatch.setattr(QInvertedResidual, "pays", lambda *_: False)  # layer by layer, as maps that are small on a GPU
    assert torch.equal(plan.run(x)[0], right)


def test_integer_attention_halves_that_differ_stay_as_they_are(v2_integers) -> None:
    """Where one of the six nodes is of another form, or somebody else takes its result."""
    program = v2_integers
    (first, *_) = [node for node in program if find_qattention(Blocks(program), node)]
    found = find_qattention(Blocks(program), first)
    assert found is not None
    norm, qkv, context, key, gate, out = found

    def with_other(node: Node, **more: Any) -> Program:
        return Program([replace(node, **more) if each is node else each for each in program], program.outputs)

    def set_to(node: Node, **settings: Any) -> Program:
        return with_other(node, settings={**node.settings, **settings})

    others = [
        set_to(norm, norm="layer"), with_other(norm, weights={"weight": torch.ones(1), "bias": torch.ones(1)}),
        set_to(qkv, activation="relu"), with_other(qkv, weights={**qkv.weights, "table": torch.zeros(256, dtype=torch.uint8)}),
        set_to(context, out="float32"), set_to(key, out="uint8"), set_to(out, out="uint8"), set_to(out, stride=2),
        with_other(out, inputs=(gate.name, "input")), with_other(gate, kind="qadd"),
        *(Program(program, [*program.outputs, node.name]) for node in (norm, qkv, context, key, gate)),
    ]  # fmt: skip
    for other in others:
        assert find_qattention(Blocks(other), other[norm.name]) is None
    assert find_qattention(Blocks(Program(program, [*program.outputs, out.name])), norm) is not None


def test_integer_norms_of_pixels_are_part_of_what_takes_them() -> None:
    torch.manual_seed(0)
    model, x = mk.create_model("mobilevit_xxs").eval(), torch.randn(3, 3, 64, 64)
    program = mk.quantize(model, [torch.randn(4, 3, 64, 64)], mk.QuantConfig(method="minmax"), progress=False).program()
    plan = device_plan(program)
    assert torch.equal(plan.run(x)[0], run(program, x))
    ops = [call.op for call in plan.calls]
    assert (ops.count("qfeed_forward"), ops.count("qnorm_gemm"), ops.count("qnorm")) == (9, 9 + 3, 0)
    assert not any(call.collects for call in plan.calls)


def test_integer_norms_take_the_sums_that_their_producers_collected(v2_integers, monkeypatch) -> None:
    plan, x = device_plan(v2_integers), torch.randn(3, 3, 64, 64)
    right = plan.run(x)[0]
    taking = {call.inputs[1]: call for call in plan.calls if any(name.endswith(".moments") for name in call.inputs)}
    assert {f"{call.name}.moments" for call in plan.calls if call.collects} == set(taking)
    kinds = [call.op for call in taking.values()]
    assert kinds.count("qnorm") + kinds.count("qnorm_gemm") == 3  # behind the layers of a stage
    assert kinds.count("qfeed_forward") == 9
    assert len(taking) == 9 + 9  # all norms but the first of a stage

    def watch(call: Call, inputs: list[torch.Tensor]) -> None:
        if call in taking.values():
            rows = inputs[0].permute(0, 2, 3, 1).flatten(0, 2)
            assert torch.equal(inputs[1].sum(1), reference.stream_sums(rows, 3))  # of pieces

    plan.call_all(x, watch)

    for kind in (QFeedForward, QSeparableAttentionBlock):
        run_block = kind.__call__

        def wrong_sums(*inputs: Any, collect: bool, run_block: Any = run_block) -> Any:
            y, sums = run_block(*inputs, collect=True)
            return (y, 4 * sums) if collect else y

        with monkeypatch.context() as patch:
            patch.setattr(kind, "__call__", wrong_sums)  # nobody computes them again
            assert not torch.equal(plan.run(x)[0], right)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("efficientformer_l1", 224), ("efficientformerv2_s0", 224), ("mobile_former_26m", 64)])
def test_integers_of_other_families(name: str, side: int) -> None:
    """Several filters of a channel and two vectors side by side are read where they are; the bits are those of the program."""
    torch.manual_seed(0)
    model, x = mk.create_model(name).eval(), torch.randn(2, 3, side, side)
    program = mk.quantize(model, [torch.randn(2, 3, side, side)], mk.QuantConfig(method="minmax"), progress=False).program()
    plan, right = device_plan(program), run(program, x)
    assert torch.equal(plan.run(x)[0], right)
    assert {call.op for call in plan.calls if call.reason} <= {"constant", "pixel"}


def test_maps_of_a_backbone_and_no_images() -> None:
    model = mk.create_model("mobilevit_xxs", features_only=True).eval()
    plan = device_plan(programs(model, 64))
    with torch.no_grad():
        right = model(torch.ones(2, 3, 64, 64))
    for y, each in zip(plan.run(torch.ones(2, 3, 64, 64)), right, strict=True):
        assert (y - each).abs().max() <= 1e-4 * each.abs().max()
    assert [y.shape for y in plan.run(torch.ones(0, 3, 64, 64))] == [(0, *each.shape[1:]) for each in right]


def test_reduced_precision(v2, v2_program) -> None:
    x = torch.randn(2, 3, 64, 64)
    (y,) = device_plan(v2_program, torch.bfloat16).run(x.bfloat16())
    assert y.dtype == torch.bfloat16
    with torch.no_grad():
        right = v2(x)
    assert (y.float() - right).abs().max() <= 0.1 * right.abs().max()


def test_norms_take_the_moments_that_their_producers_collected(v2_plan) -> None:
    taking = [call for call in v2_plan.calls if any(name.endswith(".moments") for name in call.inputs)]
    assert [call.op for call in taking].count("gemm") == 2
    assert len(taking) == 9 + 9 + 2 + 1  # every norm; the last by the mean over pixels
    assert [call.op for call in v2_plan.calls].count("group_norm") == 0
    assert {call.name for call in v2_plan.calls if call.collects} == {call.inputs[0] for call in taking}


def test_in_inference_mode_weights_are_packed_once(v2, monkeypatch) -> None:
    """Tensors of inference mode have no version: on a GPU their packed form would be made in every call, and in every replay of a graph."""
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        model = copy.deepcopy(v2)
        plan = device_plan(programs(model, 64))
        (first,) = plan.run(x.clone())
        made: list[object] = []
        monkeypatch.setattr(packing, "_made", lambda *arguments: made.append(arguments))
        monkeypatch.setattr(packing, "_content", lambda x: made.append(x))
        (second,) = plan.run(x.clone())
    assert made == []
    assert torch.equal(first, second)
    assert not first.is_inference()


def test_what_a_graph_reads_can_be_held(v2_plan) -> None:
    """All packed weights of a run, which the cache may forget at any time."""
    x = torch.randn(1, 3, 64, 64)
    v2_plan.run(x)
    with packing.holding() as held:
        v2_plan.run(x)
    kept = [weakref.ref(each) for each in pytree.tree_leaves([use.value for use in held]) if isinstance(each, torch.Tensor)]
    assert len(kept) > 40
    packing.forget_all()
    assert all(each() is not None for each in kept)
    del held
    gc.collect()
    assert not any(each() is not None for each in kept)


def test_what_was_forgotten_is_recalled_for_a_graph(v2_plan, monkeypatch) -> None:
    """In a graph of the caller's, after an optimizer's step somewhere, nothing can be made; and calls outside make it anew."""
    x = torch.randn(1, 3, 64, 64)
    with packing.holding() as held:
        (right,) = v2_plan.run(x)
    packing.forget_all()
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_made", None)
        with packing.recalling(held), packing.holding() as again:
            (y,) = v2_plan.run(x)
    assert torch.equal(y, right)
    assert [use.value for use in again] == [use.value for use in held]
    with packing.holding() as made:
        v2_plan.run(x)
    assert not any(new.value is old.value for new, old in zip(made, held, strict=True))


def test_where_a_plan_runs() -> None:
    model, x = mk.create_model("mobilevit_xxs").eval(), torch.ones(1, 3, 64, 64)
    compiled = mk.compile(model, x)
    assert compiled.device == CPU
    for give in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"CompiledModel: expected save\(path\) and mk\.load\(path\), got pickle or copy"):
            give(compiled)
    with pytest.raises(ValueError, match='backend: expected "auto", "cpu" or "cuda", got \'gpu\''):
        mk.compile(model, x, backend="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="backend: cuda cannot be used"):
            mk.compile(model, x, backend="cuda")
