"""The stand-in images, drawn once on a canvas of one size and shown to every network at its own resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mvit_kernels.data import Images, StandInTask
from mvit_kernels.files import remove_leftovers, replace_file


class Pictures(Images):
    """Map-style dataset over drawn images: (image, label), float32 (3, size, size) in [0, 1], and the class.

    Resizing is bilinear with antialiasing, so that a smaller resolution loses what it cannot show and nothing else.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, size: int, class_names: tuple[str, ...]) -> None:
        self.images, self.labels, self.size, self.class_names = images, labels, size, class_names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(np.array(self.images[index])).permute(2, 0, 1)[None].float().div_(255)
        if self.size != image.shape[-1]:
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True).clamp_(0, 1)
        return image[0].contiguous(), int(self.labels[index])


def draw(task: StandInTask, folder: Path) -> None:
    """Write a task's images and labels to `folder`, unless they are there: uint8 (length, size, size, 3), and the classes. One process at a
    time."""
    images, labels = _files(task, folder)
    if images.is_file() and labels.is_file():
        return
    remove_leftovers(images)
    drawn = np.empty(len(task), np.int64)

    def write(path: Path) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(task), task.size, task.size, 3)}
        with path.open("wb") as file:  # one by one: all of them may not fit in memory
            np.lib.format.write_array_header_1_0(file, header)
            for index in tqdm(range(len(task)), f"draw {task.split}", leave=False, disable=None):
                scene = task.scene(index)
                drawn[index] = scene.label
                file.write(scene.image.tobytes())

    replace_file(images, write)
    replace_file(labels, lambda path: np.save(path, drawn))


def load(task: StandInTask, folder: Path, size: int) -> Pictures:
    """What `draw` wrote, mapped into memory, at `size` pixels."""
    images, labels = _files(task, folder)
    return Pictures(np.load(images, mmap_mode="r"), np.load(labels), size, task.class_names)


def _files(task: StandInTask, folder: Path) -> tuple[Path, Path]:
    name = f"{task.split}-{task.length}-{task.size}-{task.seed}-{task.target}{'-plain' if task.plain else ''}"
    return folder / f"images-{name}.npy", folder / f"labels-{name}.npy"
