"""Sampling: what a killed run leaves, what a second run adds, and the table on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvit_kernels import files
from mvit_kernels.data import StandInTask
from mvit_kernels.data.digits import DIRECTIONS
from mvit_kernels.files import locked
from mvit_kernels.scaling import Box, Factors, Recipe, Sample, macs, measure, parameters, pictures, read, sample
from mvit_kernels.scaling.latency import compiled
from mvit_kernels.scaling.table import write
from mvit_kernels.training import Diverged, TrainConfig, train

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


@pytest.mark.slow
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


@pytest.fixture
def untrained(monkeypatch):
    """Settings are not trained, but those whose numbers are put into the list that this gives diverge."""
    diverging = list[int]()

    def setting(run, index, factors, recipe, images):
        run.mkdir(parents=True)
        if index in diverging:
            shutil.rmtree(run)
            raise Diverged("loss nan")
        return Sample(index, factors, 1, 1, 0.5, 16, 12, 1.0)

    monkeypatch.setattr(sys.modules["mvit_kernels.scaling.sample"], "train_setting", setting)
    return diverging


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_run_that_ended_before_its_first_setting_goes_on(untrained, tmp_path, monkeypatch, written):
    """After as many files as `written`, whichever come first."""
    with monkeypatch.context() as patch:
        replace_file, left = files.replace_file, written

        def killed(path, write):
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            replace_file(path, write)

        for module in (files, pictures):
            patch.setattr(module, "replace_file", killed)
        with pytest.raises(KeyboardInterrupt):
            sample(tmp_path, 2, recipe())
    assert len(sample(tmp_path, 2, recipe()).samples) == 2


def test_samples_without_a_recipe_are_not_overwritten(untrained, tmp_path):
    sample(tmp_path, 2, recipe())
    table = (tmp_path / "samples.csv").read_bytes()
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(ValueError, match=r"sample: folder: expected recipe\.json, which says how the samples in .* were made, got none"):
        sample(tmp_path, 2, recipe())
    assert (tmp_path / "samples.csv").read_bytes() == table


def test_settings_that_diverge_keep_no_other_from_being_trained(untrained, tmp_path):
    untrained += [0, 2]
    with pytest.raises(ValueError, match=r"got 2 of 4 that diverged and are left out, the first 0, Factors\(.*\): loss nan$"):
        sample(tmp_path, 4, recipe())
    assert [each.index for each in read(tmp_path).samples] == [1, 3]
    untrained.clear()
    assert [each.index for each in sample(tmp_path, 4, recipe()).samples] == [0, 1, 2, 3]


@pytest.mark.slow
def test_processes_of_a_killed_run_end_with_it(tmp_path):
    """Else they would write on to what the next run resumes from."""
    command = [sys.executable, "-m", "mvit_kernels", "scale", "sample", "--output", str(tmp_path), "--count", "2", "--only", "accuracy"]
    flags = [*FLAGS.split(), "--jobs", "2", "--epochs", "1000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *flags], env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        states = [tmp_path / "runs" / f"{index:04}" / "state.pt" for index in range(2)]
        while process.poll() is None and not all(state.is_file() for state in states):
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        time.sleep(3)
        ended = [state.stat().st_mtime_ns for state in states]
        time.sleep(5)  # a state is written many times a second
        assert [state.stat().st_mtime_ns for state in states] == ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_images_of_more_pixels_than_are_drawn_are_refused():
    with pytest.raises(ValueError, match="Recipe: canvas: expected at least 64, the highest resolution, got 63"):
        dataclasses.replace(recipe(), canvas=63)


def test_bad_recipes_leave_no_folder(tmp_path):
    with pytest.raises(ValueError, match="StandInTask: size: expected 64 to 256, got 257"):
        sample(tmp_path / "samples", 1, dataclasses.replace(recipe(), canvas=257))
    assert not (tmp_path / "samples").exists()


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


def test_two_runs_in_one_folder_are_refused(uninterrupted, tmp_path):
    with locked("first", tmp_path), pytest.raises(ValueError, match="sample: folder: expected one that no other run is filling"):
        sample(tmp_path, 1, recipe())
    # To time settings is to write the table, too: that of before, without what was trained meanwhile.
    with locked("first", uninterrupted[0]), pytest.raises(ValueError, match="measure: folder: expected one that no other run is filling"):
        measure(uninterrupted[0], limit=0.0)


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


def test_pictures_are_drawn_one_by_one(tmp_path):
    """All of the default task would take 20 GB."""
    task = StandInTask("train", 200, 64, plain=True)
    (tmp_path / ".images-train-200-64-0-both-plain.0123abcd.npy").write_bytes(b"half")  # a killed run was at it
    task.scene(0)  # loads the scans
    tracemalloc.start()
    pictures.draw(task, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 64 * 64 * 3 / 2
    assert len(list(tmp_path.iterdir())) == 2


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


HEADER = "index,resolution,width,depth_ir,depth_vit,macs,params,top1,heldout_samples,steps,seconds,fp32_1t_ms\n"
LINE = "1,32,1,1,1,1,1,1,1,1,1,1\n"


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ("index,resolution\n1,2\n", "got other files"),
        ("\xff\xfe", "got other files"),
        (HEADER + "1,a,1,1,1,1,1,1,1,1,1,1\n", "expected numbers of a setting in line 2 of .*samples.csv' .*'a'"),
        (HEADER + "1,2\n", "got other files"),
        (HEADER + LINE.replace("\n", ",7\n"), "got other files .*more values than columns"),
        (HEADER + LINE + "2,32,0,1,1,1,1,1,1,1,1,1\n", "line 3 .*width > 0 and finite, got 0"),
        (HEADER + "1,32,1,1,1,1,1,93.7,1,1,1,1\n", "top1: expected a share, got 93.7"),
        (HEADER + "1,32,1,1,1,1,1,nan,1,1,1,1\n", "top1: expected a share, got nan"),
        (HEADER + "1,32,1,1,1,1,1,1,0,1,1,1\n", "heldout_samples of at least 1"),
        (HEADER + "1,32,1,1,1,1,1,1,1,1,1,inf\n", r"expected positive milliseconds, got \[inf\]"),
        (HEADER + LINE + LINE, "expected each index once in .*samples.csv', got 1 again"),
    ],
)
def test_other_files_are_refused(tmp_path, table, match):
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "samples.csv").write_bytes(table.encode("latin1"))
    with pytest.raises(ValueError, match=match):
        read(tmp_path)


@pytest.mark.parametrize("recipe", ["[]", "3", "null"])
def test_recipes_that_are_none_are_refused(tmp_path, recipe):
    write(tmp_path, [])
    (tmp_path / "recipe.json").write_text(recipe)
    with pytest.raises(ValueError, match=r"samples: expected a JSON object in .*recipe\.json"):
        read(tmp_path)


@pytest.mark.parametrize("recipe", ["{}", '{"num_classes": "4"}'])
def test_settings_of_an_unknown_number_of_classes_are_not_timed(tmp_path, recipe):
    write(tmp_path, [])
    (tmp_path / "recipe.json").write_text(recipe)
    with pytest.raises(ValueError, match=r"measure: folder: expected num_classes in recipe\.json of"):
        measure(tmp_path)


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
