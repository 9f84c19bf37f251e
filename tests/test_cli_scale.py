"""`mvit-kernels scale`: what it prints and writes, on the shipped samples and on small ones."""

from __future__ import annotations

import functools
import json

import pytest
import torch

import mvit_kernels as mk
from mvit_kernels import scaling
from mvit_kernels.cli import main
from mvit_kernels.scaling import SHIPPED, macs, parameters, read

MODEL_KEYS = {"macs", "params", "resolution", "width", "depth_ir", "depth_vit", "config", "accuracy", "accuracy_deviation"}


@pytest.fixture(scope="module", autouse=True)
def _surfaces_are_fitted_once():
    """To the same values with the same seed they are the same; a fit takes longer than all that a call does with it."""
    surface = functools.cache(scaling.fit.Surface)

    def of_tuples(settings, values, *rest, **more):
        return surface(tuple(settings), tuple(values), *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling.fit, "Surface", of_tuples)
        yield


def _json(capsys, *argv):
    """The document of a call that succeeds; stdout holds nothing else."""
    assert main(["scale", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _complaint(capsys, *argv):
    """The one line of a call that fails; stdout stays empty."""
    try:
        code = main(["scale", *map(str, argv)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_shipped_samples_are_whole():
    samples = read(SHIPPED)
    assert len(samples.samples) >= 40
    classes = samples.recipe["num_classes"]
    for each in samples.samples:
        assert (each.macs, each.params) == (macs(each.factors.config, classes), parameters(each.factors.config, classes))
        assert each.latency.keys() == {(precision, threads) for precision in ("fp32", "int8") for threads in (1, 2)}
        assert 1 / classes - 0.1 < each.top1 <= 1
    assert samples.recipe["command"].startswith("mvit-kernels scale sample ")
    assert samples.recipe["latency"]["torch"]


@pytest.mark.slow
def test_fit_judges_the_shipped_samples(capsys, tmp_path):
    document = _json(capsys, "fit", "--output", tmp_path)
    assert document["samples"] == len(read(SHIPPED).samples)
    assert document["fits"].keys() == {"top-1", *(f"{p}, {t} threads, ms" for p in ("fp32", "int8") for t in (1, 2))}
    for fit in document["fits"].values():
        assert fit["log_density"] > fit["baseline_log_density"]  # knows more than their mean and deviation
        assert fit["within_95"] > 0.8
    assert len(list(tmp_path.glob("*.png"))) == 5
    assert main(["scale", "fit"]) == 0
    assert "top-1" in capsys.readouterr().out


def test_downsize_meets_budgets_of_macs(capsys, tmp_path):
    models = _json(capsys, "downsize", "--macs", "12M", "--output", tmp_path, "--top", 3)
    assert len(models) == 3
    assert [each["accuracy"] for each in models] == sorted((each["accuracy"] for each in models), reverse=True)
    for model in models:
        assert model.keys() >= MODEL_KEYS
        network = mk.create_model(**model["config"])
        assert sum(p.numel() for p in network.parameters()) == model["params"]
        assert macs(network.config) == model["macs"] <= 12e6
        assert model["macs"] >= 0.99 * 12e6
    assert json.loads((tmp_path / "models.json").read_text()) == models
    assert (tmp_path / "front.png").stat().st_size > 10_000
    assert main(["scale", "downsize", "--macs", "300M", "--family", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Within 3e+08 to 1.5e+08 MACs\n")
    assert "resolution" in out.split("outside of the samples")[1]


def test_a_family_ends_at_the_least_possible(capsys, tmp_path):
    """What there is, is written."""
    argv = ["scale", "downsize", "--params", "400k", "--classes", "10", "--family", "3", "--ratio", "0.1", "--output", str(tmp_path)]
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    models = json.loads(out)
    assert 1 <= len(models) < 3
    assert json.loads((tmp_path / "models.json").read_text()) == models
    (warning,) = err.splitlines()
    assert warning.startswith(f"WARNING: the family ends after {len(models)} of 3 models: downsize: budget: expected at least ")


@pytest.mark.slow
@torch.no_grad()
def test_downsize_meets_latencies(capsys):
    (model,) = _json(capsys, "downsize", "--latency-ms", "3", "--precision", "fp32", "--threads", "1", "--top", "1")
    assert model["measure"] == "ms"
    assert 0 < model["cost"] <= 3
    side = model["resolution"]
    assert mk.create_model(**model["config"]).eval()(torch.zeros(1, 3, side, side)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (("downsize", "--macs", "1k"), "expected at least"),
        (("downsize", "--macs", "much"), "expected a positive number such as"),
        (("downsize", "--macs", "-3"), "expected a positive number such as"),
        (("downsize", "--macs", "3M", "--params", "3M"), "not allowed with"),
        (("downsize",), "one of the arguments --macs --params --latency-ms is required"),
        (("downsize", "--latency-ms", "1", "--threads", "7"), "expected one of those that every sample has"),
        (("downsize", "--macs", "3M", "--ratio", "2"), "--ratio: expected a number between 0 and 1"),
        (("fit", "--samples", "nowhere"), "--samples: expected a folder that `mvit-kernels scale sample` filled"),
        (("downsize", "--macs", "3M", "--samples", __file__), "with samples.csv and recipe.json, got"),
        (("sample", "--output", "x", "--width", "1"), "expected two numbers with a comma"),
        ((), "required"),
    ],
)
def test_complaints(capsys, argv, match):
    assert match in _complaint(capsys, *argv)


def test_samples_that_are_none(capsys, tmp_path):
    complaint = _complaint(capsys, "fit", "--samples", tmp_path)
    assert "--samples: expected a folder that `mvit-kernels scale sample` filled" in complaint
    assert f"with samples.csv and recipe.json, got {str(tmp_path)!r}" in complaint
    (tmp_path / "samples.csv").write_text((SHIPPED / "samples.csv").read_text().partition("\n")[0])
    (tmp_path / "recipe.json").write_text("{}")
    assert "--samples: expected samples, lines below the first one of samples.csv" in _complaint(capsys, "fit", "--samples", tmp_path)


def test_sample_prints_what_it_made(capsys, tmp_path):
    flags = "--count 1 --resolution 32,32 --width 0.1,0.2 --depth-ir 1,1 --depth-vit 0.25,0.25 --canvas 64 --target direction --plain"
    recipe = "--samples 16 --heldout-samples 8 --epochs 1 --batch-size 8 --warmup 1 --ema 0 --threads 1 --limit 0"
    argv = ("sample", "--output", tmp_path, *flags.split(), *recipe.split())
    document = _json(capsys, *argv)
    (each,) = document["samples"]
    assert each["factors"]["resolution"] == 32
    assert each["macs"] > 0
    assert document["recipe"]["latency"]["command"].startswith("mvit-kernels scale sample")
    assert main(["scale", *map(str, argv)]) == 0
    assert "1 settings" in capsys.readouterr().out
    # Two settings at one resolution: each line has it.
    assert main(["scale", *map(str, argv), "--count", "2"]) == 0
    assert [line.split()[:1] for line in capsys.readouterr().out.splitlines()[-3:-1]] == [["32"], ["32"]]


@pytest.mark.parametrize(("resolution", "canvas"), [("128,256", 256), ("32,48", 64), ("64,100", 100)])
def test_images_are_drawn_at_the_highest_resolution(capsys, monkeypatch, tmp_path, resolution, canvas):
    def drawn(folder, count, recipe, **settings):
        raise ValueError(f"drawn at {recipe.canvas} pixels")

    monkeypatch.setattr(scaling, "sample", drawn)
    assert f"drawn at {canvas} pixels" in _complaint(capsys, "sample", "--output", tmp_path, "--resolution", resolution)
