"""Factors that move between layers, and networks that compute the same from other weights."""

from __future__ import annotations

import copy
import functools
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow
from test_graph_capture import random_statistics
from test_quant_search import Small, images, small
from torch import nn

import mvit_kernels as mk
from mvit_kernels.data import StandInTask
from mvit_kernels.graph import Program, capture, optimize, run
from mvit_kernels.quant import Channels
from mvit_kernels.quant.equalization import factors, migrated, seams
from mvit_kernels.quant.layout import Layout
from mvit_kernels.quant.methods.base import Task
from mvit_kernels.quant.methods.qhyvit import _migration

Tensor = torch.Tensor
NAMES = ("mobilevitv2_050", "mobilevit_xxs")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def stress(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("stress")


@functools.cache
def network(name: str, depths: tuple[int, ...] = (1, 2, 1), blocks: tuple[int, ...] = (1, 3)) -> nn.Module:
    torch.manual_seed(0)
    return random_statistics(mk.create_model(name, num_classes=7, depths=depths, blocks=blocks))


@functools.cache
def program(name: str) -> Program:
    return in_doubles(optimize(capture(network(name), (3, 64, 64))))


def in_doubles(own: Program) -> Program:
    return own.rewritten({node.name: replace(node, weights={key: v.double() for key, v in node.weights.items()}) for node in own})


def drawn(count: int, seed: int) -> Tensor:
    return 2 ** (4 * torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 2)


# --- stress variants ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["unequal_channels", "one_sided", "outlier_channels", "mixed_norms"])
def test_stressed_networks_compute_the_same(stress: Any, name: str, variant: str) -> None:
    model = copy.deepcopy(network(name)).double()
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        exact, y = model(x), stress.stressed(model, variant)(x)
    assert (y - exact).abs().max() < 1e-10 * exact.abs().max()
    other = stress.stressed(model, variant).state_dict()
    assert any(not torch.equal(value, other[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["mobilevitv2_050", slow("mobilevit_xxs")])
@pytest.mark.slow
def test_stressed_networks_have_the_problem(stress: Any, name: str) -> None:
    def ranges(model: nn.Module) -> dict[str, Any]:
        made = optimize(capture(model, (3, 64, 64)))
        return Task(Layout(made, mk.QuantConfig()), [images(2, 64).abs()], mk.QuantConfig()).ranges

    def spread(found: dict[str, Any], key: str) -> float:
        size = torch.maximum(found[key].low.abs(), found[key].high.abs())
        return float(size.max() / size.median())

    plain = ranges(network(name))
    chain = "stages.1.1.conv3_1x1.conv"
    assert spread(ranges(stress.stressed(network(name), "outlier_channels")), chain) > 10 * spread(plain, chain)
    assert spread(ranges(stress.stressed(network(name), "unequal_channels")), chain) > 2 * spread(plain, chain)
    one_sided = ranges(stress.stressed(network(name), "one_sided"))
    for key in (chain, "stages.2.1.conv_1x1"):
        assert float(plain[key].low.min()) < 0 < float(one_sided[key].low.min())
    stream = "stages.2.1.conv_1x1"
    mixed = ranges(stress.stressed(network(name), "mixed_norms"))
    torch.testing.assert_close(mixed[stream].high, 16 * plain[stream].high, rtol=1e-3, atol=1e-3)


def test_stress_refuses_what_it_does_not_know(stress: Any) -> None:
    with pytest.raises(TypeError, match="stressed: model: expected a MobileViT or MobileViTv2, got Linear"):
        stress.stressed(nn.Linear(2, 2), "one_sided")
    with pytest.raises(ValueError, match=r"stressed: variant: expected one of unequal_channels, .*, got 'none'"):
        stress.stressed(network(NAMES[0]), "none")


# --- seams ---


@pytest.mark.parametrize("name", NAMES)
def test_any_factors_leave_the_function(name: str) -> None:
    own = program(name)
    found = seams(own)
    kinds = {seam.name.rpartition(".")[2] for seam in found}
    assert {"values", "queries" if name == "mobilevit_xxs" else "keys"} <= kinds
    assert any(seam.name == "stages.1.0.conv3_1x1.conv" and len(seam.results) == 3 for seam in found)
    moved = migrated(own, {seam.name: drawn(seam.count, i) for i, seam in enumerate(found)})
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    exact, y = run(own, x), run(moved, x)
    assert isinstance(exact, Tensor)
    assert isinstance(y, Tensor)
    assert (y - exact).abs().max() < 1e-9 * exact.abs().max()
    changed = {node.name for node in own if any(not torch.equal(v, moved[node.name].weights[k]) for k, v in node.weights.items())}
    assert changed == {name for seam in found for name, _ in (*seam.writers, *seam.against, *seam.readers)}


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_sums_pass_relu_but_not_gelu(activation: str) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(getattr(nn.functional, activation)(self.a(x) + self.b(x)))

    own = in_doubles(optimize(capture(Sum().eval(), (3, 8, 8))))
    found = seams(own)
    assert len(found) == (1 if activation == "relu" else 0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(run(migrated(own, {seam.name: drawn(4, 0) for seam in found}), x), run(own, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_maps_pass_relu_but_not_silu(activation: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(getattr(nn.functional, activation)(self.a(x)))

    own = in_doubles(optimize(capture(Two().eval(), (3, 8, 8))))
    assert [seam.name for seam in seams(own)] == (["a"] if activation == "relu" else [])
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(run(migrated(own, {"a": drawn(4, 0)}), x), run(own, x), rtol=1e-12, atol=1e-12)


def test_what_a_result_of_the_network_is_has_no_factors() -> None:
    class Both(Small):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            y = self.far(self.stem(x))
            return y, self.after(y)

    own = optimize(capture(Both().eval(), (3, 16, 16)))
    assert "far" not in {seam.name for seam in seams(own)}


# --- factors ---


def test_factors_make_channels_alike(stress: Any) -> None:
    model = stress.stressed(network("mobilevit_xxs"), "outlier_channels")
    config = mk.QuantConfig(6, 6)
    own = optimize(capture(model, (3, 64, 64)))
    task = Task(Layout(own, config), [images(4, 64).abs()], config)
    found = _migration(task)
    assert any(name.endswith(".queries") for name in found)
    assert any(name.endswith(".values") for name in found)
    moved = Task(Layout(migrated(own, found), config), task.batches, config)
    name = "stages.2.1.transformer.0.attn.qkv"
    for third in (0, 2):  # the keys of large queries are small, and no keys are large
        before, after = (torch.maximum(each.ranges[name].low.abs(), each.ranges[name].high.abs()).chunk(3)[third] for each in (task, moved))
        assert after.max() / after.median() < 0.5 * before.max() / before.median()


def test_no_factors_where_they_do_not_help() -> None:
    own = program("mobilevitv2_050")
    task = Task(Layout(own, mk.QuantConfig()), [images(2, 64).double()], mk.QuantConfig())
    squares = {name: torch.ones_like(each.low) for name, each in task.ranges.items()}
    alike = {name: type(each)(-torch.ones_like(each.low), torch.ones_like(each.high)) for name, each in task.ranges.items()}
    assert factors(own, alike, alike, squares, (8, 8), lambda seam: True) == {}


def test_a_channel_that_is_quiet_on_half_of_the_images_is_not_stretched() -> None:
    """It would be clipped on others; one that is quiet on all is."""
    own = program("mobilevitv2_050")
    task = Task(Layout(own, mk.QuantConfig()), [images(2, 64).double()], mk.QuantConfig())

    def ranges(*quiet: slice) -> dict[str, Any]:
        found = {}
        for name, each in task.ranges.items():
            size = torch.ones_like(each.low)
            for channels in quiet:
                size[channels] = 1 / 64
            found[name] = type(each)(-size, size)
        return found

    def wanted(seam: Any) -> bool:
        return not seam.against

    def spread(of: dict[str, Tensor]) -> float:
        return max((float(f.max() / f.min()) for f in of.values()), default=1.0)

    always, sometimes = slice(1, None, 4), slice(0, None, 2)
    whole, half = ranges(always), ranges(always, sometimes)
    squares = {name: each.high.square() for name, each in whole.items()}
    assert spread(factors(own, whole, whole, squares, (8, 8), wanted)) > 8
    assert spread(factors(own, whole, half, squares, (8, 8), wanted)) < 3


@pytest.mark.parametrize("method", ["qhyvit", slow("best")])
def test_few_images_tell_nothing_of_single_channels(method: str) -> None:
    """So networks are nearly as right as by the whole ranges."""
    name = Path(mk.checkpoints.__file__).parent / "mobilevitv2_050-standin.safetensors"
    model = mk.create_model("mobilevitv2_050", num_classes=40, checkpoint=name).eval()
    x, others = (StandInTask(split, 16, 64) for split in ("train", "heldout"))
    seen, unseen = x[3][0][None], torch.stack([others[i][0] for i in range(16)])
    with torch.no_grad():
        exact = model(unseen)

    def far(found: mk.QuantizedModel) -> float:
        return float((mk.convert(found)(unseen) - exact).norm() / exact.norm())

    plain, found = (mk.quantize(model, [seen], mk.QuantConfig(method=each), progress=False) for each in ("minmax", method))
    assert found.migration == {}
    assert not any(isinstance(each, Channels) for each in found.representations.values())
    assert far(found) < 1.5 * far(plain)


@pytest.mark.slow
def test_other_image_sizes_and_files_know_the_factors(stress: Any, tmp_path: Path) -> None:
    """Odd maps are resized, and some seams are not there."""
    model = stress.stressed(network("mobilevitv2_050", (1, 1, 1), (1, 1)), "outlier_channels")
    q = mk.quantize(model, [images(4, 64).abs()], mk.QuantConfig(8, 8, "best"), progress=False)
    assert q.migration
    mk.save_quantized(q, tmp_path / "q")
    again = mk.load_quantized(model, tmp_path / "q")
    assert again.migration.keys() == q.migration.keys()
    assert again.calibration == q.calibration
    for size in (64, 96, 80):
        x = images(2, size, 3).abs()
        y = q(x)
        assert torch.equal(again(x), y)
        with torch.no_grad():
            exact = model(x)
        assert (y - exact).square().sum() < 0.05 * exact.square().sum()


def test_best_is_nearer_than_the_search_alone(stress: Any) -> None:
    model, x = small(), images(16, 16, 2)
    with torch.no_grad():
        model.expand.weight[3] /= 40  # type: ignore[union-attr,index,operator]
        model.stem.weight[:, :, 1] *= 3  # type: ignore[union-attr,index,operator]
        exact = model(x)
    errors = {}
    for method in ("minmax", "best"):
        q = mk.quantize(model, [images(8, 16)], mk.QuantConfig(6, 6, method), progress=False)
        errors[method] = float((q(x) - exact).square().sum())
    assert errors["best"] < 0.5 * errors["minmax"]
