"""The methods that find scales, one a file: from a layout, a float program and calibration images to what results are in integers."""

from __future__ import annotations

from collections.abc import Callable

from . import best, easyquant, minmax, omse, percentile, qhyvit
from .base import Found, Task

METHODS: dict[str, Callable[[Task], Found]] = {
    "qhyvit": qhyvit.find,
    "minmax": minmax.find,
    "percentile": percentile.find,
    "omse": omse.find,
    "easyquant": easyquant.find,
    "best": best.find,
}

__all__ = ["METHODS", "Found", "Task"]
