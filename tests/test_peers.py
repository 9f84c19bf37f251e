"""The comparison with other runtimes: that it compares. What it measures is no test."""

from __future__ import annotations

import json
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
    peers.main(["--batches", "2", "--size", "64", "--rounds", "1", "--threads", threads, "--results", str(folder), *flags])
    return json.loads((folder / "peers.json").read_text())


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
    assert rows["accelerate"]["cosine"] > 0.99999
    (ratio,) = document["ratios"]  # nothing is compared with what did not run
    assert (ratio["peer"], ratio["ours"]) == ("torch", "accelerate")
    assert ratio["of_minima"] == pytest.approx(rows["torch"]["min_ms"] / rows["accelerate"]["min_ms"], rel=1e-4)
    assert "openvino: ImportError: not installed" in capsys.readouterr().err


def test_the_chart_is_drawn_of_what_ran(peers, tmp_path):
    pytest.importorskip("matplotlib")
    import chart

    run(peers, tmp_path, "--models", "mobilevit_xxs,mobilevitv2_050", "--variants", "torch,accelerate")
    chart.main(["--results", str(tmp_path)])
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


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
