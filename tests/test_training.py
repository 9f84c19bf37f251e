"""Training: reproducible, resumable, the same in several processes and with our kernels; the shipped checkpoints."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

import mvit_kernels.training.loop as loop
from mvit_kernels.checkpoints import SHIPPED
from mvit_kernels.checkpoints import path as checkpoint_path
from mvit_kernels.cli.network import load_classifier
from mvit_kernels.data import StandInTask
from mvit_kernels.files import locked, replace_file
from mvit_kernels.models import create_model, save_checkpoint
from mvit_kernels.training import Diverged, TrainConfig, evaluate, train
from mvit_kernels.training.config import command_line
from mvit_kernels.training.state import read_metadata, save_weights


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        "mobilevitv2_050",
        tmp_path / "run",
        samples=16,
        heldout_samples=4,
        size=64,
        batch_size=4,
        epochs=2,
        warmup=2,
        save_every=3,
    )


def _history(output):
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def losses_by_heart(tmp_path_factory):
    """A function that gives the losses of twenty steps on eight images over and over; the same run is made once."""

    @functools.cache
    def losses(model, **change):
        folder = tmp_path_factory.mktemp("run")
        options = {"samples": 8, "heldout_samples": 4, "size": 64, "batch_size": 8, "steps": 20, "warmup": 2, "label_smoothing": 0.0}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "LOG_EVERY", 1)
            train(TrainConfig(model, folder, **options, **change))
        return [entry["loss"] for entry in _history(folder)]

    return losses


@pytest.mark.parametrize("model", ["mobilevitv2_050", "mobilevit_xxs"])
def test_loss_falls(losses_by_heart, model):
    """A network that learns knows eight images by heart."""
    assert losses_by_heart(model)[-1] < 0.6 * math.log(40)


@pytest.mark.parametrize(
    ("model", "change", "tolerance", "every"),
    [
        ("mobilevitv2_050", {"amp": "bf16"}, 0.05, 10),
        ("mobilevit_xxs", {"accelerate": True}, 0.005, 1),
        pytest.param("mobilevit_xxs", {"amp": "bf16"}, 0.05, 10, marks=pytest.mark.slow),
        pytest.param("mobilevitv2_050", {"accelerate": True}, 0.005, 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_loss_curve_is_that_of_plain_training(losses_by_heart, model, change, tolerance, every):
    """On images learned by heart the loss falls far within twenty steps, and rounding has not yet led the runs apart."""
    plain, changed = losses_by_heart(model), losses_by_heart(model, **change)
    assert len(plain) == 20
    assert plain[-1] < 0.5 * plain[0]
    assert changed[every - 1 :: every] == pytest.approx(plain[every - 1 :: every], rel=tolerance)


def test_interrupted_run_resumes_to_the_same_weights(config, tmp_path, monkeypatch):
    whole = train(config)
    assert whole.steps == 8

    interrupted = replace(config, output=tmp_path / "interrupted")
    step = loop._train_step

    def power_cut(network, optimizer, images, labels, number, *rest):
        if number == 5:
            raise KeyboardInterrupt
        return step(network, optimizer, images, labels, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_step", power_cut)
        with pytest.raises(KeyboardInterrupt):
            train(interrupted)
    assert torch.load(interrupted.output / "state.pt", weights_only=True)["step"] == 3
    resumed = train(replace(interrupted, resume=interrupted.output / "state.pt"))

    states = [torch.load(run.output / "state.pt", weights_only=True) for run in (config, interrupted)]
    for part in ("model", "model_ema"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name
    assert whole.top1 == resumed.top1
    assert _history(config.output)[-1] == _history(interrupted.output)[-1]
    weights = load_file(whole.weights), load_file(resumed.weights)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_damaged_history_does_not_keep_a_run_from_going_on(config):
    """Blocks that were never written are zeros after a power cut."""
    train(config)
    history = config.output / "history.jsonl"
    whole = history.read_bytes()
    for damage in (bytes(50) + b"\n", b"{}\n", b"null\n", b"\xff\n", b'{"step": "a"}\n', b'{"st'):
        history.write_bytes(whole + damage)
        assert train(replace(config, resume=config.output / "state.pt")).steps == 8
        assert history.read_bytes() == whole


def test_resuming_another_run_is_refused(config, tmp_path):
    train(replace(config, steps=3))
    state = config.output / "state.pt"
    with pytest.raises(ValueError, match=r"resume: .* got steps 3 -> 4, lr 0.001 -> 0.002"):
        train(replace(config, steps=4, lr=2e-3, resume=state))
    other = torch.load(state, weights_only=True)
    other["identity"] |= {"processes": 2, "momentum": 0.9}
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt', got processes 2 -> 1, momentum 0.9 -> None$"):
        train(replace(config, steps=3, resume=tmp_path / "other.pt"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        train(replace(config, resume=tmp_path / "nowhere.pt"))


def test_file_that_is_no_state_is_refused(config, tmp_path):
    train(replace(config, steps=3))
    state = config.output / "state.pt"
    content = torch.load(state, weights_only=True)
    files = {name: tmp_path / f"{name}.pt" for name in ("text", "empty", "cut", "foreign", "no_seconds", "listed")}
    files["text"].write_text("not a state")
    files["empty"].touch()
    files["cut"].write_bytes(state.read_bytes()[:5000])
    torch.save({"weights": torch.zeros(1)}, files["foreign"])
    torch.save({name: value for name, value in content.items() if name != "seconds"}, files["no_seconds"])
    torch.save(content | {"identity": ["steps"]}, files["listed"])
    for file in files.values():
        with pytest.raises(ValueError, match=rf"^train: resume: expected a state\.pt written by training, got '{file}'$"):
            train(replace(config, steps=3, resume=file))


def test_earlier_run_is_not_overwritten(config):
    train(replace(config, steps=3))
    before = {file: file.read_bytes() for file in config.output.iterdir()}
    with pytest.raises(ValueError, match=r"output: .* holds a run: pass resume"):
        train(replace(config, steps=3))
    assert {file: file.read_bytes() for file in config.output.iterdir()} == before


def test_run_that_is_resumed_into_the_output_of_another_is_refused(config, tmp_path):
    other = replace(config, output=tmp_path / "other", steps=3, seed=1)
    train(replace(config, steps=3))
    train(other)
    before = {file: file.read_bytes() for file in other.output.iterdir()}
    with pytest.raises(ValueError, match=r"output: .*other' holds a run: pass resume"):
        train(replace(config, steps=3, output=other.output, resume=config.output / "state.pt"))
    assert {file: file.read_bytes() for file in other.output.iterdir()} == before
    (other.output / "state.pt").unlink()  # it is larger than the weights, which are still somebody's work
    with pytest.raises(ValueError, match=r"output: .*other' holds a run"):
        train(other)
    moved = train(replace(config, steps=3, output=tmp_path / "moved", resume=config.output / "state.pt"))
    assert moved.weights.is_file()


def test_run_on_other_images_is_not_resumed(config, pictures):
    """As many classes, but one more image: other epochs, in another order."""
    config = replace(config, data=str(pictures), steps=1)
    train(config)
    Image.new("RGB", (9, 9)).save(pictures / "train" / "cat" / "more.png")
    with pytest.raises(ValueError, match=r"resume: .* got images 8 -> 9$"):
        train(replace(config, resume=config.output / "state.pt"))


def test_two_runs_in_one_folder_are_refused(config):
    with locked("first", config.output), pytest.raises(ValueError, match="train: output: expected one that no other run is filling"):
        train(config)
    assert not (config.output / "history.jsonl").exists()


def test_locks_end_with_their_run_though_its_workers_live_on(config):
    """As those of a run that was killed or interrupted do, for a while."""
    with locked("first", config.output):
        batches = iter(DataLoader(StandInTask("train", 4, 64), num_workers=1))
        next(batches)
    with locked("second", config.output):
        assert next(batches)


def test_states_that_a_killed_run_left_half_written_are_removed(config):
    config.output.mkdir()
    (config.output / ".state.0123abcd.pt").write_bytes(b"half")
    (config.output / ".state.mine.pt").write_bytes(b"mine")
    train(replace(config, steps=1))
    assert {file.name for file in config.output.glob(".state*")} == {".state.mine.pt"}


def test_run_that_diverges_ends_and_keeps_the_state_of_before(config, monkeypatch):
    monkeypatch.setattr(loop, "_learning_rate", lambda step, total, config: 1e-3 if step < 4 else 1e30)
    with pytest.raises(Diverged, match=r"^train: lr: expected .* stay finite, got 0.001, .* after step 6 \(finite up to step 3\)$"):
        train(config)
    state = torch.load(config.output / "state.pt", weights_only=True)
    assert state["step"] == 3
    assert all(value.isfinite().all() for part in ("model", "model_ema") for value in state[part].values())
    monkeypatch.undo()
    assert train(replace(config, resume=config.output / "state.pt")).steps == 8


def test_warmup_longer_than_the_run_is_told(config, capsys):
    train(replace(config, steps=3, warmup=3))
    assert "warmup" not in capsys.readouterr().err
    train(replace(config, steps=3, warmup=4, output=config.output / "more"))
    assert "train: the learning rate never reaches 0.001: warmup takes 4 steps of 3\n" in capsys.readouterr().err


def test_run_starts_from_a_checkpoint_and_resumes_without_it(config, tmp_path):
    first = train(replace(config, steps=2))
    second = replace(config, output=tmp_path / "second", checkpoint=first.weights, steps=1, lr=1e-9, size=96)
    train(second)
    states = [torch.load(run.output / "state.pt", weights_only=True) for run in (config, second)]
    for name, parameter in create_model(config.model, num_classes=40).named_parameters():
        start, end = states[0]["model_ema"][name], states[1]["model"][name]
        assert torch.allclose(end, start, rtol=1e-3, atol=1e-6)
        assert parameter.ndim < 2 or not torch.allclose(end, parameter, rtol=1e-3, atol=1e-6)
    first.weights.unlink()
    assert train(replace(second, resume=second.output / "state.pt")).steps == 1


def test_two_stages_are_recorded_as_the_shipped_ones_are(config, tmp_path):
    first = replace(config, steps=2)
    second = replace(config, steps=3, checkpoint=train(first).weights, output=tmp_path / "second")
    result = train(second)
    resumed = train(replace(second, checkpoint=None, resume=second.output / "state.pt"))
    metadata = read_metadata(resumed.weights)
    assert metadata["command"] == f"{command_line(first)} && {command_line(second)}"
    assert (result.steps, metadata["steps"]) == (3, "5")
    assert int(metadata["seconds"]) >= int(read_metadata(config.output / "model.safetensors")["seconds"])
    assert re.fullmatch(rf"1 x .+, 1 threads; torch {re.escape(torch.__version__)}", metadata["trained_on"])
    for name in SHIPPED:
        assert read_metadata(checkpoint_path(name)).keys() == metadata.keys()
    torch.save(load_file(result.weights), tmp_path / "weights.pt")
    assert read_metadata(tmp_path / "weights.pt") == {}


def test_metadata_of_others_count_no_steps(config, tmp_path):
    weights = load_file(train(replace(config, steps=1)).weights)
    save_weights(tmp_path / "other.safetensors", weights, {"format": "pt", "steps": "many", "seconds": "1.5"})
    tuned = train(replace(config, steps=2, output=tmp_path / "tuned", checkpoint=tmp_path / "other.safetensors"))
    assert read_metadata(tuned.weights)["steps"] == "2"


def test_folders_whose_names_are_no_text(config, tmp_path, pictures):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    pictures.rename(folder)
    weights = train(replace(config, data=str(folder), steps=1)).weights
    assert "caf\\udce9" in read_metadata(weights)["command"]


def test_fine_tuning_on_other_classes_keeps_all_but_the_classifier(config, tmp_path, pictures, capsys):
    first = train(replace(config, steps=1)).weights
    tuned = replace(config, data=str(pictures), checkpoint=first, output=tmp_path / "tuned", steps=1, lr=1e-9)
    weights, start = load_file(train(tuned).weights), load_file(first)
    assert f"the classifier is fresh: {first} has none for these 2 classes" in capsys.readouterr().err
    assert weights["head.fc.weight"].shape[0] == 2
    for name, value in start.items():
        if name.endswith("conv.weight"):
            assert torch.allclose(weights[name].float(), value.float(), rtol=1e-2, atol=1e-4), name
    del start["stages.0.0.conv1_1x1.conv.weight"]
    save_weights(tmp_path / "part.safetensors", start, {})
    with pytest.raises(ValueError, match=r"1 missing \(stages\.0\.0\.conv1_1x1\.conv\.weight\)"):
        train(replace(tuned, checkpoint=tmp_path / "part.safetensors", output=tmp_path / "part"))
    assert not (tmp_path / "part").exists()


def test_accuracy_is_that_of_the_file(config, monkeypatch):
    judged = {}

    def keep(model, *args, **kwargs):
        judged.update({name: value.clone() for name, value in model.state_dict().items()})
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr(loop, "evaluate", keep)
    weights = load_file(train(config).weights)
    assert all(torch.equal(value, weights[name].to(value.dtype)) for name, value in judged.items())


def test_result_holds_the_averaged_weights_in_fp16(config):
    result = train(config)
    average = torch.load(config.output / "state.pt", weights_only=True)["model_ema"]
    weights = load_file(result.weights)
    assert weights.keys() == average.keys() == create_model(config.model, num_classes=40).state_dict().keys()
    for name, value in weights.items():
        assert torch.equal(value, average[name].half() if average[name].is_floating_point() else average[name])
    metadata = read_metadata(result.weights)
    assert metadata["model"] == config.model
    assert json.loads(metadata["class_names"]) == list(StandInTask.class_names)
    assert float(metadata["top1"]) == pytest.approx(result.top1, abs=1e-4)
    model = create_model(config.model, num_classes=40, checkpoint=result.weights)
    assert evaluate(model, StandInTask("heldout", 4, 64)).samples == 4


def test_learning_rate_warms_up_and_falls(config):
    config = replace(config, lr=1.0, warmup=10)
    rates = [loop._learning_rate(step, 110, config) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[60] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 2)) / 2)


def test_average_follows_the_definition():
    weights = {"w": torch.tensor([1.0, 3.0]), "n": torch.tensor(7)}
    average = {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor(2)}
    loop._update_average(average, weights, 0.75)
    assert average["w"].tolist() == [0.25, 1.5]
    assert average["n"] == 7


def test_batches_cover_every_epoch_once_and_resume_anywhere(config):
    class Numbers(StandInTask):
        def __getitem__(self, index):
            return torch.tensor(float(index)), index

    dataset = Numbers("train", 26)

    def steps(rank, world, first, last):
        return [labels.tolist() for _, labels in loop._batches(dataset, config, rank, world, first, last)]

    whole = steps(0, 1, 0, 15)
    assert [len(batch) for batch in whole] == [4] * 15
    for epoch in (whole[:6], whole[6:12]):
        assert len({i for batch in epoch for i in batch}) == 24
    assert whole[:6] != whole[6:12]
    for first in (1, 6, 7, 14):
        assert steps(0, 1, first, 15) == whole[first:]
    halves = [steps(rank, 2, 0, 5) for rank in (0, 1)]
    assert not {i for batch in halves[0][:3] for i in batch} & {i for batch in halves[1][:3] for i in batch}
    double = [labels.tolist() for _, labels in loop._batches(dataset, replace(config, batch_size=8), 0, 1, 0, 5)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in double]


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes with four pictures in each split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(256, size=(70, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pictures" / split / name / f"{i}.png")
    return tmp_path / "pictures"


def test_trains_on_folders_with_workers(config, tmp_path, pictures):
    runs = [replace(config, data=str(pictures), size=64, output=tmp_path / str(workers), workers=workers) for workers in (0, 2)]
    alone, shared = (load_file(train(run).weights) for run in runs)
    assert alone["head.fc.weight"].shape[0] == 2
    assert all(torch.equal(value, shared[name]) for name, value in alone.items())


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        *((name, ("timm", "transformers", "ml-cvnets")) for name in ("mobilevit_xxs", "mobilevitv2_050")),
        *((name, (None,)) for name in ("efficientformer_l1", "efficientformerv2_s0", "mobile_former_26m")),
    ],
)
@pytest.mark.slow
def test_a_classifier_for_other_classes_starts_fresh(name, formats, tmp_path):
    """Of every family, in every format; any other weight that is missing is an error."""
    path, model, other = tmp_path / "three.pth", create_model(name, num_classes=3), create_model(name, num_classes=2)
    for format in formats:
        save_checkpoint(model, path, format)
        assert not loop._load_start(create_model(name, num_classes=3), path)
        assert loop._load_start(other, path)
        tensors = torch.load(path, weights_only=True)
        last = [key for key in tensors if key.endswith("weight") and tensors[key].shape[0] != 3][-1]
        torch.save({key: tensor for key, tensor in tensors.items() if key != last}, path)
        with pytest.raises(ValueError, match=rf"1 missing \({last.removeprefix('mobilevitv2.').removeprefix('mobilevit.')}\)"):
            loop._load_start(other, path)


TORCHRUN_WORKER = """
import math, os, pathlib, sys, torch
import mvit_kernels.training.loop as loop
from mvit_kernels.training import TrainConfig, train

