"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import csv
import errno
import json
import resource
import subprocess
import sys
from dataclasses import MISSING, fields

import numpy as np
import pytest
import torch
from PIL import Image

import mvit_kernels as mk
from mvit_kernels import checkpoints
from mvit_kernels.cli import SUBCOMMANDS, bench, demo, main
from mvit_kernels.cli.compare import VARIANTS, Variant, compare
from mvit_kernels.cli.network import load_classifier
from mvit_kernels.cli.timing import Timing, interleaved
from mvit_kernels.data import evaluation_view, read_image
from mvit_kernels.files import replace_file, write_text
from mvit_kernels.models import IMAGENET, Normalization, published_normalization
from mvit_kernels.training import TrainConfig
from mvit_kernels.training.state import save_weights

MODEL = "mobilevitv2_050"
CLASSES = ("cat", "[bold]dog[/bold]", "flower")


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photograph(tmp_path):
    """The same picture as PNG and JPEG."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    paths = [tmp_path / "picture.png", tmp_path / "picture.jpg"]
    for path in paths:
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    weights = mk.create_model(MODEL, num_classes=len(CLASSES)).state_dict()
    save_weights(path, weights, {"model": MODEL, "class_names": json.dumps(CLASSES), "num_classes": "3", "size": "64"})
    return path


def _json(capsys, *argv):
    """The document of a call that succeeds; stdout holds nothing else."""
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _complaint(capsys, *argv):
    """The one line of a call that fails; stdout stays empty."""
    try:
        code = main([*map(str, argv)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("mvit-kernels")
    return err


# --- info ---


def test_info_says_what_is_usable(capsys):
    document = _json(capsys, "info")
    assert document["backends"] == {name: vars(backend) for name, backend in mk.backends().items()}
    assert document["conditions"]["threads"] == torch.get_num_threads()
    assert document["conditions"]["torch"] == torch.__version__
    assert document["conditions"]["command"] == "mvit-kernels info --json"
    assert document["models"] == mk.list_models()

    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for name, backend in mk.backends().items():
        assert name in text
        assert (backend.detail or backend.reason) in text


def test_info_without_native_kernels(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mvit_kernels._cpu", None)
    monkeypatch.delattr(mk, "_cpu", raising=False)
    monkeypatch.setattr(mk, "backends", lambda: {**mk.ops.backends(), "cpu": mk.BackendInfo(False, reason="it was not built")})
    assert _json(capsys, "info")["isas"] is None
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "it was not built" in text
    assert "install a C++20 compiler" in text


# --- normalization ---


def _said_of(tmp_path, name, metadata, **options):
    """What a checkpoint file of a model wants its images as."""
    path = tmp_path / "said.safetensors"
    save_weights(path, mk.create_model(name, num_classes=3, **options).state_dict(), metadata)
    return load_classifier(name, path, 3).normalization


def test_images_are_normalized_as_a_checkpoint_wants_them(tmp_path):
    assert published_normalization("mobilevit_s") == published_normalization("mobilevitv2") == Normalization()
    for name in ("efficientformer_l1", "efficientformerv2_s0", "mobile_former_26m"):
        assert published_normalization(name) == IMAGENET == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    about = {"model": "mobile_former_26m"}
    assert _said_of(tmp_path, "mobile_former_26m", {}) == IMAGENET
    assert _said_of(tmp_path, "mobile_former_26m", about | {"trained_on": "a machine"}) == Normalization()  # as `train` gives them
    assert _said_of(tmp_path, "mobile_former_26m", about | {"mean": "[0, 0.5, 1]"}) == ((0, 0.5, 1), IMAGENET.std)
    assert _said_of(tmp_path, MODEL, {"std": "[1, 2, 4]"}) == ((0, 0, 0), (1, 2, 4))
    for bad, expected in (
        ({"mean": "no"}, "mean: expected a JSON list of numbers"),
        ({"std": "[1, 0, 1]"}, "std: expected 3 finite numbers"),
    ):
        with pytest.raises(ValueError, match=expected):
            _said_of(tmp_path, MODEL, bad)


def test_normalization_is_that_of_timm():
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for channel, (mean, std) in enumerate(zip(*IMAGENET, strict=True)):
        assert torch.equal(IMAGENET(x)[:, channel], (x[:, channel] - torch.tensor(mean)) / torch.tensor(std))
    assert torch.equal(Normalization()(x[0]), x[0])


def test_run_normalizes(capsys, photograph, checkpoint):
    document = _json(capsys, "run", photograph[0], "--checkpoint", checkpoint, "--topk", 3, "--mean", 0.5, 0.25, 0.5, "--std", 0.5, 1, 2)
    assert (document["mean"], document["std"]) == ([0.5, 0.25, 0.5], [0.5, 1, 2])
    model = mk.create_model(MODEL, num_classes=3, checkpoint=checkpoint).eval()
    view = Normalization((0.5, 0.25, 0.5), (0.5, 1, 2))(evaluation_view(read_image(photograph[0]), 64))
    with torch.inference_mode():
        expected = model(view[None])[0].softmax(0)
    found = torch.tensor([each["probability"] for each in document["images"][0]["predictions"]])
    torch.testing.assert_close(found, expected.sort(descending=True).values)
    for flags, message in (
        (("--std", 1, 0, 1), "--std: expected finite numbers, each more than 0, got 1.0, 0.0, 1.0"),
        (("--mean", "nan", 0, 0), "--mean: expected finite numbers, got nan"),
        (("--mean", 0.5), "--mean"),
    ):
        assert message in _complaint(capsys, "run", photograph[0], "--checkpoint", checkpoint, *flags)


# --- run ---


def test_run_predicts_what_the_model_does(capsys, photograph, checkpoint):
    document = _json(capsys, "run", *photograph, "--checkpoint", checkpoint, "--topk", 2)
    assert (document["model"], document["size"], document["trained"]) == (MODEL, 64, True)
    model = mk.create_model(MODEL, num_classes=3, checkpoint=checkpoint).eval()
    for path, image in zip(photograph, document["images"], strict=True):
        with torch.inference_mode():
            expected = model(evaluation_view(read_image(path), 64)[None])[0].softmax(0)
        assert image["path"] == str(path)
        classes = [prediction["class"] for prediction in image["predictions"]]
        assert classes == expected.topk(2).indices.tolist()
        assert [prediction["name"] for prediction in image["predictions"]] == [CLASSES[i] for i in classes]
        found = torch.tensor([prediction["probability"] for prediction in image["predictions"]])
        torch.testing.assert_close(found, expected[classes])


def test_run_prints_class_names_as_they_are(capsys, photograph, checkpoint):
    assert main(["run", str(photograph[0]), "--checkpoint", str(checkpoint), "--topk", "3"]) == 0
    out, err = capsys.readouterr()
    assert all(name in out for name in CLASSES)
    assert "WARNING" not in err


def test_run_without_a_checkpoint_warns(capsys, photograph):
    argv = ["run", str(photograph[0]), "--model", MODEL, "--size", "64", "--backend", "reference"]
    document = _json(capsys, *argv)
    assert document["trained"] is False
    assert len(document["images"][0]["predictions"]) == 5
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "UNTRAINED" in out
    assert "UNTRAINED" in err


def test_run_takes_a_shipped_checkpoint_by_its_name(capsys, photograph):
    document = _json(capsys, "run", photograph[0], "--checkpoint", "mobilevit_xxs")
    assert document["trained"] is True
    assert document["images"][0]["predictions"][0]["name"]


def test_run_complains(capsys, tmp_path, photograph, checkpoint):
    picture, text = photograph[0], tmp_path / "text.png"
    text.write_text("not an image")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:1000])
    nowhere = tmp_path / "nowhere"

    assert f"No such file or directory: {nowhere}" in _complaint(capsys, "run", picture, nowhere, "--model", MODEL)
    assert str(text) in _complaint(capsys, "run", picture, text, "--model", MODEL)
    assert "mobilevit_xxs" in _complaint(capsys, "run", picture, "--model", "mobilevit_xsx")
    assert "--model" in _complaint(capsys, "run", picture)
    assert "--topk: expected at most 3" in _complaint(capsys, "run", picture, "--checkpoint", checkpoint, "--topk", 4)
    assert "--topk: expected a positive" in _complaint(capsys, "run", picture, "--checkpoint", checkpoint, "--topk", 0)
    assert "'gpu'" in _complaint(capsys, "run", picture, "--checkpoint", checkpoint, "--backend", "gpu")
    assert f"--checkpoint: expected weights, got {str(damaged)!r}" in _complaint(capsys, "run", picture, "--checkpoint", damaged)
    for flags in ([], ["--model", MODEL]):
        complaint = _complaint(capsys, "run", picture, "--checkpoint", text, *flags)
        assert f"--checkpoint: expected weights in a safetensors or a torch file, got {str(text)!r}, which is neither" in complaint
    assert f"shipped mobilevit_xxs, mobilevitv2_050: {nowhere}" in _complaint(capsys, "run", picture, "--checkpoint", nowhere)
    assert "1000" in _complaint(capsys, "run", picture, "--checkpoint", checkpoint, "--num-classes", 1000)
    assert "does not fit" in _complaint(capsys, "run", picture, "--checkpoint", checkpoint, "--model", "mobilevitv2_100")


def test_run_takes_an_image_twice(capsys, photograph, checkpoint):
    picture = photograph[0]
    (image,) = _json(capsys, "run", picture, "--checkpoint", checkpoint)["images"]
    assert len(image["predictions"]) == 3  # as `mvit-kernels train` recommends to call it
    images = _json(capsys, "run", picture, picture, "--checkpoint", checkpoint, "--topk", 1)["images"]
    assert [image["path"] for image in images] == [str(picture)] * 2


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"class_names": '["cat", "dog"]'}, "class_names: expected 3 in the metadata, one a class, got 2"),
        ({"class_names": "[1, 2, 3]"}, "class_names: expected a JSON list of strings"),
        ({"class_names": "cat, dog"}, "class_names: expected a JSON list of strings"),
        ({"options": "[1]"}, "options: expected a JSON object in the metadata"),
        ({"options": '{"foo": 1}'}, "options: create_model: mobilevitv2_050 has no option foo"),
        ({"size": "large"}, "size: expected a positive integer in the metadata, got 'large'"),
        ({"size": "0"}, "size: expected a positive integer in the metadata, got '0'"),
    ],
)
def test_run_checks_what_a_checkpoint_says(capsys, photograph, checkpoint, metadata, message):
    save_weights(checkpoint, mk.create_model(MODEL, num_classes=3).state_dict(), {"model": MODEL, **metadata})
    assert f"{checkpoint}: {message}" in _complaint(capsys, "run", photograph[0], "--checkpoint", checkpoint, "--num-classes", 3)


def test_run_asks_for_the_model_of_a_file_that_names_none(capsys, photograph, checkpoint):
    save_weights(checkpoint, mk.create_model(MODEL, num_classes=3).state_dict(), {"model": "no known variant"})
    assert "no checkpoint that names its model" in _complaint(capsys, "run", photograph[0], "--checkpoint", checkpoint)


def test_run_tells_the_kind_of_a_checkpoint_by_its_content(capsys, tmp_path, photograph, checkpoint):
    renamed, torch_file = tmp_path / "renamed.pt", tmp_path / "torch.safetensors"
    renamed.write_bytes(checkpoint.read_bytes())
    torch.save(mk.create_model(MODEL, num_classes=3).state_dict(), torch_file)
    (image,) = _json(capsys, "run", photograph[0], "--checkpoint", renamed, "--topk", 1)["images"]
    assert image["predictions"][0]["name"] in CLASSES
    argv = ["--checkpoint", torch_file, "--model", MODEL, "--num-classes", 3, "--topk", 1]
    (image,) = _json(capsys, "run", photograph[0], *argv)["images"]
    assert image["predictions"][0]["name"] is None


# --- bench and its timing ---


def test_interleaved_takes_turns():
    calls = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4, warmup=1, calls=2)
    rounds = ["".join(calls[i : i + 6]) for i in range(0, len(calls), 6)]
    assert rounds == ["ccaabb", "aabbcc", "bbccaa", "ccaabb", "aabbcc"]
    assert {name: len(time.samples) for name, time in times.items()} == {"a": 4, "b": 4, "c": 4}


def test_calls_that_settle_do_not_count():
    made = []
    times = interleaved({"a": lambda: made.append("a")}, rounds=2, warmup=1, calls=3, settle=2)
    assert len(made) == 3 * (2 + 3)
    assert len(times["a"].samples) == 2


def test_timing_statistics():
    assert (Timing((3.0, 1.0, 2.0, 10.0)).minimum, Timing((3.0, 1.0, 2.0, 10.0)).median) == (1.0, 2.5)
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).spread == 2.0
    assert Timing((1.0,)).spread == 0.0


def test_compare_sees_a_difference():
    """A variant that computes something else is told from one that doesn't, over all inputs."""
    model = mk.create_model(MODEL, num_classes=4).eval()
    variants = (VARIANTS[0], Variant("off by 0.5", lambda network, _: lambda x: network(x) + 0.5 * (x.mean() > 0)))
    exact, off = compare(model, [torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)], variants, rounds=1, warmup=0)
    assert exact["max_difference"] == 0
    assert off["max_difference"] == pytest.approx(0.5)
    assert exact["speedup"] == 1
    assert off["speedup"] == pytest.approx(exact["median_ms"] / off["median_ms"])


