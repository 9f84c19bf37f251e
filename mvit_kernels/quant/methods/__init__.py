"""The methods that find scales, one a file: from a layout, a float program and calibration images to what results are in integers."""

from __future__ import annotations

from collections.abc import Callable

from . import best, easyquant, fqvit, minmax, omse, percentile, ptq4vit, qhyvit, repqvit
from .base import Found, Task

METHODS: dict[str, Callable[[Task], Found]] = {
    "qhyvit": qhyvit.find,
    "minmax": minmax.find,
    "percentile": percentile.find,
    "omse": omse.find,
    "easyquant": easyquant.find,
    "ptq4vit": ptq4vit.find,
    "fqvit": fqvit.find,
    "repqvit": repqvit.find,
    "best": best.find,
}

__all__ = ["METHODS", "Found", "Task"]