torch.set_num_threads(1)
step, weights, gradients, judged = loop._train_step, {}, {}, loop.evaluate

def keep(network, *rest):
    result = step(network, *rest)
    for name, parameter in network.module.named_parameters():
        weights[name], gradients[name] = parameter.detach().clone(), parameter.grad.clone()
    return result

def judge(*args, **kwargs):
    assert os.environ["RANK"] == "0"
    return judged(*args, **kwargs)

loop._train_step, loop.evaluate = keep, judge
folder = pathlib.Path(sys.argv[1])
result = train(TrainConfig("mobilevitv2_050", folder / "run", samples=32, heldout_samples=4, size=64, batch_size=4, steps=3))
assert math.isnan(result.top1) == (os.environ["RANK"] != "0")
torch.save([weights, gradients], folder / f"rank{os.environ['RANK']}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path):
    """Each process sees its own images; averaged gradients keep their networks the same, bit for bit."""
    script = tmp_path / "worker.py"
    script.write_text(TORCHRUN_WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for ours, theirs in zip(first, second, strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert all(gradient.abs().max() > 0 for gradient in first[1].values())
    assert [entry["step"] for entry in _history(tmp_path / "run")] == [3]
    assert (tmp_path / "run" / "model.safetensors").is_file()
    state = tmp_path / "run" / "state.pt"
    alone = TrainConfig("mobilevitv2_050", tmp_path / "run", samples=32, size=64, batch_size=4, steps=3, resume=state)
    with pytest.raises(ValueError, match=r"got processes 2 -> 1$"):
        train(alone)


def test_evaluate_counts_right_answers_and_keeps_the_mode():
    class Oracle(nn.Module):
        """Knows the label from the mean of the image, which resizing keeps."""

        def forward(self, images):
            assert not self.training
            assert images.shape[1:] == (3, 8, 8)
            return -(images.mean((1, 2, 3))[:, None] * 10 - torch.arange(10)).abs()

    samples = [(torch.full((3, 8, 8), label / 10), label) for label in range(10)]
    wrong = [(image, 9 - label) for image, label in samples[:3]]
    model = Oracle().train()
    for downscale in (1, 2):
        assert evaluate(model, samples + wrong, batch_size=4, downscale=downscale) == (10 / 13, 13)
    assert model.training
    with pytest.raises(ValueError, match="downscale: expected at least 1, got 0"):
        evaluate(model, samples, downscale=0)


def test_logits_that_are_no_numbers_are_wrong():
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 3), math.nan)

    assert evaluate(Broken(), [(torch.zeros(3, 8, 8), 0)] * 3) == (0.0, 3)


def test_command_names_what_is_not_default(config):
    assert command_line(replace(config, batch_size=32, warmup=200, save_every=250, heldout_samples=2000, epochs=1)) == (
        f"mvit-kernels train --model mobilevitv2_050 --output {config.output} --samples 16 --size 64"
    )
    changed = command_line(TrainConfig("mobilevit_xxs", Path("run"), data="a b", amp="bf16", accelerate=True))
    assert changed == "mvit-kernels train --model mobilevit_xxs --output run --data 'a b' --amp bf16 --accelerate"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("samples", 0),
        ("batch_size", 0),
        ("steps", 0),
        ("lr", 0.0),
        ("lr", math.inf),
        ("weight_decay", math.inf),
        ("ema", 1.0),
        ("warmup", -1),
        ("seed", 2**32),
        ("amp", "fp8"),
        ("device", "tpu"),
        ("options", "width=2"),
        ("options", '{"features_only": true}'),
        ("options", '{"num_classes": 3}'),
    ],
)
def test_bad_configuration_is_refused(config, field, value):
    with pytest.raises(ValueError, match=f"TrainConfig: {field}: expected .*, got {re.escape(repr(value))}"):
        replace(config, **{field: value})