def test_compare_refuses_values_that_are_not_finite():
    """Also in an input after the first."""
    model = mk.create_model(MODEL, num_classes=4).eval()
    variants = (VARIANTS[0], Variant("broken", lambda network, _: lambda x: network(x) + (torch.nan if x.mean() > 0 else 0)))
    with pytest.raises(ValueError, match="xxs: expected finite logits in both, got others in broken"):
        compare(model, [torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)], variants, rounds=1, warmup=0, label="xxs")


@pytest.mark.slow
def test_bench_writes_results(capsys, tmp_path):
    argv = ["bench", "--model", MODEL, "--img-size", 64, "--batch-size", 2, "--num-warm-iter", 0]
    argv += ["--num-bench-iter", 1, "--threads", 1]
    results = tmp_path / "results.json"
    document = _json(capsys, *argv, "--channels-last", "--results-file", results)
    assert json.loads(results.read_text()) == document
    assert document["conditions"]["threads"] == 1
    variants = ["PyTorch channels_last", "swapped channels_last", "compiled", "compiled, int8"]
    assert [(row["model"], row["variant"]) for row in document["results"]] == [(MODEL, variant) for variant in variants]
    for row in document["results"]:
        assert 0 < row["min_ms"] <= row["median_ms"]
        assert row["max_difference"] <= (0.5 if "int8" in row["variant"] else 1e-5) * row["logit_range"]
        assert row["infer_samples_per_sec"] == pytest.approx(2000 / row["median_ms"])

    results = tmp_path / "results.csv"
    assert main([*map(str, argv), "--precision", "bfloat16", "--results-file", str(results)]) == 0
    with results.open() as file:
        rows = list(csv.DictReader(file))
    variants = ["PyTorch eager", "swapped", "compiled", "compiled, int8"]
    assert [row["variant"] for row in rows] == variants
    assert all(row["precision"] == "bfloat16" and row["torch"] == torch.__version__ for row in rows)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "results.csv", tmp_path / "results.json"]
    assert "PyTorch eager" in capsys.readouterr().out


