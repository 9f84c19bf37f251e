"""The command that trains networks on the stand-in task: that it trains once, goes on, and says what it did."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import mvit_kernels as mk
from mvit_kernels.training import TrainConfig

pytest.importorskip("sklearn")  # draws the images
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAME = "mobilevitv2_050"
FEW = {"batch_size": 4, "heldout_samples": 4, "warmup": 1}


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("standin_training")


def test_recipes_can_be_trained(standin: Any, tmp_path: Path) -> None:
    for name, stages in standin.RECIPES.items():
        assert name in mk.list_models()
        configs = [TrainConfig(name, tmp_path, **stage) for stage in stages]
        mk.create_model(name, **json.loads(configs[-1].options))
        assert standin.weights(name, tmp_path) is None or name in ("mobilevit_xxs", "mobilevitv2_050")


@pytest.mark.slow
def test_it_trains_once_and_goes_on(standin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ({"size": 64, "samples": 8, **FEW}, {"size": 96, "samples": 12, **FEW})
    monkeypatch.setattr(standin, "RECIPES", {NAME: stages})
    argv = ["--models", "all", "--output", str(tmp_path / "runs"), "--results", str(tmp_path / "r.json"), "--heldout-samples", "4"]
    standin.main(argv)
    (row,) = json.loads((tmp_path / "r.json").read_text())["checkpoints"]
    assert (row["model"], row["size"], row["heldout_samples"]) == (NAME, 96, 4)
    assert row["training"]["steps"] == 5  # of both stages
    assert row["conditions"]["command"] == shlex.join(["python", "benchmarks/standin_training.py", *argv])
    first, second = row["training"]["command"].split(" && ")
    assert f"--output {tmp_path}/runs/{NAME}-64" in first
    assert f"--checkpoint {tmp_path}/runs/{NAME}-64/model.safetensors" in second

    weights = tmp_path / "runs" / NAME / "model.safetensors"
    trained = weights.read_bytes()
    weights.unlink()  # interrupted behind the last state
    standin.main(argv)
    with safe_open(weights, "pt") as file:
        assert int(file.metadata()["steps"]) == 5
    assert weights.stat().st_size == pytest.approx(len(trained), abs=64)  # seconds in the metadata may differ
    monkeypatch.setattr(standin, "train", None)  # nothing is left to train
    standin.main(argv)


def test_what_is_known_of_others_stays(standin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "r.json"
    known = [{"model": "mobilevit_s", "top1": 0.5}, {"model": "mobilevit_xxs", "top1": 0.25}]
    results.write_text(json.dumps({"checkpoints": known}))
    monkeypatch.setattr(standin, "row", lambda name, *_: {"model": name, "top1": 1.0})
    standin.main(["--output", str(tmp_path), "--results", str(results)])
    rows = json.loads(results.read_text())["checkpoints"]
    assert [(each["model"], each["top1"]) for each in rows] == [("mobilevit_xxs", 1.0), ("mobilevitv2_050", 1.0), ("mobilevit_s", 0.5)]
