"""The comparison with other runtimes: that it compares. What it measures is no test."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")  # draws the images
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def peers(monkeypatch, threads):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peers

    return peers


def run(peers, folder, *flags):
    threads = str(torch.get_num_threads())
    code = peers.main(["--batches", "2", "--size", "64", "--rounds", "1", "--threads", threads, "--results", str(folder), *flags])
    document = json.loads((folder / "peers.json").read_text())
    assert code == any("reason" in row for row in document["results"] if row["variant"] in ("accelerate", "compile"))
    return document


@pytest.mark.slow
def test_variants_that_fail_are_listed_with_their_reason(peers, monkeypatch, tmp_path, capsys):
    from peer_variants import Variant

    def missing(case):
        raise ImportError("not installed\nsecond line")

    def wrong(case):
        return lambda x: 1.5 * case.model(x)

    monkeypatch.setitem(peers.VARIANTS, "openvino", Variant(missing))
    monkeypatch.setitem(peers.VARIANTS, "compile", Variant(wrong, ours=True))
    document = run(peers, tmp_path, "--models", "mobilevit_xxs", "--variants", "torch,openvino,accelerate,compile")
    rows = {row["variant"]: row for row in document["results"]}
    assert rows["openvino"]["reason"] == "ImportError: not installed"
    assert "logits are off by" in rows["compile"]["reason"]
    run(peers, tmp_path / "peers", "--models", "mobilevit_xxs", "--variants", "torch,openvino")  # a peer that is missing is no failure
    assert rows["accelerate"]["cosine"] > 0.99999
    (ratio,) = document["ratios"]  # nothing is compared with what did not run
    assert (ratio["peer"], ratio["ours"]) == ("torch", "accelerate")
    assert ratio["of_minima"] == pytest.approx(rows["torch"]["min_ms"] / rows["accelerate"]["min_ms"], rel=1e-4)
    assert "openvino: ImportError: not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_chart_is_drawn_of_what_ran(peers, tmp_path):
    pytest.importorskip("matplotlib")
    import chart

    run(peers, tmp_path, "--models", "mobilevit_xxs,mobilevitv2_050", "--variants", "torch,accelerate")
    chart.main(["--results", str(tmp_path)])
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "mobilevit_xxs,mobilevit_xsx"], "got 'mobilevit_xsx'"),
        (["--models", "mobilevit_xxs,efficientformer_l1"], "H and W from 193 to 224, got (8, 3, 64, 64)"),
        (["--models", "mobilevit_xxs", "--size", "32"], "size: expected 64 to 256, got 32"),
    ],
)
def test_what_cannot_run_fails_before_the_first_is_measured(peers, monkeypatch, tmp_path, capsys, flags, message):
    monkeypatch.setattr(peers, "_measure", None)
    with pytest.raises(SystemExit) as left:
        run(peers, tmp_path, "--variants", "torch", *flags)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["calibration", "company", "memory", "pixels"])
def test_results_are_written_into_a_new_folder(peers, monkeypatch, tmp_path, name):
    """Before anything is measured: what took an hour has a place then."""
    script, folder = importlib.import_module(name), tmp_path / "new" / "folder"

    def measured(*_, **__):
        assert folder.is_dir()
        return []

    stubs = {
        "calibration": {"tqdm": measured}, "company": {"VARIANTS": {}, "busy_processes": contextlib.nullcontext},
        "memory": {"tqdm": measured}, "pixels": {"VARIANTS": {}},
    }  # fmt: skip
    for what, stub in stubs[name].items():
        monkeypatch.setattr(script, what, stub)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--models", "mobilevit_xxs", "--results", str(folder)])
    script.main()
    assert json.loads((folder / f"{name}.json").read_text())["results"] == []


def test_means_are_over_models(peers):
    rows = [
        {"model": model, "batch": 1, "variant": variant, "min_ms": low, "median_ms": middle}
        for model, variant, low, middle in (
            ("a", "torch", 8.0, 12.0), ("a", "accelerate", 4.0, 4.0), ("b", "torch", 16.0, 12.0), ("b", "accelerate", 2.0, 1.0),
        )
    ]  # fmt: skip
    *_, mean = peers.ratios(rows)
    assert (mean["model"], mean["models"]) == (None, 2)
    assert (mean["of_minima"], mean["of_medians"]) == (pytest.approx(4.0), pytest.approx(6.0))
