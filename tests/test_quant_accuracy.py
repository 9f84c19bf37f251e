"""The benchmark of accuracies: that it measures, goes on, and reckons. What it finds is no test."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")  # draws the images
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FEW = ["--samples", "24", "--models", "mobilevit_xxs", "--bits", "8", "--methods", "minmax"]


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("quant_accuracy")
    monkeypatch.setattr(module, "CALIBRATION", 2)
    return module


@pytest.mark.slow
def test_it_measures_once_and_goes_on(accuracy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    results = tmp_path / "accuracy.json"
    accuracy.main([*FEW, "--variants", "trained", "--results", str(results)])
    first = json.loads(results.read_text())
    (case,), (exact,) = first["cases"], first["float"]
    assert exact["samples"] == 24
    assert case["commit"] == first["conditions"]["commit"]
    assert first["conditions"]["command"].endswith(f"quant_accuracy.py {' '.join(FEW)} --variants trained --results {results}")
    hits = accuracy._unpacked(case["hits"], 24)
    assert case["top1"] == pytest.approx(hits.mean())
    assert accuracy._unpacked(exact["hits"], 24).mean() > 0.7
    assert hits.mean() > 0.7
    assert f"({100 * accuracy._unpacked(exact['hits'], 24).mean():.1f}), trained, 8" in capsys.readouterr().out
    accuracy.main([*FEW, "--variants", "trained", "one_sided", "--results", str(results)])
    second = json.loads(results.read_text())
    assert second["cases"][0] == case
    assert [each["variant"] for each in second["cases"]] == ["trained", "one_sided"]
    monkeypatch.setattr(accuracy.mk, "quantize", None)  # nothing is left to measure
    accuracy.main([*FEW, "--variants", "trained", "one_sided", "--results", str(results)])
    second["float"][0]["weights"] = "others"
    (tmp_path / "others.json").write_text(json.dumps(second))
    with pytest.raises(SystemExit, match="holds accuracies of other weights of mobilevit_xxs: pass other --results"):
        accuracy.main([*FEW, "--variants", "mixed_norms", "--results", str(tmp_path / "others.json")])
    with pytest.raises(SystemExit, match="not on 25 held-out images"):
        accuracy.main([*FEW, "--samples", "25", "--results", str(results)])


def test_intervals(accuracy: Any) -> None:
    differences = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 1000, p=[0.05, 0.9, 0.05])
    mean, low, high = accuracy.interval(differences)
    assert mean == differences.mean()
    error = differences.std() / np.sqrt(1000)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    assert accuracy.interval(np.zeros(50)) == (0.0, 0.0, 0.0)
    hits = np.random.default_rng(0).random(77) < 0.5
    assert np.array_equal(accuracy._unpacked(accuracy._packed(hits), 77), hits)


@pytest.mark.slow
def test_what_no_kernel_runs_is_judged_by_its_simulation(accuracy: Any, tmp_path: Path) -> None:
    results = tmp_path / "accuracy.json"
    accuracy.main([*FEW[:-1], "minmax", "fqvit", "--variants", "trained", "--results", str(results)])
    plain, simulated = json.loads(results.read_text())["cases"]
    assert (plain["kernels"], simulated["kernels"]) == (True, False)
    assert simulated["top1"] > 0.7


def test_several_seeds(accuracy: Any) -> None:
    exact, hits = np.ones(100), [np.arange(100) >= lost for lost in (10, 20, 30)]
    case = {"model": "m", "variant": "one_sided", "bits": 6, "method": "minmax"}
    document = {
        "images": "these",
        "float": [{"model": "m", "samples": 100, "hits": accuracy._packed(exact > 0)}],
        "cases": [case | {"seed": i, "hits": accuracy._packed(each)} for i, each in enumerate(hits)],
    }
    assert "| `m` (100.0), one sided, 6 | -20.0 (" in accuracy.table(document)
    assert "; seeds ± 10.0) |" in accuracy.table(document)
    document["cases"] = document["cases"][:1]
    assert "seeds" not in accuracy.table(document)


def test_bad_flags(accuracy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["--imagenet", str(tmp_path)], "--imagenet needs --results of its own"),
        (["--models", "resnet"], "expected some of mobilevit_xxs, mobilevitv2_050, mobile_former_26m,"),
        (["--models", "mobilevit_s", "--trained", str(tmp_path)], f"mobilevit_s is not in {tmp_path}: standin_training.py --models"),
        (["--imagenet", str(tmp_path), "--results", "x", "--variants", "one_sided"], "expected some of trained, got one_sided"),
    ):
        with pytest.raises(SystemExit):
            accuracy.main(flags)
        assert message in capsys.readouterr().err
