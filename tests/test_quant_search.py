"""The search of scales: each method is at least min-max by its own measure, what is found runs on integer kernels bit for bit."""

from __future__ import annotations

import copy
import functools
import json
import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from op_checks import needs_native
from test_graph_capture import random_statistics
from torch import nn

import mvit_kernels as mk
from mvit_kernels import checkpoints
from mvit_kernels.data import StandInTask
from mvit_kernels.graph import capture, optimize
from mvit_kernels.quant import Byte, Channels, Decision, Stream
from mvit_kernels.quant.affine import affine_of, families
from mvit_kernels.quant.bridges import bridges
from mvit_kernels.quant.histogram import BINS, Histogram
from mvit_kernels.quant.layout import Layout
from mvit_kernels.quant.methods import omse, qhyvit
from mvit_kernels.quant.methods.cut import squared_error
from mvit_kernels.quant.methods.omse import least_squares
from mvit_kernels.quant.representation import byte_of, from_json, to_json
from mvit_kernels.quant.search import Effort, Plan

Tensor = torch.Tensor
SEARCHED = ["qhyvit", "percentile", "omse", "easyquant", "best"]


class Small(nn.Module):
    """An inverted residual with a channel that is far larger than the others, and a result that is never near 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.expand, self.depthwise, self.reduce = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 8, 1)
        self.far, self.after, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 5)
        with torch.no_grad():
            self.expand.weight[3] *= 40
            self.far.weight *= 0.2
            self.far.bias.fill_(11.0)  # results in [10, 12] or so

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.stem(x))
        x = x + self.reduce(nn.functional.silu(self.depthwise(nn.functional.silu(self.expand(x)))))
        return self.head(self.after(self.far(x)).mean((2, 3)))


class Named(nn.Module):
    """A layer whose result is added to another, with the name of a part of separable attention."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.stem, self.block, self.head = name, nn.Conv2d(3, 8, 3, 2, 1), nn.Module(), nn.Linear(8, 5)
        self.block.add_module(name, nn.Conv2d(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.stem(x))
        return self.head((x + nn.functional.silu(getattr(self.block, self.name)(x))).mean((2, 3)))


@pytest.mark.parametrize("name", ["scores", "values"])
def test_layers_may_have_any_name(name: str) -> None:
    found = {}
    for each in ("other", name):
        torch.manual_seed(0)
        q = mk.quantize(Named(each).eval(), [images(8, 16)], progress=False)
        found[each] = [
            (d.name.replace(each, "*"), d.error) for d in q.decisions if d.name.startswith(f"block.{each}") and d.of == "activation"
        ]
    errors = [[error for _, error in decisions] for decisions in found.values()]
    assert errors[0]
    assert errors[0] == pytest.approx(errors[1], rel=0.5)


@pytest.mark.parametrize("seed", [2**40, -(2**35), 2**70])
def test_any_integer_is_a_seed(seed: int) -> None:
    q = mk.quantize(small(), [images(8, 16)], mk.QuantConfig(seed=seed), progress=False)
    assert q(images(2, 16)).isfinite().all()


def test_ranges_without_values_are_none() -> None:
    """What relu takes away of a map's values leaves bins that are empty."""
    counts = torch.zeros(BINS, dtype=torch.float64)
    counts[BINS // 2 : -BINS // 4] = 1.0
    picture = Histogram(-3.0, 3.0, counts)
    byte = omse._choose([picture], 6, 0.0)
    step = 1.5 / 63
    assert byte.zero_point == 0
    assert squared_error([picture], byte) < 1.05 * step**2 / 12


def test_a_configuration_is_its_own() -> None:
    """Whatever becomes of what it was made of."""
    fields = {"weight_bits": 8}
    config = mk.QuantConfig(6, overrides=types.MappingProxyType({"head": types.MappingProxyType(fields)}))
    fields["weight_bits"] = 6
    assert config.weight_bits_of("head") == 8
    assert mk.QuantConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert copy.deepcopy(config) == config


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def images(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@functools.cache
def found(method: str, bits: int = 8) -> mk.QuantizedModel:
    config = mk.QuantConfig(method=method, weight_bits=bits, activation_bits=bits)
    return mk.quantize(small(), [images(4, 16), images(4, 16, 1)], config, progress=False)


@functools.cache
def mobilevit(name: str) -> nn.Module:
    torch.manual_seed(0)
    return random_statistics(mk.create_model(name, num_classes=7, depths=(1, 1, 1), blocks=(1, 1)))


@functools.cache
def quantized(name: str, method: str) -> mk.QuantizedModel:
    config = mk.QuantConfig(method=method, weight_bits=6, activation_bits=6)
    return mk.quantize(mobilevit(name), [images(4, 64).abs()], config, progress=False)


# --- what methods make small ---


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("method", SEARCHED)
def test_no_decision_is_worse_than_min_max(method: str, bits: int) -> None:
    decisions = found(method, bits).report().decisions
    judged = [each for each in decisions if each.error is not None]
    assert bool(judged) == (method != "percentile")
    for each in judged:
        # A range that few images are worse with is taken though its mean is a little larger.
        slack = 1.5 if method == "qhyvit" and each.of == "activation" else 1 + 1e-9
        assert each.error <= slack * each.minmax_error + 1e-12, each
    if method == "qhyvit":
        assert sum(each.error for each in judged) < 0.5 * sum(each.minmax_error for each in judged)
    elif judged:
        assert any(each.error < each.minmax_error for each in judged)


def test_the_search_is_nearer_than_min_max() -> None:
    x, model = images(16, 16, 2), small()
    with torch.no_grad():
        exact = model(x)
    for bits in (8, 6):
        errors = {method: float((found(method, bits)(x) - exact).square().sum()) for method in ("qhyvit", "minmax")}
        assert errors["qhyvit"] < 0.7 * errors["minmax"]


def test_overflow_of_the_zero_point_is_found_and_resolved() -> None:
    """Of a result in [10, 12], which a padded convolution takes: min-max widens, the search keeps a zero-point outside of the bits."""
    by_name = {method: {each.name: each for each in found(method).report().decisions if each.of == "activation"} for method in SEARCHED}
    far = by_name["qhyvit"]["far"]
    assert far.overflow
    assert far.resolution == "wide zero-point"
    assert far.low > 8
    assert found("qhyvit").representations["far"].scale < 0.1 * found("minmax").representations["far"].scale
    assert far.error < far.minmax_error
    for method in ("percentile", "omse", "easyquant"):
        assert by_name[method]["far"].overflow
        assert by_name[method]["far"].resolution == "widened"
    assert not by_name["qhyvit"]["stem"].overflow


def test_a_channel_that_is_larger_than_others_has_its_own_scale() -> None:
    decision = next(each for each in found("qhyvit", 6).report().decisions if each.name == "expand" and each.of == "activation")
    assert decision.granularity == "channel"
    assert isinstance(found("qhyvit", 6).representations["expand"], Channels)
    assert decision.error < 0.2 * decision.minmax_error


def test_a_loss_of_ones_own() -> None:
    def first(y: Tensor, exact: Tensor) -> Tensor:
        return (y[:, 0] - exact[:, 0]).square().sum()

    config = mk.QuantConfig(weight_bits=6, activation_bits=6)
    x, model = images(16, 16, 2), small()
    q = mk.quantize(model, [images(8, 16)], config, loss=first, progress=False)
    other = next(each for each in q.report().decisions if each.name == "head" and each.of == "weight")
    assert other.error is not None
    with torch.no_grad():
        assert (q(x) - model(x))[:, 0].square().sum() < (found("minmax", 6)(x) - model(x))[:, 0].square().sum()
    for bad in (lambda y, exact: y, lambda y, exact: 0.0):
        with pytest.raises(ValueError, match=r"quantize: loss: expected a function of \(results, exact results\) to one number"):
            mk.quantize(model, [images(2, 16)], config, loss=bad, progress=False)
    with pytest.raises(ValueError, match="quantize: loss: expected a number, got nan"):
        mk.quantize(model, [images(2, 16)], config, loss=lambda y, exact: (y - exact).sum() * math.nan, progress=False)


class Classes(nn.Module):
    """Gives the numbers of classes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).argmax(1)


def test_results_that_have_no_gradient() -> None:
    model, x = Classes().eval(), images(4, 16)
    for method in ("qhyvit", "best", "ptq4vit"):
        with pytest.raises(ValueError, match="quantize: model: expected results in floats, as the method weighs errors"):
            mk.quantize(model, [x], mk.QuantConfig(method=method), progress=False)
    for method in ("minmax", "percentile", "omse", "easyquant", "fqvit", "repqvit"):
        assert mk.quantize(model, [x], mk.QuantConfig(method=method), progress=False)(x).shape == (4,)


# --- effort ---


def everything() -> Effort:
    """All factors of all families at all positions, in every round."""
    return Effort(positions=2**40, elements=2**40, stride=1, steps=(), refined=99, kept=99)


@pytest.mark.slow
def test_the_choices_of_the_full_search(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Of MobileViT-xxs as it was trained: most are the same, and all errors together are little larger."""
    pytest.importorskip("sklearn")
    model = mk.create_model("mobilevit_xxs", num_classes=40, checkpoint=checkpoints.path("mobilevit_xxs")).eval()
    x = torch.stack([image for image, _ in StandInTask("train", 4, 64, 1)])
    decisions = []
    for effort in (Effort(), everything()):
        monkeypatch.setattr(qhyvit, "Plan", functools.partial(Plan, effort=effort))
        found = mk.quantize(model, [x], progress=False).report().decisions
        decisions.append([each for each in found if each.of == "activation" and each.error is not None])
    pairs = list(zip(*decisions, strict=True))
    assert all(own.name == full.name for own, full in pairs)
    assert sum(own.granularity == full.granularity for own, full in pairs) >= 0.9 * len(pairs)
    assert sum(_kind(own) == _kind(full) for own, full in pairs) >= 0.8 * len(pairs)
    close = [max(_scales(own)) == pytest.approx(max(_scales(full)), rel=0.1) for own, full in pairs]
    assert sum(close) >= 0.9 * len(pairs)
    assert sum(own.error for own, _ in pairs) < 1.1 * sum(full.error for _, full in pairs)


def _kind(decision: Decision) -> tuple[str, str, str | None]:
    return decision.granularity, decision.scheme, decision.resolution


def _scales(decision: Decision) -> tuple[float, ...]:
    return decision.scale if isinstance(decision.scale, tuple) else (decision.scale,)


# --- bridges ---


@pytest.mark.parametrize(("name", "entry"), [("mobilevitv2_050", "attn.qkv_proj"), ("mobilevit_xxs", "attn.qkv")])
def test_bridges_are_found_without_names(name: str, entry: str) -> None:
    program = optimize(capture(mobilevit(name), (3, 64, 64)))
    chains = bridges(Layout(program, mk.QuantConfig()))
    assert [bridge.kind for bridge in chains] == ["entry", "exit"] * 3
    for i, (first, last) in enumerate(zip(chains[::2], chains[1::2], strict=True)):
        stage = f"stages.{2 + i}.1"
        assert first.nodes[0] == f"{stage}.conv_1x1"
        assert first.nodes[-1] == f"{stage}.transformer.0.{entry}"
        assert len(first.nodes) == 3
        assert last.nodes[0] == f"{stage}.transformer.0.mlp.fc2"
        assert program[last.nodes[1]].kind.endswith("_norm")
        assert program[last.nodes[-1]].kind in ("conv2d", "linear")
        assert not last.nodes[-1].startswith(f"{stage}.transformer")


@pytest.mark.slow
def test_decisions_say_which_bridge_they_belong_to() -> None:
    decisions = quantized("mobilevitv2_050", "qhyvit").report().decisions
    assert {each.bridge for each in decisions} == {None, *range(6)}


# --- the same bits ---


@needs_native
@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("method", SEARCHED)
def test_the_same_bits_everywhere(method: str, bits: int) -> None:
    q, x = found(method, bits), images(3, 16, 5)
    y = q(x)
    assert torch.equal(mk.convert(q)(x), y)
    assert torch.equal(mk.compile(q, x)(x), y)


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("method", SEARCHED)
@pytest.mark.parametrize("name", ["mobilevitv2_050", "mobilevit_xxs"])
def test_mobilevits(name: str, method: str) -> None:
    q, x = quantized(name, method), images(2, 64, 3).abs()
    y = q(x)
    assert torch.equal(mk.convert(q)(x), y)
    if name == "mobilevitv2_050":
        assert torch.equal(mk.compile(q, x)(x), y)
    odd = images(1, 72, 4).abs()
    assert torch.equal(mk.convert(q)(odd), q(odd))
    assert not [row for row in q.report((3, 72, 72)).rows if row.kind in ("conv2d", "linear")]


@pytest.mark.parametrize("method", SEARCHED)
def test_the_same_from_the_same_seed(method: str) -> None:
    config = mk.QuantConfig(method=method, seed=3)
    twice = [mk.quantize(small(), [images(5, 16)], config, progress=False) for _ in range(2)]
    assert twice[0].representations == twice[1].representations
    for name, layer in twice[0].layers.items():
        assert all(torch.equal(value, twice[1].layers[name][key]) for key, value in layer.items())


# --- calls and files ---


def test_it_is_the_default_and_leaves_the_model() -> None:
    model = small()
    with torch.inference_mode():
        q = mk.quantize(model, [images(2, 16)], progress=False)
    assert q.config.method == "qhyvit"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.isfinite(q(images(1, 16))).all()


@pytest.mark.parametrize("settings", [{"activation_bits": None}, {"skip": ("depthwise", "far")}], ids=str)
def test_parts_of_a_network(settings: dict[str, Any]) -> None:
    q = mk.quantize(small(), [images(4, 16)], mk.QuantConfig(weight_bits=6, **({"activation_bits": 6} | settings)), progress=False)
    x = images(4, 16, 9)
    with torch.no_grad():
        exact = small()(x)
    assert (q(x) - exact).square().mean() < 0.05 * exact.square().mean()
    assert torch.equal(mk.convert(q)(x), q(x))


def test_decisions_are_in_the_report_and_in_files(tmp_path: Path) -> None:
    q = found("qhyvit", 6)
    report = q.report()
    names = {(each.of, each.name) for each in report.decisions}
    assert names == {("activation", key) for key in q.representations} | {("weight", name) for name in q.layers}
    table = report.to_dict()
    assert json.loads(json.dumps(table)) == table
    mk.save_quantized(q, tmp_path / "network")
    loaded = mk.load_quantized(small(), tmp_path / "network")
    assert loaded.report().decisions == report.decisions
    assert loaded.representations == q.representations
    assert torch.equal(loaded(images(2, 16)), q(images(2, 16)))


# --- parts ---


def test_the_first_candidate_is_that_of_min_max() -> None:
    for low, high in ((-3.0, 5.0), (2.0, 4.0), (-4.0, -1.0)):
        first = families(torch.tensor([low, low]), torch.tensor([high, low]), 8, by_channel=True, wide=True)[0]
        assert first.at(1.0).representation() == byte_of(low, high, 8)


@pytest.mark.parametrize("bits", [8, 6])
def test_candidates_hold_their_range(bits: int) -> None:
    low, high = torch.tensor([-1.0, 3.0, -9.0]), torch.tensor([2.0, 5.0, -8.0])
    x = torch.stack([torch.linspace(float(a), float(b), 50) for a, b in zip(low, high, strict=True)], 1)
    made = families(low, high, bits, by_channel=True, wide=True)
    assert {family.scheme for family in made} == {"symmetric", "asymmetric"}
    for family in made:
        affine = family.at(1.0)
        assert (affine.fake(x.clone()) - x).abs().max() <= 1.01 * float(affine.scale.max())
        assert torch.equal(affine_of(affine.representation()).scale.expand(3), affine.scale.expand(3))


def test_histograms() -> None:
    x = torch.randn(20000, dtype=torch.float64)
    low, high = float(x.min()), float(x.max())
    picture = Histogram(low, high, torch.histc(x, BINS, low, high))
    ends = picture.quantiles(0.01)
    assert ends[0] == pytest.approx(float(x.quantile(0.01)), abs=0.01)
    assert ends[1] == pytest.approx(float(x.quantile(0.99)), abs=0.01)
    exact = (((x / 0.1).round().clamp(-20, 43) * 0.1) - x).square().mean()
    assert picture.squared_error(0.1, 20, 6) == pytest.approx(float(exact), rel=0.01)


def test_least_squares_of_weights() -> None:
    weight = torch.randn(4, 500)
    weight[1, 0] = 30.0
    stretch, error, minmax = least_squares(weight, 6)
    assert stretch[1] < 1
    assert error < minmax


def test_channels_as_json() -> None:
    for each in (Channels((0.5, 0.25), (3, -70), 6), Byte(0.5, 3), Stream(0.1)):
        assert from_json(json.loads(json.dumps(to_json(each)))) == each
    assert Channels((0.5, 0.25), (0, 0)).fold().tolist() == [1.0, 0.5]