@pytest.fixture
def bench_without_compiling(monkeypatch):
    variants = [variant for variant in VARIANTS if variant.channels_last is not None]
    monkeypatch.setattr("mvit_kernels.cli.compare.VARIANTS", variants)


def test_bench_takes_a_model_twice(capsys, bench_without_compiling):
    argv = ["--img-size", 32, "--num-warm-iter", 0, "--num-bench-iter", 1, "--channels-last"]
    document = _json(capsys, "bench", "--model", f"{MODEL},{MODEL}", *argv)
    assert len(document["results"]) == 4


def test_bench_takes_images_of_the_size_of_a_model(capsys, bench_without_compiling):
    argv = ["bench", "--model", f"{MODEL},efficientformer_l1", "--num-warm-iter", "0", "--num-bench-iter", "1"]
    document = _json(capsys, *argv)
    sizes = [(MODEL, 256)] * 2 + [("efficientformer_l1", 224)] * 2
    assert [(row["model"], row["infer_img_size"]) for row in document["results"]] == sizes
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert f"{MODEL}, 256" in text
    assert "efficientformer_l1, 224" in text


def test_bench_fails_before_the_first_model_is_timed(capsys, monkeypatch):
    monkeypatch.setattr("mvit_kernels.cli.compare.compare", None)
    complaint = _complaint(capsys, "bench", "--model", f"{MODEL},efficientformer_l1", "--img-size", 64)
    assert "expected images (B, 3, H, W) with H and W from 193 to 224" in complaint


