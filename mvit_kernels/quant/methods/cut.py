"""What methods share that give each result one range of its own: they differ in how they cut that of calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..histogram import Histogram, Part, histograms
from ..layout import PRODUCTS
from ..parts import FARTHEST, takes_wide
from ..probes import ACCUMULATOR, most_sum
from ..representation import SEVERAL, Byte, Representation, Stream, bits_of, byte_members, representations
from .base import Found, Task

Choose = Callable[[list[Histogram], int, float], Byte]
"""From histograms of all that has one quantizer, bits, and how far from any integer a zero-point may be to the quantizer. 0: it must be
one of them."""


def find_by(task: Task, choose: Choose, error: Callable[[list[Histogram], Byte], float] | None, objective: str | None) -> Found:
    """By `choose` for bytes; streams, of 16 bits, keep their whole range."""
    layout = task.layout
    found = representations(layout, task.ranges, task.config)
    parts = {key: _parts(task, key, value) for key, value in found.items() if not isinstance(value, Stream)}
    wanted = {part for lists in parts.values() for each in lists for part in each}
    seen = histograms(layout.program, task.batches, task.ranges, wanted, task.progress, task.share) if wanted else {}
    more: dict[str, dict[str, Any]] = {}
    chosen: dict[str, Representation] = dict(found)
    for key, lists in parts.items():
        name, _ = layout.needed()[key]
        bits = max(bits_of(task.config, each) for each in byte_members(layout, name))
        old = found[key]
        olds: dict[str, Representation] = {**old.parts()} if isinstance(old, SEVERAL) else {"": old}
        new: dict[str, Byte] = {}
        for (which, before), each in zip(olds.items(), lists, strict=True):
            pictures = [seen[part] for part in each]
            if which == "values":
                pictures = [positive(picture) for picture in pictures]
            byte = choose(pictures, bits, _farthest(task, key)) if all(picture.high > picture.low for picture in pictures) else before
            assert isinstance(byte, Byte)
            assert isinstance(before, Byte)
            new[which] = byte
            if error is not None:
                more[f"{key}.{which}" if which else key] = {
                    "objective": objective,
                    "error": error(pictures, byte),
                    "minmax_error": error(pictures, before),
                }
        chosen[key] = type(old)(**new) if isinstance(old, SEVERAL) else new[""]
    return Found(chosen, {}, more)


def squared_error(pictures: list[Histogram], byte: Byte) -> float:
    """The mean over all."""
    total = sum(float(picture.counts.sum()) for picture in pictures)
    return sum(picture.squared_error(byte.scale, byte.zero_point, byte.bits) * float(picture.counts.sum()) for picture in pictures) / total


def positive(picture: Histogram) -> Histogram:
    """Of relu(x): what the values of separable attention pass before anything else."""
    counts, centers = picture.counts.clone(), picture.centers()
    counts[centers < 0] = 0.0
    return Histogram(picture.low, picture.high, counts) if bool(counts.sum() > 0) else picture


def _farthest(task: Task, key: str) -> float:
    return room(task, byte_members(task.layout, task.layout.needed()[key][0])) if takes_wide(task.layout, key) else 0.0


def room(task: Task, names: list[str]) -> float:
    """How far from any integer the zero-points of results may be for sums of products of them."""
    layout = task.layout
    users = {user for name in names for user in layout.users[name] if user and layout.program[user].kind in PRODUCTS}
    sums = [most_sum(layout.program[user], task.config.weight_bits_of(user)) for user in users]
    return min([float(FARTHEST), *(ACCUMULATOR / max(each, 1) for each in sums)])


def _parts(task: Task, key: str, value: Representation) -> list[list[Part]]:
    name, _ = task.layout.needed()[key]
    if isinstance(value, SEVERAL):
        return [[(name, each.start, each.stop)] for each in value.channels(task.layout.program[name].size[0]).values()]
    return [[(each, 0, -1) for each in byte_members(task.layout, name)]]
