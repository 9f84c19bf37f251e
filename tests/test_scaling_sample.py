"""Sampling: what a killed run leaves, what a second run adds, and the table on disk."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvit_kernels.data import StandInTask
from mvit_kernels.data.digits import DIRECTIONS
from mvit_kernels.scaling import Box, Factors, Recipe, Sample, macs, measure, parameters, pictures, read, sample
from mvit_kernels.scaling.latency import compiled
from mvit_kernels.scaling.table import write
from mvit_kernels.training import TrainConfig, train

FLAGS = (
    "--resolution 32,64 --width 0.1,0.2 --depth-ir 0.5,1 --depth-vit 0.25,0.5 --resolution-step 16 --canvas 64 --target direction --plain"
    " --samples 64 --heldout-samples 16 --epochs 3 --batch-size 16 --warmup 2 --ema 0 --save-every 2"
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(**change) -> Recipe:
    training = {"samples": 64, "heldout_samples": 16, "epochs": 3, "batch_size": 16, "warmup": 2, "ema": 0.0, "save_every": 2, **change}
    box = Box((32, 64), (0.1, 0.2), (0.5, 1.0), (0.25, 0.5), resolution_step=16)
    return Recipe(TrainConfig("mobilevitv2", Path("of no account"), **training), box, canvas=64, target="direction", plain=True)


def timeless(samples):
    return [dataclasses.replace(each, seconds=0.0) for each in samples.samples]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    return folder, sample(folder, 3, recipe())


def test_samples_are_what_they_say(uninterrupted):
    folder, samples = uninterrupted
    assert [each.index for each in samples.samples] == [0, 1, 2]
    for each, factors in zip(samples.samples, recipe().box.draw(3, 0), strict=True):
        assert each.factors == factors
        assert (each.macs, each.params) == (macs(factors.config, 4), parameters(factors.config, 4))
        assert each.heldout_samples == 16
        assert each.steps == 12
        assert (each.top1 * 16) % 1 == 0
    assert samples.recipe["num_classes"] == len(DIRECTIONS)
    assert not any((folder / "runs").iterdir())


def test_a_killed_run_goes_on(uninterrupted, tmp_path):
    """Nothing is lost, nothing is trained twice, and the samples are those of a run in one go."""
    folder = tmp_path / "samples"
    command = [sys.executable, "-m", "mvit_kernels", "scale", "sample", "--output", str(folder), "--count", "3", "--only", "accuracy"]
    process = subprocess.Popen(
        [*command, *FLAGS.split()], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    state = folder / "runs" / "0001" / "state.pt"
    while process.poll() is None and not state.is_file():  # the second setting is under way
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    error = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, error
    table = (folder / "samples.csv").read_text().splitlines()
    assert len(table) == 2
    assert state.is_file()

    again = sample(folder, 3, recipe())
    assert timeless(again) == timeless(uninterrupted[1])
    assert (folder / "samples.csv").read_text().splitlines()[1] == table[1]
    assert not any((folder / "runs").iterdir())


def test_a_trained_setting_that_was_not_recorded_is_not_trained_again(uninterrupted, tmp_path, monkeypatch):
    """The disk was full when the first setting was to be written: the state of its training is complete, and is taken."""
    module = sys.modules["mvit_kernels.scaling.sample"]
    resumed = []

    def watched(config, datasets):
        resumed.append(config.resume)
        return train(config, datasets)

    def full_disk(folder, samples):
        if samples := list(samples):
            raise OSError(28, "No space left on device", str(folder))
        write(folder, samples)

    monkeypatch.setattr(module, "train", watched)
    with monkeypatch.context() as patch:
        patch.setattr(module.table, "write", full_disk)
        with pytest.raises(OSError, match="No space left"):
            sample(tmp_path, 3, recipe())
    trained = len(resumed)
    again = sample(tmp_path, 3, recipe())
    assert resumed[:trained] == [None] * trained
    assert resumed[trained] == tmp_path / "runs" / "0000" / "state.pt"
    assert timeless(again) == timeless(uninterrupted[1])


def test_more_settings_are_added(uninterrupted):
    folder, before = uninterrupted
    assert sample(folder, 3, recipe()).samples == before.samples
    more = sample(folder, 4, recipe())
    assert more.samples[:3] == before.samples
    assert more.samples[3].factors == recipe().box.draw(4, 0)[3]


def test_another_recipe_is_refused(uninterrupted):
    folder, _ = uninterrupted
    table = (folder / "samples.csv").read_bytes()
    with pytest.raises(ValueError, match=r"expected the recipe of the samples in .*'lr': 0.001.*got .*'lr': 0.5"):
        sample(folder, 3, recipe(lr=0.5))
    assert (folder / "samples.csv").read_bytes() == table


def test_two_runs_in_one_folder_are_refused(tmp_path):
    from mvit_kernels.scaling.sample import _locked

    with _locked(tmp_path), pytest.raises(ValueError, match="expected one that no other run is filling"):
        sample(tmp_path, 1, recipe())


@pytest.mark.slow
def test_several_processes_give_the_same_samples(uninterrupted, tmp_path):
    assert timeless(sample(tmp_path, 3, recipe(), jobs=2))[:3] == timeless(uninterrupted[1])[:3]


# --- images ---


def test_pictures_are_those_of_the_task(tmp_path):
    task = StandInTask("heldout", 3, 64, 5, target="direction", plain=True)
    pictures.draw(task, tmp_path)
    whole, half = pictures.load(task, tmp_path, 64), pictures.load(task, tmp_path, 32)
    assert len(whole) == len(half) == 3
    for index in range(3):
        image, label = task[index]
        torch.testing.assert_close(whole[index][0], image, rtol=0, atol=0)
        assert whole[index][1] == half[index][1] == label < 4
        assert half[index][0].shape == (3, 32, 32)
        torch.testing.assert_close(F.avg_pool2d(half[index][0], 32), F.avg_pool2d(image, 64), rtol=0, atol=0.01)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    pictures.draw(task, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


# --- latency ---


@pytest.mark.slow
def test_latencies_are_added_to_the_table(uninterrupted):
    folder, before = uninterrupted
    options = {"threads": [1], "precisions": ["fp32"], "seconds": 0.01}
    limited = measure(folder, **options, limit=0.0)
    assert sum(bool(each.latency) for each in limited.samples) <= 1
    timed = measure(folder, **options)
    assert [dataclasses.replace(each, latency={}) for each in timed.samples][:3] == list(before.samples)
    for each in timed.samples:
        assert each.latency.keys() == {("fp32", 1)}
        assert each.latency["fp32", 1] > 0
    assert measure(folder, **options) == timed
    assert read(folder) == timed


def test_what_is_timed_is_the_compiled_network():
    factors = Factors(48, 0.15, 0.5, 0.25)
    for precision in ("fp32", "int8"):
        network, x = compiled(factors, precision, 7)
        assert x.shape == (1, 3, 48, 48)
        assert network(x).shape == (1, 7)
        kinds = str(network.report())
        assert ("qconv2d" in kinds) == (precision == "int8")
    with pytest.raises(ValueError, match="precision: expected one of fp32, int8, got 'int4'"):
        compiled(factors, "int4", 7)


# --- the table ---


def test_tables_come_back_as_they_were(tmp_path):
    samples = [
        Sample(3, Factors(48, 0.1234, 0.5, 1.0), 10, 20, 0.125, 8, 9, 1.5, {("fp32", 2): 1.25}),
        Sample(1, Factors(32, 0.5, 1.0, 1.0), 11, 21, 0.25, 8, 9, 2.5),
    ]
    (tmp_path / "recipe.json").write_text("{}")
    write(tmp_path, samples)
    assert list(read(tmp_path).samples) == samples[::-1]


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ("index,resolution\n1,2\n", "got other files"),
        ("\xff\xfe", "got other files"),
        (
            "index,resolution,width,depth_ir,depth_vit,macs,params,top1,heldout_samples,steps,seconds\n1,a,1,1,1,1,1,1,1,1,1\n",
            "expected numbers",
        ),
        ("index,resolution,width,depth_ir,depth_vit,macs,params,top1,heldout_samples,steps,seconds\n1,2\n", "got other files"),
    ],
)
def test_other_files_are_refused(tmp_path, table, match):
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "samples.csv").write_bytes(table.encode("latin1"))
    with pytest.raises(ValueError, match=match):
        read(tmp_path)


def test_a_folder_without_a_table_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        measure(tmp_path)


def test_resizing_keeps_values_in_range():
    images, labels = np.full((1, 8, 8, 3), 255, np.uint8), np.zeros(1, np.int64)
    for size in (3, 8, 13):
        image, _ = pictures.Pictures(images, labels, size, DIRECTIONS)[0]
        assert image.shape == (3, size, size)
        assert image.max() <= 1
        assert image.min() == 1
