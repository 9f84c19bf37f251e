"""The stand-in task: images drawn from a seed out of scikit-learn's scanned digits, labelled by their arrangement.

An image shows two or more digits of clearly different sizes among strokes on a textured background. Its label is the
value of the largest digit together with where the smallest one lies from there: 10 values x 4 directions = 40 classes.
Digits and strokes are thin, so halving the resolution costs accuracy; which digit is largest, which is smallest and how
they lie takes the whole image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from mvit_kernels.data.images import Images, to_tensor
from mvit_kernels.messages import shown

Split = Literal["train", "heldout"]
Target = Literal["both", "direction"]

SPLITS: tuple[Split, ...] = ("train", "heldout")
TARGETS: tuple[Target, ...] = ("both", "direction")
DIRECTIONS = ("above left", "above right", "below left", "below right")
CLASS_NAMES = tuple(f"{value} {direction}" for value in range(10) for direction in DIRECTIONS)
MIN_SIZE, MAX_SIZE = 64, 256

SMALLEST, LARGEST, GAP = (12, 18), (30, 40), 4
"""Pixels: ranges, ends included, of the smallest and the largest digit's side, and what every other digit clears."""
_MARGIN = 5
"""Pixels by which the smallest digit's centre clears the largest one's, on both axes."""
_HELDOUT_SCANS = 500
_BORDER = 1


@dataclass(frozen=True)
class Digit:
    """One drawn digit: its value, the centre and side of its square in pixels, and which scan it was drawn from."""

    value: int
    x: float
    y: float
    side: int
    scan: int


@dataclass(frozen=True)
class Scene:
    """One drawn image with its arrangement. image: (size, size, 3) uint8."""

    image: np.ndarray
    label: int
    digits: tuple[Digit, ...]


def label_of(digits: tuple[Digit, ...]) -> int:
    """The class of an arrangement: 4 * value of the largest digit + direction from there to the smallest digit."""
    smallest, largest = min(digits, key=lambda d: d.side), max(digits, key=lambda d: d.side)
    return 4 * largest.value + 2 * (smallest.y > largest.y) + (smallest.x > largest.x)


class StandInTask(Images):
    """Map-style dataset of generated images: sample i is a function of (seed, split, i, size) alone.

    The splits share neither scanned digits nor random streams, whatever their seeds.

    Args:
        split: "train" or "heldout".
        length: number of samples.
        size: side of the square canvas in pixels, 64 to 256; digits keep their 12 to 40 pixels, larger canvases hold more.
        seed: a non-negative int.
        target: what is asked for: "both", or only the "direction" from the largest digit to the smallest, which is 4 classes.
        plain: the same digits on black, without texture, strokes and grain: what a small network learns in a minute.

    Samples are (image, label): float32 (3, size, size) in [0, 1], and an int below len(class_names).
    """

    class_names: tuple[str, ...] = CLASS_NAMES

    def __init__(self, split: Split, length: int, size: int = 128, seed: int = 0, *, target: Target = "both", plain: bool = False) -> None:
        if split not in SPLITS:
            raise ValueError(f"StandInTask: split: expected one of {', '.join(SPLITS)}, got {shown(split)}")
        if length < 1:
            raise ValueError(f"StandInTask: length: expected at least 1, got {length}")
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(f"StandInTask: size: expected {MIN_SIZE} to {MAX_SIZE}, got {size}")
        if seed < 0:
            raise ValueError(f"StandInTask: seed: expected a non-negative int, got {seed}")
        if target not in TARGETS:
            raise ValueError(f"StandInTask: target: expected one of {', '.join(TARGETS)}, got {shown(target)}")
        self.split, self.length, self.size, self.seed, self.target, self.plain = split, length, size, seed, target, plain
        if target == "direction":
            self.class_names = DIRECTIONS

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        scene = self.scene(index)
        return to_tensor(scene.image), scene.label

    def scene(self, index: int) -> Scene:
        """The image of sample `index` with the arrangement that its label comes from."""
        if not 0 <= index < self.length:
            raise IndexError(f"StandInTask: index: expected 0 to {self.length - 1}, got {index}")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        digits = _arrange(rng, _scans_by_value(self.split), self.size)
        return Scene(_draw(rng, digits, self.size, self.plain), label_of(digits) % len(self.class_names), digits)