def test_bad_run_is_refused_before_anything_is_written(config, tmp_path):
    one = tmp_path / "one"
    for split in ("train", "val"):
        (one / split / "cat").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (9, 9)).save(one / split / "cat" / f"{i}.png")
    for change, message in (
        ({"data": str(tmp_path / "nowhere")}, "ImageFolder: path: expected a folder"),
        ({"batch_size": 17}, "train: batch_size: expected at most 16, got 17"),
        ({"model": "mobilevit_xxl"}, "create_model: .*; got 'mobilevit_xxl'"),
        ({"data": str(one)}, r"train: data: expected at least 2 classes to tell apart, got \['cat'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            train(replace(config, **change))
    assert not config.output.exists()


def test_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(file, fail)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(ValueError, match="values that fp16 holds, got others in w"):
        save_weights(file, {"w": torch.tensor([1e6])}, {})


def test_options_make_the_model(config):
    """A network of any size is trained, resumed and read back as what its options say; other images may take the place of the task's."""
    options = {"width": 0.1, "depth_ir": 0.5, "depth_vit": 0.25}
    images = (StandInTask("train", 16, 64, target="direction"), StandInTask("heldout", 4, 64, target="direction"))
    result = train(replace(config, model="mobilevitv2", options=json.dumps(options)), images)
    metadata = read_metadata(result.weights)
    assert json.loads(metadata["options"]) == options
    assert json.loads(metadata["class_names"]) == list(images[0].class_names)
    model = create_model("mobilevitv2", num_classes=4, checkpoint=result.weights, **options)
    assert len(model.stages[1]) == 1
    classifier = load_classifier(None, result.weights)
    assert classifier.model.config == model.config
    with pytest.raises(ValueError, match="got options"):
        train(replace(config, model="mobilevitv2", options='{"width": 0.2}', resume=config.output / "state.pt"), images)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_shipped_checkpoint_is_as_accurate_as_recorded(name):
    """On fewer images, within four standard deviations of a binomial draw; halving the resolution costs five points."""
    file = checkpoint_path(name)
    metadata = read_metadata(file)
    recorded, samples = float(metadata["top1"]), 80
    assert 0.85 <= recorded <= 0.97
    model = create_model(name, num_classes=int(metadata["num_classes"]), checkpoint=file)
    heldout = StandInTask("heldout", samples, int(metadata["size"]), int(metadata["seed"]))
    full, half = evaluate(model, heldout).top1, evaluate(model, heldout, downscale=2).top1
    assert abs(full - recorded) <= 4 * math.sqrt(recorded * (1 - recorded) / samples)
    assert half <= full - 0.05
