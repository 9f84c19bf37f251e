"""`mvit-kernels quantize` and `mvit-kernels eval`, and the folders that they read."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from test_cli import _complaint, _json

import mvit_kernels as mk
from mvit_kernels.cli import main
from mvit_kernels.cli.evaluation import Network
from mvit_kernels.cli.output import require_picture
from mvit_kernels.data import StandInTask, evaluation_view, read_image
from mvit_kernels.data.listed import ListedImages, calibration_images, evaluation_set
from mvit_kernels.models import Normalization
from mvit_kernels.training.state import save_weights

MODEL = "mobilevitv2_050"
OPTIONS = {"depths": [1, 1, 1], "blocks": [1, 1]}  # a layer of each kind
CLASSES = ("n01", "n02", "n03")


def network(**settings):
    return mk.create_model(MODEL, num_classes=len(CLASSES), **OPTIONS, **settings).eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder as ImageNet is: train and val, a folder a class."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(root / split / name / f"{name}_{i}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    about = {"model": MODEL, "options": json.dumps(OPTIONS), "class_names": json.dumps(CLASSES), "num_classes": "3", "size": "64"}
    save_weights(path, network().state_dict(), about)
    return path


@pytest.fixture(scope="module")
def quantized(weights, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    argv = ["quantize", weights, "--calibration", pictures, "--images", 6, "--method", "minmax", "--weight-bits", 6]
    argv += ["--output", folder / "q.safetensors", "--report", folder / "report.json", "--state", folder / "state"]
    assert main([*map(str, argv)]) == 0
    return folder / "q.safetensors"


def _flat(pictures, folder, labels):
    """The pictures of val side by side, with a list of labels."""
    names = []
    for file in sorted(pictures.glob("val/*/*.png")):
        (folder / file.name).write_bytes(file.read_bytes())
        names.append((file.name, file.parent.name))
    labels(folder, names)
    return folder


# --- folders ---


def test_the_validation_layouts_are_the_same_images(pictures, tmp_path):
    expected = evaluation_set(pictures, 64)
    assert expected.class_names == CLASSES

    def numbers(folder, names):
        (folder / "val.txt").write_text("".join(f"{name} {CLASSES.index(label)}\n" for name, label in names))

    def kaggle(folder, names):
        lines = "".join(f"{name.removesuffix('.png')},{label} 1 2 3 4 \n" for name, label in names)
        (folder.parent / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + lines)

    for i, write in enumerate((numbers, kaggle)):
        folder = tmp_path / str(i) / "val"
        folder.mkdir(parents=True)
        _flat(pictures, folder, write)
        for root in (folder, folder.parent):
            found = evaluation_set(root, 64)
            assert isinstance(found, ListedImages)
            assert len(found) == len(expected)
            for (x, label), (y, other) in zip(found, expected, strict=True):
                assert torch.equal(x, y)
                assert label == other


def test_lists_that_do_not_fit(pictures, tmp_path):
    folder = _flat(pictures, tmp_path, lambda folder, names: None)
    with pytest.raises(
        ValueError, match=r"evaluation_set: path: expected labels of the pictures in .*val.txt or LOC_val_solution.csv, got none"
    ):
        evaluation_set(folder)
    for text, got in (
        ("", "none for 'n01_0'"),
        ("n01_0.png 0\n", "none for 'n01_1'"),
        ("n01_0.png 0\nn01_0.jpg 1\n", "names that differ without their endings in .*val.txt', got 'n01_0' again"),
        ("".join(f"{file.name} 0\n" for file in folder.glob("*.png")) + "more.png 0\n", "one for 'more', which is not there"),
        ("n01_0.png\n", r"got \['n01_0.png'\]"),
    ):
        (folder / "val.txt").write_text(text)
        with pytest.raises(ValueError, match=f"ListedImages: labels: expected .*{got}"):
            evaluation_set(folder)
    (folder / "val.txt").write_text("n01_0.png 0\n")
    (folder / "n01_0.jpg").write_bytes((folder / "n01_0.png").read_bytes())  # which of them is in the list?
    with pytest.raises(ValueError, match=f"names that differ without their endings in '{folder}', got 'n01_0' again"):
        evaluation_set(folder)
    with pytest.raises(ValueError, match="evaluation_set: path: expected a folder, got"):
        evaluation_set(tmp_path / "nothing")


def test_names_of_classes_may_look_like_numbers(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    (tmp_path / "val.txt").write_text("a.png 007\nb.png bond\n")
    images = ListedImages(tmp_path, tmp_path / "val.txt", 8)
    assert (images.numbered, images.class_names) == (False, ("007", "bond"))
    assert [label for _, label in images] == [0, 1]


def test_calibration_images_are_drawn_by_the_seed(pictures, tmp_path):
    first, again, other = (calibration_images(pictures, 5, 64, seed) for seed in (0, 0, 1))
    assert first.shape == (5, 3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    views = [evaluation_view(read_image(file), 64) for file in sorted(pictures.glob("train/*/*.png"))]
    assert all(any(torch.equal(x, view) for view in views) for x in first)
    with pytest.raises(ValueError, match=r"calibration_images: count: expected at most 9, .*got 10"):
        calibration_images(pictures, 10, 64)
    with pytest.raises(ValueError, match="calibration_images: path: expected a folder, got"):
        calibration_images(pictures / "no", 1, 64)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=f"calibration_images: path: expected pictures in '{tmp_path / 'train'}', got none"):
        calibration_images(tmp_path, 1, 64)


# --- quantize ---


def test_quantize_writes_what_the_library_makes(weights, pictures, quantized):
    model = network(checkpoint=weights)
    x = calibration_images(pictures, 6, 64)
    q = mk.quantize(model, [x], mk.QuantConfig(6, 8, "minmax"), progress=False)
    loaded = mk.load_quantized(model, quantized)
    assert loaded.calibration == q.calibration
    assert loaded.calibration["images"] == 6
    assert torch.equal(loaded(x), q(x))
    report = json.loads(quantized.with_name("report.json").read_text())
    assert report["config"]["weight_bits"] == 6
    assert {row["node"] for row in report["sensitivity"]["rows"]} <= {row["node"] for row in report["rows"]}
    assert report["decisions"]


def test_quantize_goes_on_where_it_was(capsys, weights, pictures, quantized, tmp_path, monkeypatch):
    monkeypatch.setattr("mvit_kernels.quant.methods.base.ranges", lambda *_: pytest.fail("looked again"))
    argv = ["quantize", weights, "--calibration", pictures, "--images", 6, "--method", "minmax", "--output", tmp_path / "q"]
    argv += ["--state", quantized.with_name("state")]
    assert _json(capsys, *argv, "--weight-bits", 6)["integer_nodes"] > 0
    with safe_open(tmp_path / "q", "pt") as again, safe_open(quantized, "pt") as first:
        assert again.metadata() == first.metadata()  # with a checksum of all tensors
    assert "expected a run with weight_bits 8, got" in _complaint(capsys, *argv)
    assert "expected a run with images" in _complaint(capsys, *argv, "--weight-bits", 6, "--seed", 1)


@pytest.mark.slow
def test_quantize_says_what_to_keep_and_draws(capsys, weights, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    argv = ["quantize", weights, "--calibration", "standin", "--images", 2, "--method", "minmax", "--output", tmp_path / "q"]
    document = _json(capsys, *argv, "--target", 60, "--plot", tmp_path / "plot.png")
    assert document["sensitivity"]["target"] == 60
    assert document["model"] == MODEL
    assert document["float_nodes"] == 0
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert main([*map(str, argv), "--skip", "head.*,stem.*", "--activation-bits", "none"]) == 0
    assert "W8A32" in capsys.readouterr().out


def test_quantize_refuses(capsys, weights, tmp_path):
    end = ["--output", tmp_path / "q"]
    assert "--output" in _complaint(capsys, "quantize", weights, "--calibration", "standin")
    assert "expected a folder" in _complaint(capsys, "quantize", weights, "--calibration", tmp_path / "no", *end)
    assert "no such checkpoint" in _complaint(capsys, "quantize", tmp_path / "no", "--calibration", "standin", *end)
    assert "invalid choice" in _complaint(capsys, "quantize", weights, "--calibration", "standin", "--weight-bits", 7, *end)
    assert not (tmp_path / "q").exists()


def test_quantize_looks_at_its_flags_first(capsys, monkeypatch, weights, pictures, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("mvit_kernels.cli.quantize.load_classifier", _unwanted)
    (tmp_path / "empty").mkdir()
    argv, called = ["quantize", weights, "--output", tmp_path / "q", "--calibration"], "calibration_images: "
    for flags, message in (
        ([pictures], f"--images 32 (default: 32): {called}count: expected at most 9, the pictures in '{pictures / 'train'}', got 32"),
        ([pictures, "--images", 10], f"--images 10 (default: 32): {called}count: expected at most 9, "),
        ([tmp_path / "empty"], f"{called}path: expected pictures in '{tmp_path / 'empty'}', got none"),
        (
            [tmp_path / "no"],
            f"--calibration {tmp_path / 'no'} (or standin), --images 32 (default: 32): {called}path: expected a folder, got",
        ),
        (["standin", "--plot", tmp_path / "p.xyz"], "--plot: expected a suffix that matplotlib draws, one of ."),
        (["standin", "--target", -1], "--target: expected points of top-1, from 0 to 100, got -1.0"),
        (["standin", "--target", "nan"], "--target: expected points of top-1, from 0 to 100, got nan"),
    ):
        assert message in _complaint(capsys, *argv, *flags)
    for suffix in (".png", ".SVG", ".pdf", ""):
        require_picture("--plot", tmp_path / f"p{suffix}")
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    assert "--plot: expected matplotlib" in _complaint(capsys, *argv, "standin", "--plot", tmp_path / "p.png")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def _unwanted(*_, **__):
    pytest.fail("worked before it looked")


def test_nothing_is_begun_that_cannot_be_written(capsys, monkeypatch, weights, tmp_path):
    monkeypatch.setattr("mvit_kernels.cli.quantize.load_classifier", _unwanted)
    monkeypatch.setattr("mvit_kernels.cli.eval.load_network", _unwanted)
    (tmp_path / "file").touch()
    for flag in ("--output", "--report", "--plot"):
        for path in (tmp_path / "no" / "q", tmp_path / "file" / "q", tmp_path):
            others = ["--output", tmp_path / "q"] if flag != "--output" else []
            complaint = _complaint(capsys, "quantize", weights, "--calibration", "standin", *others, flag, path)
            assert f"{flag}: expected a file in a folder that exists" in complaint
            assert repr(str(path)) in complaint
    for path in (tmp_path / "no" / "state", tmp_path):
        assert f"--state: expected a file in a folder that exists and may be written to, got {str(path)!r}" in _complaint(
            capsys, "eval", weights, "--data", "standin", "--state", path
        )
    assert "--output: expected" in _complaint(capsys, "export", tmp_path / "file", "--output", tmp_path / "no" / "q.onnx")
    assert not (tmp_path / "q").exists()


@pytest.mark.slow
def test_a_scaled_model_goes_all_the_way(capsys, tmp_path):
    """Its options are in every file, from training to ONNX."""
    pytest.importorskip("onnx")
    options, task = {"width": 0.4, "depth_vit": 0.5}, StandInTask("heldout", 20, 64)
    torch.manual_seed(3)
    model = mk.create_model("mobilevitv2", num_classes=len(task.class_names), **options).eval()
    metadata = {"model": "mobilevitv2", "options": json.dumps(options), "class_names": json.dumps(task.class_names), "size": "64"}
    save_weights(tmp_path / "model.safetensors", model.state_dict(), metadata)
    argv = ["quantize", tmp_path / "model.safetensors", "--calibration", "standin", "--images", 4, "--method", "minmax"]
    assert _json(capsys, *argv, "--output", tmp_path / "q")["model"] == "mobilevitv2"
    loaded = mk.load_quantized(model, tmp_path / "q")
    document = _json(capsys, "eval", tmp_path / "q", "--data", "standin", "--images", 20)
    right = sum(int(loaded(image[None]).argmax()) == label for image, label in (task[i] for i in range(20)))
    assert document["top1"] == pytest.approx(right / 20)
    assert _json(capsys, "export", tmp_path / "q", "--output", tmp_path / "q.onnx")["bytes"] > 0


@pytest.mark.slow
def test_what_is_normalized_at_calibration_is_at_evaluation(capsys, weights, pictures, tmp_path):
    model = network(checkpoint=weights)
    normalization = Normalization((0.5, 0.25, 0.5), (0.25, 1.0, 0.5))
    flags = ["--mean", *normalization.mean, "--std", *normalization.std]
    argv = ["quantize", weights, "--calibration", pictures, "--images", 4, "--method", "minmax", "--output", tmp_path / "q"]
    assert _json(capsys, *argv, *flags)["std"] == [0.25, 1.0, 0.5]
    q = mk.quantize(model, [normalization(calibration_images(pictures, 4, 64))], mk.QuantConfig(method="minmax"), progress=False)
    loaded = mk.load_quantized(model, tmp_path / "q")
    assert loaded.calibration == q.calibration
    expected = _expected(lambda x: q(normalization(x)), pictures)
    document = _json(capsys, "eval", tmp_path / "q", "--data", pictures, "--eager")
    assert (document["mean"], document["top1"]) == ([0.5, 0.25, 0.5], pytest.approx(expected))
    with torch.inference_mode():
        exact = _expected(lambda x: model(normalization(x)), pictures)
    assert _json(capsys, "eval", weights, "--data", pictures, "--eager", *flags)["top1"] == pytest.approx(exact)


@pytest.mark.slow
def test_a_plan_takes_images_as_its_model_wants_them(capsys, pictures, tmp_path):
    model = mk.create_model("efficientformerv2_s0", num_classes=3, image_size=64).eval()
    mk.compile(model, torch.zeros(1, 3, 64, 64)).save(tmp_path / "plan")
    argv = ["eval", tmp_path / "plan", "--data", pictures, "--size", 64]
    assert _json(capsys, *argv)["mean"] == [0.0, 0.0, 0.0]
    assert _json(capsys, *argv, "--model", "efficientformerv2_s0")["mean"] == pytest.approx([0.485, 0.456, 0.406])


# --- eval ---


def _expected(network, pictures):
    images = evaluation_set(pictures, 64)
    logits = network(torch.stack([x for x, _ in images]))
    return float((logits.argmax(1) == torch.tensor([label for _, label in images])).float().mean())


def test_eval_of_floats_integers_and_plans(capsys, weights, pictures, quantized, tmp_path):
    model = network(checkpoint=weights)
    q = mk.load_quantized(model, quantized)
    mk.compile(q, torch.zeros(1, 3, 64, 64)).save(tmp_path / "q.plan")
    with torch.inference_mode():
        exact = _expected(model, pictures)
    for file, kind, top1 in (
        (weights, "float", exact),
        (quantized, "quantized", _expected(q, pictures)),
        (tmp_path / "q.plan", "plan", None),
    ):
        document = _json(capsys, "eval", file, "--data", pictures)
        assert (document["kind"], document["images"], document["size"]) == (kind, 6, 64)
        assert document["top1"] == pytest.approx(_expected(q, pictures) if top1 is None else top1)
        assert document["top5"] == 1.0
    assert _json(capsys, "eval", quantized, "--data", pictures, "--eager")["top1"] == pytest.approx(_expected(q, pictures))
    assert main(["eval", str(quantized), "--data", str(pictures), "--images", "3", "--batch-size", "2"]) == 0
    assert "on 3 images" in capsys.readouterr().out


def test_logits_that_are_no_numbers_are_never_right(capsys, weights, pictures, monkeypatch):
    """Of a network whose activations overflow, say. A nan is the largest of its row."""
    broken = Network("float", lambda x: torch.full((len(x), 3), math.nan), 64, CLASSES, Normalization())
    monkeypatch.setattr("mvit_kernels.cli.eval.load_network", lambda args, compiled: broken)
    document = _json(capsys, "eval", weights, "--data", pictures)
    assert (document["top1"], document["top5"], document["images"]) == (0.0, 0.0, 6)


@pytest.mark.slow
def test_eval_of_what_no_kernel_runs(capsys, weights, pictures, tmp_path):
    argv = ["quantize", weights, "--calibration", pictures, "--images", 4, "--method", "fqvit", "--output", tmp_path / "q"]
    assert _json(capsys, *argv)["simulation_only"] > 0
    model = network(checkpoint=weights)
    for flags in ([], ["--eager"]):
        document = _json(capsys, "eval", tmp_path / "q", "--data", pictures, *flags)
        assert document["kind"] == "simulated"
        assert document["top1"] == pytest.approx(_expected(mk.load_quantized(model, tmp_path / "q"), pictures))
    assert "can only be simulated" in _complaint(capsys, "export", tmp_path / "q", "--output", tmp_path / "q.onnx")


@pytest.mark.slow
def test_eval_goes_on_where_it_was(capsys, weights, pictures, tmp_path):
    argv = ["eval", weights, "--data", pictures, "--state", tmp_path / "state.json"]
    whole = _json(capsys, *argv)
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["counts"][2] == 6
    (tmp_path / "state.json").write_text(json.dumps(state | {"counts": [2, 4, 4]}))
    assert _json(capsys, *argv)["images"] == 6
    assert whole["images"] == 6
    assert "that of another" in _complaint(capsys, *argv, "--size", 96)
    (tmp_path / "state.json").write_text(json.dumps(state | {"counts": [5, 4, 4]}))
    assert "got something else" in _complaint(capsys, *argv)
    (tmp_path / "state.json").write_text("[]")
    assert "got something else" in _complaint(capsys, *argv)


@pytest.mark.slow
def test_eval_by_two_processes(capsys, quantized, pictures):
    alone = _json(capsys, "eval", quantized, "--data", pictures)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mvit_kernels", "eval"]
    run = subprocess.run([*command, str(quantized), "--data", str(pictures), "--json"], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    both = json.loads(run.stdout)
    assert both["processes"] == 2
    assert {key: both[key] for key in ("top1", "top5", "images")} == {key: alone[key] for key in ("top1", "top5", "images")}


def test_eval_refuses(capsys, weights, quantized, pictures, tmp_path):
    assert "expected one of" in _complaint(capsys, "eval", "--data", pictures)
    assert "no such file" in _complaint(capsys, "eval", tmp_path / "no", "--data", pictures)
    (tmp_path / "text").write_text("a text, and no weights")
    for argv, name in (
        (["eval", tmp_path / "text", "--data", pictures], "FILE"),
        (["quantize", tmp_path / "text", "--calibration", "standin", "--output", tmp_path / "q"], "CHECKPOINT"),
    ):
        assert f"{name}: expected weights in a safetensors or a torch file, got" in _complaint(capsys, *argv)
    assert "expected weights in floats" in _complaint(capsys, "run", "picture", "--checkpoint", quantized)
    odd = tmp_path / "odd"
    for name in ("n01", "n09"):
        (odd / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(odd / name / "a.png")
    assert "got 'n09', which is none of its 3" in _complaint(capsys, "eval", quantized, "--data", odd)
    flat = tmp_path / "flat"
    flat.mkdir()
    _flat(pictures, flat, lambda folder, names: (folder / "val.txt").write_text("".join(f"{name} 2\n" for name, _ in names)))
    assert _json(capsys, "eval", quantized, "--data", flat)["images"] == 6  # numbers are numbers of the network's classes
    unnamed = tmp_path / "unnamed.safetensors"
    save_weights(unnamed, mk.create_model(MODEL, num_classes=4).state_dict(), {"model": MODEL, "num_classes": "4", "size": "64"})
    assert "as no file says which of them these are, got 3" in _complaint(
        capsys, "eval", unnamed, "--num-classes", 4, "--data", pictures, "--eager"
    )
    mk.save_quantized(mk.load_quantized(network(), quantized), tmp_path / "bare")
    assert "which names its model" in _complaint(capsys, "eval", tmp_path / "bare", "--data", pictures)
