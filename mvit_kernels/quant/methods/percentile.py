"""Ranges without the farthest values: 0.01 % of them at each end are clipped.

Wu, Judd, Zhang, Isaev and Micikevicius 2020, "Integer quantization for deep learning inference: principles and empirical evaluation",
section 4.2: percentile calibration of activations (99.99 % was the best of theirs for most networks); weights by their largest value.
"""

from __future__ import annotations

from ..histogram import Histogram
from ..representation import Byte, byte_of
from .base import Found, Task
from .cut import find_by

TAIL = 1e-4


def find(task: Task) -> Found:
    return find_by(task, _choose, None, None)


def _choose(pictures: list[Histogram], bits: int, _: float) -> Byte:
    lows, highs = zip(*(picture.quantiles(TAIL) for picture in pictures), strict=True)
    return byte_of(min(lows), max(highs), bits)