def test_bench_compiles_as_many_models_of_a_class_as_there_are():
    """torch.compile runs those eagerly that come after `recompile_limit` others."""
    models, x = [torch.nn.Sequential(torch.nn.Conv2d(3, 1 + count, 1)) for count in range(3)], torch.rand(1, 3, 8, 8)
    made = []

    @torch._dynamo.register_backend(name="counting")
    def backend(graph, _):
        made.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(recompile_limit=2), torch.inference_mode():
        for model in models:
            bench._variants(False, "counting")[-1].build(model, [x])(x)
    assert len(made) == 3


def test_bench_complains(capsys, tmp_path):
    assert "mobilevitv2_050" in _complaint(capsys, "bench", "--model", "mobilevit_xxs,mobilevitv2_05")
    assert "--batch-size" in _complaint(capsys, "bench", "--model", MODEL, "--batch-size", "many")
    assert "--precision" in _complaint(capsys, "bench", "--model", MODEL, "--precision", "int3")
    assert "--torchcompile" in _complaint(capsys, "bench", "--model", MODEL, "--torchcompile", "nonsense")
    for path in (tmp_path / "results.txt", tmp_path / "nowhere" / "results.csv"):
        assert str(path) in _complaint(capsys, "bench", "--model", MODEL, "--results-file", path)
    assert "can't allocate memory" in _complaint(capsys, "bench", "--model", MODEL, "--img-size", 10**7)


