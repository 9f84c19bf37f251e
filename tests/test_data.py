"""The stand-in task and folders of pictures: determinism, splits, labels, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mvit_kernels.data import ImageFolder, StandInTask, evaluation_view, image_folder, read_image
from mvit_kernels.data.digits import GAP, LARGEST, SMALLEST, _draw
from mvit_kernels.data.images import training_view


@pytest.mark.parametrize("size", [64, 128, 250])
def test_sample_is_an_image_with_a_label(size):
    image, label = StandInTask("train", 3, size)[2]
    assert image.shape == (3, size, size)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert 0 <= label < len(StandInTask.class_names) == 40


def test_samples_depend_on_seed_split_and_index_alone():
    task = StandInTask("train", 8, 96, seed=5)
    backwards = [task[i] for i in reversed(range(8))][::-1]
    other = StandInTask("train", 100, 96, seed=5)
    for i, (image, label) in enumerate(backwards):
        assert torch.equal(image, other[i][0])
        assert label == other[i][1]
    for different in (StandInTask("train", 8, 96, seed=6), StandInTask("heldout", 8, 96, seed=5)):
        assert not torch.equal(task[0][0], different[0][0])
    assert not torch.equal(task[0][0], task[1][0])


def test_workers_do_not_change_samples():
    task = StandInTask("train", 6, 96)
    (alone, labels), (shared, shared_labels) = (next(iter(DataLoader(task, 6, num_workers=n))) for n in (0, 2))
    assert torch.equal(alone, shared)
    assert torch.equal(labels, shared_labels)


def test_splits_share_no_scan():
    train, heldout = ({d.scan for i in range(300) for d in StandInTask(s, 300, 96).scene(i).digits} for s in ("train", "heldout"))
    assert len(train) > 300
    assert len(heldout) > 200
    assert not train & heldout


def test_label_follows_from_the_arrangement():
    task = StandInTask("train", 200)
    for i in range(200):
        scene = task.scene(i)
        by_side = sorted(scene.digits, key=lambda d: d.side)
        small, large = by_side[0], by_side[-1]
        assert SMALLEST[0] <= small.side <= SMALLEST[1]
        assert LARGEST[0] <= large.side <= LARGEST[1]
        assert all(small.side + GAP <= other.side <= large.side - GAP for other in by_side[1:-1])
        direction = f"{'above' if small.y < large.y else 'below'} {'left' if small.x < large.x else 'right'}"
        assert task.class_names[scene.label] == f"{large.value} {direction}"
        assert task[i][1] == scene.label


@pytest.mark.parametrize(
    ("index", "label", "mean", "digits"),
    [
        (0, 23, 60.829, [(5, 40, 1407, 79.401, 55.465), (8, 15, 1790, 111.094, 86.515)]),
        (
            1999,
            14,
            63.445,
            [(3, 30, 1730, 59.285, 20.115), (9, 12, 1562, 47.656, 71.776), (8, 19, 1325, 103.109, 33.699), (7, 20, 1728, 38.921, 88.193)],
        ),
    ],
)
def test_heldout_samples_are_those_the_recorded_accuracies_are_of(index, label, mean, digits):
    scene = StandInTask("heldout", 2000).scene(index)
    assert scene.label == label
    assert [(d.value, d.side, d.scan) for d in scene.digits] == [digit[:3] for digit in digits]
    assert [(d.x, d.y) for d in scene.digits] == [pytest.approx(digit[3:], abs=1e-3) for digit in digits]
    assert scene.image.mean() == pytest.approx(mean, abs=0.1)


@pytest.mark.parametrize(("size", "most"), [(64, 2), (96, 3), (128, 4), (256, 8)])
def test_digits_lie_inside_and_apart(size, most):
    task = StandInTask("train", 60, size)
    arrangements = [task.scene(i).digits for i in range(60)]
    assert {len(digits) for digits in arrangements} == set(range(2, most + 1))
    for digits in arrangements:
        for k, a in enumerate(digits):
            assert a.side / 2 <= min(a.x, a.y)
            assert max(a.x, a.y) <= size - a.side / 2
            assert all(max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.side + b.side) / 2 for b in digits[k + 1 :])


def test_digits_are_drawn_where_the_arrangement_says_and_nowhere_else():
    task = StandInTask("train", 30)
    for i in range(30):
        arrangement = task.scene(i).digits
        with_digits, without = (_draw(np.random.default_rng(i), digits, 128) for digits in (arrangement, ()))
        changed = np.abs(with_digits.astype(int) - without).max(-1) > 40  # more than the grain of both
        for d in arrangement:
            half = 5 / 8 * d.side + 1  # a turned digit may leave its square by an eighth
            rows, columns = (slice(max(round(v - half), 0), round(v + half)) for v in (d.y, d.x))
            assert changed[rows, columns].sum() > d.side**2 / 20
            changed[rows, columns] = False
        assert not changed.any()


def test_plain_images_are_the_digits_alone():
    plain, drawn = StandInTask("train", 20, 96, plain=True), StandInTask("train", 20, 96)
    for i in range(20):
        scene = plain.scene(i)
        assert (scene.digits, scene.label) == (drawn.scene(i).digits, drawn.scene(i).label)
        outside = scene.image.copy()
        for d in scene.digits:
            half = 5 / 8 * d.side + 1
            rows, columns = (slice(max(round(v - half), 0), round(v + half)) for v in (d.y, d.x))
            assert outside[rows, columns].max() >= 150
            outside[rows, columns] = 0
        assert not outside.any()


def test_directions_are_what_is_left_of_the_labels():
    both, direction = StandInTask("heldout", 40), StandInTask("heldout", 40, target="direction")
    assert direction.class_names == ("above left", "above right", "below left", "below right")
    for i in range(40):
        _, label = direction[i]
        assert both.class_names[both.scene(i).label].endswith(direction.class_names[label])
    with pytest.raises(ValueError, match="target: expected one of both, direction, got 'value'"):
        StandInTask("train", 1, target="value")


def test_classes_are_even():
    counts = np.bincount([StandInTask("train", 4000, 96).scene(i).label for i in range(800)], minlength=40)
    expected = 800 / 40
    assert ((counts - expected) ** 2 / expected).sum() < 80  # chi-squared, 39 degrees of freedom: p = 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test", 1), "split: expected one of train, heldout, got 'test'"),
        (("train", 0), "length: expected at least 1, got 0"),
        (("train", 1, 63), "size: expected 64 to 256, got 63"),
        (("train", 1, 257), "size: expected 64 to 256, got 257"),
        (("train", 1, 96, -1), "seed: expected a non-negative int, got -1"),
    ],
)
def test_bad_task_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StandInTask(*arguments)


def test_index_past_the_end():
    assert len(list(StandInTask("train", 2, 96))) == 2
    with pytest.raises(IndexError, match="expected 0 to 1, got 2"):
        StandInTask("train", 2, 96)[2]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name / "deeper").mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(256, size=(40, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / ("deeper" if i else "") / f"{i}.PNG")
            (tmp_path / split / name / "notes.txt").write_text("not a picture")
    return tmp_path


def test_folder_names_classes_and_finds_pictures(folder):
    train, heldout = image_folder(folder, 32)
    assert train.class_names == heldout.class_names == ("cat", "dog")
    assert [label for _, label in train.samples] == [0, 0, 0, 1, 1, 1]
    assert len(heldout) == 4
    for dataset in (train, heldout):
        image, label = dataset[3]
        assert image.shape == (3, 32, 32)
        assert 0 <= image.min() < image.max() <= 1
        assert label == 1


def test_augmentation_depends_on_seed_epoch_and_index_alone(folder):
    first, again = (ImageFolder(folder / "train", 32, augment=True, seed=1) for _ in range(2))
    assert torch.equal(first[0][0], again[0][0])
    again.set_epoch(1)
    assert not torch.equal(first[0][0], again[0][0])
    again.set_epoch(0)
    assert torch.equal(first[0][0], again[0][0])
    assert not torch.equal(first[0][0], ImageFolder(folder / "train", 32, augment=True, seed=2)[0][0])


@pytest.mark.parametrize("shape", [(40, 60), (300, 20), (32, 32), (289, 288)])
def test_views_have_the_size_asked_for(shape):
    image = Image.fromarray(np.zeros((*shape, 3), np.uint8))
    for size in (31, 32, 256):
        assert evaluation_view(image, size).shape == (3, size, size)
        assert training_view(image, size, np.random.default_rng(0)).shape == (3, size, size)


def test_evaluation_view_is_the_centre():
    pixels = np.zeros((288, 576, 3), np.uint8)
    pixels[16:272, 160:416] = 255
    assert evaluation_view(Image.fromarray(pixels), 256).min() == 1
    pixels[16] = 0
    assert evaluation_view(Image.fromarray(pixels), 256)[:, 0].max() == 0


def test_bad_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder, got .*nowhere"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a sub-folder for every class"):
        ImageFolder(folder / "train" / "cat" / "deeper")
    (folder / "val" / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected pictures in .*empty.*, got none"):
        ImageFolder(folder / "val")
    Image.new("RGB", (9, 9)).save(folder / "val" / "empty" / "a.png")
    with pytest.raises(ValueError, match=r"same classes in train and val, got only one with \['empty'\]"):
        image_folder(folder)


def test_file_that_is_not_an_image_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "text.png").write_text("hello")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:5000])
    (tmp_path / "header.png").write_bytes(whole[:11] + b"\5" + whole[12:])  # of which Pillow says but "Truncated IHDR chunk"
    for name in ("text.png", "cut.png", "header.png"):
        with pytest.raises(ValueError, match=f"expected an image that Pillow reads, got .*{name}"):
            read_image(tmp_path / name)


def test_folder_names_a_broken_picture_in_one_line_also_from_a_worker(folder):
    broken = folder / "train" / "cat" / "0.PNG"
    broken.write_text("hello")
    for workers in (0, 1):
        batches = iter(DataLoader(ImageFolder(folder / "train", 32), 2, num_workers=workers))
        with pytest.raises(ValueError, match=rf"^read_image: path: expected an image that Pillow reads, got '{broken}' \(.*\)$"):
            next(batches)
        assert len(list(batches)) == 2  # and the worker ends: one of a broken iterator is waited for


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_pictures_of_16_bits_keep_their_tones(suffix, tmp_path):
    tones = np.array([[0, 257 * 7, 257 * 128, 65535]], np.uint16)
    Image.fromarray(tones).save(tmp_path / f"deep.{suffix}")
    assert np.asarray(read_image(tmp_path / f"deep.{suffix}"))[0].tolist() == [[tone] * 3 for tone in (0, 7, 128, 255)]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pictures_of_32_bits_are_refused(dtype, tmp_path):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"expected pixels of 8 or 16 bits, got 32 \([FI]\) in .*deep\.tif"):
        read_image(tmp_path / "deep.tif")


def test_evaluation_view_resizes_nothing_but_the_crop(monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *args, **kw: sizes.append(size) or resize(image, size, *args, **kw))
    pixels = np.random.default_rng(0).integers(256, size=(50, 70, 3), dtype=np.uint8)
    view = evaluation_view(Image.fromarray(pixels), 32)
    whole = resize(Image.fromarray(pixels), (50, 36), Image.Resampling.BILINEAR).crop((9, 2, 41, 34))
    assert np.abs(view.mul(255).permute(1, 2, 0).numpy() - np.asarray(whole)).max() <= 1
    evaluation_view(Image.new("RGB", (1, 2000)), 256)
    assert sizes == [(32, 32), (256, 256)]