@cache
def _scans() -> tuple[list[Image.Image], np.ndarray]:
    """All scans as 10x10 coverage masks, with a blank border so that strokes fade out when turned, and their values."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("StandInTask draws scikit-learn's scanned digits: in a clone, pip install '.[standin]'") from error

    data = load_digits()
    masks = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(np.pad(mask, _BORDER)) for mask in masks], data.target


@cache
def _scans_by_value(split: Split) -> tuple[np.ndarray, ...]:
    """The scans that a split may draw, one array a value: the last of the file are held out, the others train."""
    _, values = _scans()
    scans = np.arange(len(values))
    scans = scans[-_HELDOUT_SCANS:] if split == "heldout" else scans[:-_HELDOUT_SCANS]
    return tuple(scans[values[scans] == value] for value in range(10))


def _arrange(rng: np.random.Generator, scans_by_value: tuple[np.ndarray, ...], size: int) -> tuple[Digit, ...]:
    """Sizes, values and places: every class is equally likely, and no two squares overlap."""
    value, direction = (int(n) for n in rng.integers((10, 4)))
    sides = [int(rng.integers(low, high, endpoint=True)) for low, high in (LARGEST, SMALLEST)]
    others = rng.integers(size // 32 - 1)
    sides += [int(n) for n in rng.integers(sides[1] + GAP, sides[0] - GAP, endpoint=True, size=others)]
    values = [value, *(int(n) for n in rng.integers(10, size=len(sides) - 1))]
    scans = [int(rng.choice(scans_by_value[v])) for v in values]
    down, right = divmod(direction, 2)

    while True:  # a crowded draw is thrown away as a whole: keeping its first squares would favour corners
        halves = np.array(sides)[:, None] / 2
        centres = halves + rng.random((len(sides), 2)) * (size - 2 * halves)
        (dx, dy) = (centres[1] - centres[0]) * (1 if right else -1, 1 if down else -1)
        gaps = np.abs(centres[:, None] - centres[None]).max(-1) - (halves + halves.T)
        if min(dx, dy) >= _MARGIN and gaps[np.triu_indices(len(sides), 1)].min() >= 0:
            return tuple(
                Digit(v, float(x), float(y), side, scan) for v, (x, y), side, scan in zip(values, centres, sides, scans, strict=True)
            )


def _draw(rng: np.random.Generator, digits: tuple[Digit, ...], size: int, plain: bool = False) -> np.ndarray:
    """Texture, distractors, digits, grain; of these only digits where `plain`. (size, size, 3) uint8."""
    image = Image.new("RGB", (size, size)) if plain else _texture(rng, size)
    if not plain:
        _scribble(rng, image)
    for digit in digits:
        mask = _mask(rng, digit)
        image.paste(_bright(rng), (round(digit.x - mask.width / 2), round(digit.y - mask.height / 2)), mask)
    if plain:
        return np.array(image)
    pixels = np.asarray(image).astype(np.int16)
    pixels += rng.integers(-12, 13, size=pixels.shape, dtype=np.int8)
    return pixels.clip(0, 255).astype(np.uint8)


def _mask(rng: np.random.Generator, digit: Digit) -> Image.Image:
    """The coverage of a digit's strokes: its scan turned, sheared and narrowed a little, scaled to its side."""
    scan = _scans()[0][digit.scan]
    scale = (scan.width - 2 * _BORDER) / digit.side
    side = round(scan.width / scale)
    turn, shear, width = (float(n) for n in rng.uniform((-0.25, -0.2, 0.85), (0.25, 0.2, 1.0)))
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    a, b, d, e = cos / width, sin + shear * cos, -sin / width, cos - shear * sin
    c, f = (scan.width / 2 - (across + down) * side / 2 for across, down in ((a, b), (d, e)))
    return scan.transform((side, side), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)


def _bright(rng: np.random.Generator, low: int = 150) -> tuple[int, int, int]:
    """A colour that stands out from the texture: no channel is below `low`."""
    red, green, blue = (int(n) for n in rng.integers(low, 256, size=3))
    return red, green, blue


def _texture(rng: np.random.Generator, size: int) -> Image.Image:
    """Coloured noise at two scales, dark enough for bright digits. (size, size) RGB."""
    coarse, fine = (
        Image.fromarray(rng.integers(0, high, size=(cells, cells, 3), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        for cells, high in ((max(size // 32, 2), 120), (size // 6, 50))
    )
    return Image.fromarray(np.asarray(coarse) // 2 + np.asarray(fine))


def _scribble(rng: np.random.Generator, image: Image.Image) -> None:
    """Distractors: strokes and arcs as bright and as thin as a digit's."""
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 7))):
        x, y = (float(n) for n in rng.random(2) * image.width)
        length, angle, bend = (float(n) for n in rng.uniform((6, 0, 0), (30, 360, 180)))
        width = int(rng.integers(1, 4))
        if rng.random() < 0.5:
            end = (x + length * math.cos(math.radians(angle)), y + length * math.sin(math.radians(angle)))
            draw.line([(x, y), end], _bright(rng, 90), width)
        else:
            draw.arc([x, y, x + length, y + length], angle, angle + bend, _bright(rng, 90), width)