# --- train ---


def test_train_has_a_flag_for_every_field(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')} " in text
        if field.default not in (MISSING, None) and not isinstance(field.default, bool):
            assert f"(default: {field.default})" in text


def test_train_then_run(capsys, tmp_path, photograph):
    argv = ["--samples", 8, "--heldout-samples", 4, "--size", 96, "--batch-size", 4, "--steps", 2]
    document = _json(capsys, "train", "--model", MODEL, "--output", tmp_path / "run", *argv)
    assert document["weights"] == str(tmp_path / "run" / "model.safetensors")
    assert (document["steps"], document["heldout_samples"]) == (2, 4)
    (image,) = _json(capsys, "run", photograph[0], "--checkpoint", document["weights"], "--topk", 1)["images"]
    assert "left" in image["predictions"][0]["name"] or "right" in image["predictions"][0]["name"]


def test_train_complains(capsys, tmp_path):
    output = tmp_path / "run"
    assert "--output" in _complaint(capsys, "train", "--model", MODEL)
    assert "lr" in _complaint(capsys, "train", "--model", MODEL, "--output", output, "--lr", -1)
    assert str(tmp_path) in _complaint(capsys, "train", "--model", MODEL, "--output", output, "--data", tmp_path / "nowhere")
    argv = ["--size", 32, "--batch-size", 1]
    assert "--batch-size: expected at least 2" in _complaint(capsys, "train", "--model", MODEL, "--output", output, *argv)
    for options, message in (
        ('{"foo": 1}', "TrainConfig: options: create_model: mobilevitv2_050 has no option foo; its options are width, "),
        ('{"num_classes": 3}', "TrainConfig: options: "),
        ('{"width": -1}', "MobileViTv2Config: expected width > 0"),
        ("[1]", "TrainConfig: options: expected a JSON object"),
    ):
        flags = ["--output", output, "--options", options, "--samples", 64, "--heldout-samples", 2]
        assert message in _complaint(capsys, "train", "--model", MODEL, *flags)
    assert not output.exists()


def test_train_names_a_broken_picture(capsys, tmp_path, photograph):
    """Also where a worker of the DataLoader finds it."""
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "picture.png").write_bytes(photograph[0].read_bytes())
    broken = tmp_path / "train" / "a" / "picture.png"
    broken.write_text("not an image")
    argv = ["--data", tmp_path, "--size", 64, "--batch-size", 2, "--workers", 1]
    code = main([*map(str, ["train", "--model", MODEL, "--output", tmp_path / "run", *argv])])
    last = capsys.readouterr().err.splitlines()[-1]  # after the progress bar
    assert code == 2
    assert last.startswith("mvit-kernels train: read_image: ")
    assert str(broken) in last


