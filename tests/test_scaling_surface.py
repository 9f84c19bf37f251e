"""Settings of the factors, Gaussian processes over them, and models within budgets, on functions that are known."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.base import clone

import mvit_kernels as mk
from mvit_kernels.scaling import (
    SHIPPED,
    Box,
    Downsizer,
    Factors,
    Latency,
    Macs,
    Params,
    Sample,
    SampleSet,
    Surface,
    accuracy_surface,
    latency_surface,
    macs,
    parameters,
    plots,
    read,
    timed,
)
from mvit_kernels.scaling.downsize import widest
from mvit_kernels.scaling.factors import shape_of

BOX = Box((32, 80), (0.15, 0.5), (0.5, 2.0), (0.25, 1.5), resolution_step=4)


def truth(factors: Factors) -> float:
    """A top-1 that grows with the resolution most, with the width less, and suffers from attention."""
    r, w, d_i, d_m = np.log(factors) - np.log((56, 0.3, 1.0, 0.7))
    return float(expit(1.0 + 2.2 * r + 0.8 * w + 0.3 * d_i - 0.4 * d_m - 0.6 * r * w))


def time_of(factors: Factors) -> float:
    return 0.1 + macs(factors.config) / 3e7


def sample_set(count: int = 40, noise: float = 0.0) -> SampleSet:
    generator = np.random.default_rng(0)
    samples = [
        Sample(
            index,
            factors,
            macs(factors.config, 4),
            parameters(factors.config, 4),
            float(expit(logit(truth(factors)) + noise * generator.standard_normal())),
            1000,
            10,
            1.0,
            {("int8", 2): time_of(factors)},
        )
        for index, factors in enumerate(BOX.draw(count, seed=0))
    ]
    return SampleSet(tuple(samples), {"num_classes": 4})


@pytest.fixture(scope="module")
def samples():
    return sample_set(noise=0.1)


@pytest.fixture(scope="module")
def downsizer(samples):
    return Downsizer(samples, Macs())


@pytest.fixture(scope="module")
def surface(downsizer):
    """That of the accuracy of `samples`, which a call takes longer to fit than for all else."""
    return downsizer.accuracy


@pytest.fixture
def fitted(monkeypatch, samples, surface):
    """Downsizers of `samples` take it."""

    def of(given, seed):
        assert (given, seed) == (samples, 0)
        return surface

    monkeypatch.setattr("mvit_kernels.scaling.downsize.accuracy_surface", of)


# --- settings ---


def test_settings_fill_the_box_and_differ():
    settings = BOX.draw(64, seed=3)
    assert len({shape_of(each) for each in settings}) == 64
    for name, values in zip(Factors._fields, np.array(settings).T, strict=True):
        low, high = getattr(BOX, name)
        assert low <= values.min() < low * 1.15
        assert high / 1.15 < values.max() <= high
        halves = np.sum(values < math.sqrt(low * high))
        assert 22 <= halves <= 42
    assert all(each.resolution % 4 == 0 for each in settings)


def test_a_longer_draw_begins_with_the_shorter_one():
    assert BOX.draw(50, seed=1)[:20] == BOX.draw(20, seed=1)
    assert BOX.draw(20, seed=1) != BOX.draw(20, seed=2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"width": (0.5, 0.2)}, "width: expected 0 < lowest <= highest, got 0.5, 0.2"),
        ({"depth_vit": (0.0, 1.0)}, "depth_vit: expected 0 < lowest"),
        ({"resolution": (33, 35), "resolution_step": 8}, "resolution: expected a multiple of 8 from 33 to 35, got none"),
    ],
)
def test_boxes_without_settings_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(BOX, **change)


def test_a_box_of_few_models_says_how_many():
    with pytest.raises(ValueError, match="expected at most the 2 models"):
        Box((32, 36), (0.3, 0.3), (1.0, 1.0), (1.0, 1.0), resolution_step=4).draw(3, seed=0)


# --- surfaces ---


def test_a_known_function_is_found(surface):
    exact = accuracy_surface(sample_set())
    others = BOX.draw(120, seed=9)
    mean, deviation = exact.predict(others)
    error = mean - [truth(each) for each in others]
    assert np.sqrt(np.mean(error**2)) < 0.02  # the function sees factors, the surface what rounding leaves of them
    assert exact.leave_one_out().r2 > 0.98
    assert (deviation > 0).all()
    # With noise: 0.1 on logits is at most 0.025 on shares.
    assert np.sqrt(np.mean((surface.predict(others).mean - [truth(each) for each in others]) ** 2)) < 0.03


def test_settings_that_the_fit_has_not_seen_are_predicted_better_than_by_the_mean():
    """Of the shipped samples, many of which are bad luck: more freedom than they allow for takes that for detail."""
    samples = read(SHIPPED)
    settings, values = [each.factors for each in samples.samples], np.array([each.top1 for each in samples.samples])
    gains, inside = [], []
    for fold in range(5):
        rest = np.arange(len(values)) % 5 != fold
        surface = Surface([each for each, use in zip(settings, rest, strict=True) if use], values[rest], "logit")
        mean, deviation = surface.predict([each for each, use in zip(settings, rest, strict=True) if not use])
        target, known = logit(values[~rest]), logit(values[rest])
        middle, spread = logit(mean), deviation / (mean * (1 - mean))
        gains += list(norm.logpdf(target, middle, spread) - norm.logpdf(target, known.mean(), known.std()))
        inside += list(np.abs(target - middle) < 1.96 * spread)
    assert np.mean(gains) > 0.1
    assert np.mean(inside) > 0.9


def test_deviations_are_calibrated_and_grow_outside(surface):
    others = BOX.draw(200, seed=5)
    mean, deviation = surface.predict(others)
    drawn = expit(logit([truth(each) for each in others]) + 0.1 * np.random.default_rng(1).standard_normal(len(others)))
    inside = np.abs(mean - drawn) / deviation
    assert 0.5 < np.mean(inside < 1) < 0.9
    assert np.mean(inside < 2) > 0.85

    def on_logits(factors):
        mean, deviation = surface.predict([factors])
        return deviation[0] / (mean[0] * (1 - mean[0]))

    assert on_logits(Factors(256, 2.0, 1.0, 0.7)) > 2 * on_logits(Factors(56, 0.3, 1.0, 0.7))


@pytest.mark.parametrize("scale", ["logit", "log"])
def test_leave_one_out_is_that_of_leaving_each_out(scale):
    settings = BOX.draw(14, seed=2)
    values = [truth(each) + 0.01 * math.sin(97 * index) for index, each in enumerate(settings)]
    surface = Surface(settings, values, scale)
    process, target = surface._process, surface._target
    middle, spread = target.mean(), target.std()
    means, deviations = [], []
    for index in range(len(settings)):
        rest = np.arange(len(settings)) != index
        refit = clone(process).set_params(kernel=process.kernel_, optimizer=None, normalize_y=False)
        refit.fit(process.X_train_[rest], (target[rest] - middle) / spread)
        mean, deviation = refit.predict(process.X_train_[[index]], return_std=True)
        means.append(mean[0] * spread + middle)
        deviations.append(deviation[0] * spread)
    judged = surface.leave_one_out()
    assert judged.r2 == pytest.approx(1 - np.mean((np.array(means) - target) ** 2) / spread**2, abs=1e-6)
    z = np.abs((target - means) / deviations)
    assert judged.within_95 == pytest.approx(np.mean(z < 1.959964))
    back = expit(means) if scale == "logit" else np.exp(means)
    assert judged.rmse == pytest.approx(np.sqrt(np.mean((back - values) ** 2)), rel=1e-5)


def test_fits_are_the_same_every_time(samples, surface):
    again = accuracy_surface(samples)
    others = BOX.draw(10, seed=4)
    assert again is not surface
    assert again.kernel == surface.kernel
    np.testing.assert_array_equal(again.predict(others), surface.predict(others))


def test_accuracies_of_nothing_and_all_are_fitted():
    settings = BOX.draw(8, seed=0)
    surface = Surface(settings, [0, 0, 0, 0, 1, 1, 1, 1], "logit", counts=100)
    assert ((surface.predict(settings).mean > 0) & (surface.predict(settings).mean < 1)).all()


@pytest.mark.parametrize(
    ("values", "scale", "match"),
    [
        ([0.1] * 4, "logit", "expected one for each of at least 5 settings, got 4 for 6"),
        ([0.1, 0.2, 0.3, 0.4, 0.5, float("nan")], "logit", "expected numbers from 0 to 1"),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 1.5], "logit", "expected numbers from 0 to 1"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 0.0], "log", "expected positive numbers"),
    ],
)
def test_bad_values_are_refused(values, scale, match):
    with pytest.raises(ValueError, match=match):
        Surface(BOX.draw(6, seed=0), values, scale)


def test_latencies_that_were_not_timed_are_refused(samples):
    assert timed(samples) == [("int8", 2)]
    with pytest.raises(ValueError, match=r"expected one of those that every sample has \(int8 on 2\), got fp32 on 1 threads"):
        latency_surface(samples, "fp32", 1)
    with pytest.raises(ValueError, match="at least 5 settings, got 0"):
        latency_surface(SampleSet((), {}), "fp32", 1)


@pytest.mark.parametrize(("scale", "value"), [("logit", 0.3), ("logit", 0.0), ("log", 0.1)])
def test_values_that_are_all_the_same_are_refused(samples, scale, value):
    settings = [each.factors for each in samples.samples]
    with pytest.raises(ValueError, match=r"Surface: values: expected values that differ, got \["):
        Surface(settings, [value] * len(settings), scale)


# --- models within budgets ---


@pytest.mark.parametrize("budget", [2e6, 3.3e6, 5e6, 8.1e6, 13e6, 20.5e6, 30e6, 300e6])
def test_budgets_are_met(downsizer, budget):
    models = downsizer.derive(budget, 4)
    assert [each.accuracy for each in models] == sorted((each.accuracy for each in models), reverse=True)
    for model in models:
        config = mk.create_model(**model.document()["config"]).config
        assert model.cost == model.macs == macs(config)
        assert model.params == parameters(config)
        assert 0.99 * budget <= model.cost <= budget
        assert 0 <= model.gap <= 0.01


def test_derived_models_are_better_than_plain_ones(downsizer):
    """By the function that the samples came from; attention, which it calls harmful, is left out."""
    for budget in (6e6, 12e6, 24e6):
        (model,) = downsizer.derive(budget)
        plain = Macs().width(Factors(80, 1.0, 1.0, 1.0), budget)
        assert truth(model.factors) > truth(Factors(80, plain, 1.0, 1.0))
        assert model.factors.depth_vit < 0.6


@pytest.mark.parametrize(("cost", "budgets"), [(Macs(4), (1.4e7, 2.9e7)), (Params(4), (1.1e6, 5e6))])
@pytest.mark.slow
def test_where_the_front_ends_no_other_model_is_predicted_to_be_better(cost, budgets):
    """Budgets beyond the setting with the highest prediction of all. Resolution costs no parameters: a curve that goes on along the front
    would lower it for nothing."""
    downsizer = Downsizer(read(SHIPPED), cost, num_classes=4)
    ranges = downsizer.ranges
    grid = [
        Factors(side, 1.0, depth_ir / 8, depth_vit / 16)
        for side in range(ranges["resolution"][0], ranges["resolution"][1] + 1, 4)
        for depth_ir in range(4, 17, 2)
        for depth_vit in range(4, 24, 2)
    ]
    for budget in budgets:
        assert downsizer.front.costs[-1] < budget
        (model,) = downsizer.derive(budget)
        widths = [widest(each, budget, cost) for each in grid]
        others = [each._replace(width=width) for each, width in zip(grid, widths, strict=True) if width]
        close = [each for each, used in zip(others, cost.of(others), strict=True) if used >= 0.99 * budget]
        known = [each for each in close if each.width <= max(ranges["width"][1], model.factors.width)]
        assert len(known) > 20
        assert model.accuracy >= downsizer.accuracy.predict(known).mean.max() - 0.015


def test_what_lies_outside_of_the_samples_is_flagged(downsizer):
    (inside,), (outside,) = downsizer.derive(8e6), downsizer.derive(600e6)
    assert inside.extrapolated == ()
    assert {"resolution", "width"} & set(outside.extrapolated)
    for name in outside.extrapolated:
        low, high = downsizer.ranges[name]
        assert not low <= getattr(outside.factors, name) <= high


def test_impossible_budgets_name_the_least(downsizer):
    with pytest.raises(ValueError, match=r"expected at least (\d+) MACs, the cost of Factors") as caught:
        downsizer.derive(1e5)
    least = float(str(caught.value).split("at least ")[1].split()[0])
    assert downsizer.derive(least * 1.0001)[0].cost <= least * 1.0001
    with pytest.raises(ValueError, match="at least"):
        downsizer.derive(float("nan"))


def test_a_family_becomes_smaller(downsizer):
    budgets = [24e6 * 0.5**step for step in range(4)]
    models = [downsizer.derive(budget)[0] for budget in budgets]
    assert [each.cost for each in models] == sorted((each.cost for each in models), reverse=True)
    assert [each.accuracy for each in models] == sorted((each.accuracy for each in models), reverse=True)
    width = [Macs().width(each.formula, budget) for each, budget in zip(models, budgets, strict=True)]
    np.testing.assert_allclose([each.formula.width for each in models], width)


def test_the_same_seed_gives_the_same_models(samples, downsizer):
    again = Downsizer(samples, Macs())
    assert again.derive(9e6, 3) == downsizer.derive(9e6, 3)


def test_budgets_of_parameters(samples, fitted):
    downsizer = Downsizer(samples, Params(10), num_classes=10)
    for budget in (150e3, 400e3):
        for model in downsizer.derive(budget, 3):
            assert 0.99 * budget <= model.cost <= budget
            network = mk.create_model(**model.document()["config"], num_classes=10)
            assert model.cost == sum(p.numel() for p in network.parameters())


@pytest.mark.slow
def test_budgets_of_latency_are_held_to_measurements(samples, fitted, monkeypatch):
    """This machine takes three times as long as that of the samples: what is returned was measured here."""
    calls = []

    def here(factors, precision, threads, num_classes):
        calls.append((precision, threads))
        return 3 * time_of(factors)

    monkeypatch.setattr("mvit_kernels.scaling.downsize.measured", here)
    downsizer = Downsizer(samples, Latency(latency_surface(samples, "int8", 2)))
    models = downsizer.derive_measured(1.0, 3, "int8", 2)
    assert set(calls) == {("int8", 2)}
    assert models
    for model in models:
        assert model.cost == 3 * time_of(model.factors)
        assert 0.8 < model.cost <= 1.0
    with pytest.raises(ValueError, match="expected at least"):
        downsizer.derive_measured(0.01, 3, "int8", 2)


@pytest.mark.slow
def test_latencies_that_are_predicted_wrong_still_lead_to_the_budget(samples, fitted, monkeypatch):
    """20 ms are predicted for what takes 100, far beyond the samples, and the first correction goes too far."""
    calls = []

    def here(factors, precision, threads, num_classes):
        calls.append(factors)
        return time_of(factors)

    monkeypatch.setattr("mvit_kernels.scaling.downsize.measured", here)
    downsizer = Downsizer(samples, Latency(latency_surface(samples, "int8", 2)))
    assert all(15.0 <= each.cost <= 20.0 for each in downsizer.derive_measured(20.0, 1, "int8", 2))
    calls.clear()
    assert downsizer.derive_measured(5000.0, 1, "int8", 2)[0].cost <= 5000.0  # more than any model takes: measured twice, not six times
    assert len(calls) <= 3


def test_documents_are_json(downsizer):
    document = json.loads(json.dumps(downsizer.derive(7e6)[0].document(), allow_nan=False))
    assert document["config"] == {"name": "mobilevitv2", **{name: document[name] for name in Factors._fields}}
    assert document.keys() >= {"macs", "params", "accuracy", "accuracy_deviation", "gap", "budget", "cost", "extrapolated", "formula"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("fixed", "panels"), [(("width",), 3 + 2 * 2 * 3), (("resolution", "depth_ir", "depth_vit"), 1)])
def test_factors_that_are_all_the_same_have_no_slices(surface, samples, tmp_path, monkeypatch, fixed, panels):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    ranges = {name: (ends[1], ends[1]) if name in fixed else ends for name, ends in samples.ranges.items()}
    plots.surfaces(surface, ranges, "top-1", tmp_path / "surface.png")
    assert len(drawn[0].axes) == panels  # each map has a bar of colours beside it


@pytest.mark.slow  # the command line draws the same
def test_pictures_are_drawn(samples, downsizer, tmp_path):
    plots.surfaces(downsizer.accuracy, samples.ranges, "top-1", tmp_path / "surface.png")
    plots.fronts(downsizer, downsizer.derive(7e6), "models", tmp_path / "front.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size > 10_000
