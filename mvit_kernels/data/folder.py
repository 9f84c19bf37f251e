"""Pictures in folders, one folder a class: the layout of ImageNet and of torchvision's ImageFolder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from mvit_kernels.data.images import Images, evaluation_view, read_image, training_view

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageFolder(Images):
    """Map-style dataset over `path/<class>/**/<picture>`; classes are numbered in the order of their names.

    Args:
        path: folder with one sub-folder a class.
        size: side of the square view in pixels.
        augment: a random resized crop, flipped half of the time, in place of the centre crop of evaluation. The view
            depends on (seed, epoch, index) alone, so neither workers nor a resumed run change it.
        seed: a non-negative int.

    Samples are (image, label): float32 (3, size, size) in [0, 1], and an int below len(class_names).
    """

    def __init__(self, path: str | Path, size: int = 256, *, augment: bool = False, seed: int = 0) -> None:
        root = Path(path)
        if not root.is_dir():
            raise ValueError(f"ImageFolder: path: expected a folder, got {str(root)!r}")
        folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
        if not folders:
            raise ValueError(f"ImageFolder: path: expected a sub-folder for every class in {str(root)!r}, got none")
        self.class_names = tuple(folder.name for folder in folders)
        self.samples: list[tuple[Path, int]] = []
        for label, folder in enumerate(folders):
            files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS)
            if not files:
                raise ValueError(f"ImageFolder: path: expected pictures in {str(folder)!r}, got none")
            self.samples += [(file, label) for file in files]
        self.size, self.augment, self.seed, self.epoch = size, augment, seed, 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = read_image(path)
        if not self.augment:
            return evaluation_view(image, self.size), label
        return training_view(image, self.size, np.random.default_rng([self.seed, self.epoch, index])), label

    def set_epoch(self, epoch: int) -> None:
        """Draw other random views; call it before the epoch's workers start."""
        self.epoch = epoch


def image_folder(path: str | Path, size: int = 256, seed: int = 0) -> tuple[ImageFolder, ImageFolder]:
    """The (training, held-out) sets of a folder laid out as ImageNet is: `path/train/<class>/`, `path/val/<class>/`."""
    train = ImageFolder(Path(path) / "train", size, augment=True, seed=seed)
    heldout = ImageFolder(Path(path) / "val", size)
    if train.class_names != heldout.class_names:
        odd = sorted(set(train.class_names) ^ set(heldout.class_names))
        raise ValueError(f"image_folder: path: expected the same classes in train and val, got only one with {odd}")
    return train, heldout