# --- demo ---


@pytest.mark.slow
def test_demo(capsys, monkeypatch, tmp_path):
    document = _json(capsys, "demo", "--images", 20, "--rounds", 1, "--out", tmp_path)
    assert json.loads((tmp_path / "demo.json").read_text()) == document
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    assert [each["model"] for each in document["standin"]] == list(checkpoints.SHIPPED)
    for each in document["standin"]:
        assert each["images"] == 20
        assert each["accuracy_pytorch"] > 0.5
        assert each["agreement"] == 1
        assert each["accuracy_swapped"] == each["accuracy_pytorch"]
        assert each["accuracy_int8"] >= each["accuracy_pytorch"] - 0.1
    for row in document["table"]:
        assert row["trained"] == (row["model"] in checkpoints.SHIPPED)
        assert "int8" in row["variant"] or row["max_difference"] <= 1e-5 * row["logit_range"]
    variants = [variant.name for variant in VARIANTS]
    assert [row["variant"] for row in document["table"]] == (len(checkpoints.SHIPPED) + len(demo.FULL_SIZE)) * variants


def test_demo_says_which_packages_it_lacks(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "sklearn and matplotlib: in a clone, pip install '.[demo]'" in _complaint(capsys, "demo", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_demo_looks_at_its_folder_first(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("mvit_kernels.cli.demo.load_classifier", lambda *_: pytest.fail("worked before it looked"))
    (tmp_path / "out").touch()
    assert str(tmp_path / "out") in _complaint(capsys, "demo", "--out", tmp_path / "out")


# --- files ---


def test_errors_of_writing_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "nowhere" / "a.txt", "a")
    assert caught.value.filename == str(tmp_path / "nowhere" / "a.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path / "folder", "a")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "folder"), None)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_full_disk_is_an_os_error(tmp_path):
    """Of Python's writing and of torch's, which raises a RuntimeError; a limit on the size of files stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError, match=str(tmp_path / "a.txt")) as caught:
            write_text(tmp_path / "a.txt", "a" * (1 << 17))
        assert caught.value.errno == errno.EFBIG
        with pytest.raises(OSError, match=f"{tmp_path / 'a.pt'} could not be written"):
            replace_file(tmp_path / "a.pt", lambda draft: torch.save(torch.zeros(1 << 17), draft))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


# --- the program ---


def test_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in SUBCOMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"mvit-kernels {mk.__version__}\n"


def test_unknown_subcommands_and_flags(capsys):
    assert "required" in _complaint(capsys)
    assert "'fly'" in _complaint(capsys, "fly")
    assert "--fast" in _complaint(capsys, "info", "--fast")


def test_module_and_exit_codes(tmp_path):
    def call(*argv):
        return subprocess.run([sys.executable, "-m", "mvit_kernels", *argv], capture_output=True, text=True, timeout=120, check=False)

    good = call("info", "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["conditions"]["mvit_kernels"] == mk.__version__
    bad = call("run", str(tmp_path / "nowhere.png"), "--model", MODEL)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.splitlines() == [f"mvit-kernels run: No such file or directory: {tmp_path / 'nowhere.png'}"]


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "mvit_kernels", "info", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
