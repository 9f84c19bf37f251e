"""Pictures to tensors: read a file, take the view of it that a network sees."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

_CROP_RATIO = 256 / 288
"""Part of the shorter side that the centre crop keeps (MobileViT, Mehta and Rastegari 2022, evaluation)."""


class Images(Dataset[tuple[Tensor, int]]):
    """What networks are trained on: samples (image, label), float32 (3, size, size) in [0, 1], and an int below len(class_names)."""

    class_names: tuple[str, ...]

    def __len__(self) -> int:
        raise NotImplementedError


class ImageError(ValueError):
    """A file that is no usable picture. One line, also when a DataLoader makes it again from a worker's traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition("\n")[2].removeprefix(f"{__name__}.ImageError: "))


def read_image(path: str | Path) -> Image.Image:
    """The picture in a file, as RGB of 8 bits. FileNotFoundError if there is none, ImageError (a ValueError) if it is not a picture.

    16 bits are scaled to 8; pixels of 32 bits are refused, since no range tells what is white.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("I", "F"):
                raise ImageError(f"read_image: path: expected pixels of 8 or 16 bits, got 32 ({image.mode}) in {str(path)!r}")
            if image.mode.startswith("I;16"):
                return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except (FileNotFoundError, ImageError, MemoryError):
        raise
    except Exception as error:  # a damaged picture raises nearly anything
        raise ImageError(f"read_image: path: expected an image that Pillow reads, got {str(path)!r} ({error})") from error


def evaluation_view(image: Image.Image, size: int) -> Tensor:
    """Shorter side resized (bilinear) to size * 288 / 256, centre crop. float32 (3, size, size) in [0, 1]."""
    scale = round(size / _CROP_RATIO) / min(image.size)
    width, height = (max(round(side * scale), size) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    across, down = image.width / width, image.height / height
    # Resizing nothing but the crop: the whole of an elongated picture may not fit in memory.
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return to_tensor(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def training_view(image: Image.Image, size: int, rng: np.random.Generator) -> Tensor:
    """A random crop of 8 to 100 % of the area and aspect 3/4 to 4/3, resized (bilinear), flipped half of the time.

    The crop ends at the picture's edges, so it is smaller, and of another aspect, where a side of the picture is too short.
    float32 (3, size, size) in [0, 1]. The augmentation of MobileViT v1 (Mehta and Rastegari 2022, section 4.1).
    """
    area = image.width * image.height * rng.uniform(0.08, 1)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    width, height = min(math.sqrt(area * aspect), image.width), min(math.sqrt(area / aspect), image.height)
    left, top = rng.random() * (image.width - width), rng.random() * (image.height - height)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    return to_tensor(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view)


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """uint8 (H, W, 3) to float32 (3, H, W) in [0, 1]: what MobileViT takes; it knows no mean and no deviation."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
