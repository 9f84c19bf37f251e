"""Pictures side by side in one folder, with a list of their labels: how ImageNet's validation set is distributed."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mvit_kernels.data.folder import EXTENSIONS, ImageFolder
from mvit_kernels.data.images import evaluation_view, read_image

LISTS = ("val.txt", "LOC_val_solution.csv")


class ListedImages(Dataset[tuple[Tensor, int]]):
    """Map-style dataset over the pictures of a folder, by a list of labels.

    Args:
        path: the folder.
        labels: a text file with a line `<picture> <label>` for each, or Kaggle's `LOC_val_solution.csv`, whose second column begins with
            the label. Labels are numbers of classes, or names, which are numbered in their order.
        size: side of the square view in pixels.

    Samples are (image, label): float32 (3, size, size) in [0, 1], and an int below len(class_names). class_names are the numbers as text
    where the list has numbers, up to the largest; `numbered` says that it has.
    """

    def __init__(self, path: str | Path, labels: str | Path, size: int = 256) -> None:
        lines = list(_rows(Path(labels)))
        pictures = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in EXTENSIONS)
        for names, place in ((name for name, _ in lines), labels), ((file.stem for file in pictures), path):
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(
                    f"ListedImages: labels: expected names that differ without their endings in {str(place)!r}, got {twice[0]!r} again"
                )
        rows, files = dict(lines), {file.stem: file for file in pictures}
        missing, more = sorted(rows.keys() - files.keys()), sorted(files.keys() - rows.keys())
        if not rows or missing or more:
            got = f"none for {more[0]!r}" if more else f"one for {missing[0]!r}, which is not there" if missing else "none"
            raise ValueError(f"ListedImages: labels: expected a line in {str(labels)!r} for each picture of {str(path)!r}, got {got}")
        self.numbered = all(label.isdecimal() for label in rows.values())
        if self.numbered:
            self.class_names = tuple(map(str, range(max(map(int, rows.values())) + 1)))
        else:
            self.class_names = tuple(sorted(set(rows.values())))
        number = {name: i for i, name in enumerate(self.class_names)}
        self.samples = [(file, number[str(int(rows[stem])) if self.numbered else rows[stem]]) for stem, file in files.items()]
        self.size = size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return evaluation_view(read_image(path), self.size), label


def _rows(labels: Path) -> Iterator[tuple[str, str]]:
    """(name of a picture without its ending, label)"""
    with labels.open(encoding="utf-8", newline="") as file:
        if labels.suffix.lower() == ".csv":
            table = csv.reader(file)
            next(table, None)
            lines = [[row[0], row[1].split()[0]] if len(row) > 1 and row[1].split() else row for row in table]
        else:
            lines = [line.split() for line in file if line.strip()]
    for i, line in enumerate(lines):
        if len(line) != 2:
            raise ValueError(f"ListedImages: labels: expected a picture and its label in line {i + 1} of {str(labels)!r}, got {line}")
        yield Path(line[0]).stem, line[1]


def evaluation_set(path: str | Path, size: int = 256) -> ImageFolder | ListedImages:
    """The held-out pictures of a folder, of its sub-folder `val` if there is one: one folder a class, or pictures side by side with
    `val.txt` or `LOC_val_solution.csv` among them or one folder above (`ListedImages`).

    Raises ValueError for a folder of neither kind.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"evaluation_set: path: expected a folder, got {str(root)!r}")
    folder = root / "val" if (root / "val").is_dir() else root
    if not any(each.suffix.lower() in EXTENSIONS for each in folder.iterdir() if each.is_file()):
        return ImageFolder(folder, size)
    lists = [place / name for place in (folder, folder.parent) for name in LISTS if (place / name).is_file()]
    if not lists:
        raise ValueError(f"evaluation_set: path: expected labels of the pictures in {str(folder)!r}, {' or '.join(LISTS)}, got none")
    return ListedImages(folder, lists[0], size)


def calibration_files(path: str | Path, count: int) -> list[Path]:
    """The pictures of a folder, of its sub-folder `train` if there is one, in their order: what `calibration_images` draws from.

    Raises ValueError, in its name, for no folder and for fewer pictures than `count`.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"calibration_images: path: expected a folder, got {str(path)!r}")
    folder = root / "train" if (root / "train").is_dir() else root
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS)
    if not files:
        raise ValueError(f"calibration_images: path: expected pictures in {str(folder)!r}, got none")
    if len(files) < count:
        raise ValueError(f"calibration_images: count: expected at most {len(files)}, the pictures in {str(folder)!r}, got {count}")
    return files


def calibration_images(path: str | Path, count: int, size: int = 256, seed: int = 0) -> Tensor:
    """`count` pictures of `calibration_files`, drawn by chance from all of them: (count, 3, size, size)."""
    files = calibration_files(path, count)
    drawn = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return torch.stack([evaluation_view(read_image(files[i]), size) for i in sorted(drawn)])
