"""What a budget limits: multiply-adds, parameters, or a latency."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import brentq

from . import counts
from .factors import Factors
from .surface import Surface

WIDTHS = (0.1, 3.0)
"""Of networks that are considered at all. At a tenth, every number of channels is at its least or near it."""


class Cost(Protocol):
    """unit: of the values."""

    unit: str

    def of(self, settings: Sequence[Factors]) -> np.ndarray:
        """(settings,) costs."""

    def width(self, factors: Factors, budget: float) -> float:
        """The width with which the network costs `budget`, before its channels are rounded; the other factors stay."""


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one image."""

    num_classes: int = 1000
    unit = "MACs"

    def of(self, settings: Sequence[Factors]) -> np.ndarray:
        return np.array([_macs(factors, self.num_classes) for factors in settings], dtype=float)

    def width(self, factors: Factors, budget: float) -> float:
        return counts.width_for(factors.config, budget, self.num_classes)


@dataclass(frozen=True)
class Params:
    """Trainable parameters."""

    num_classes: int = 1000
    unit = "parameters"

    def of(self, settings: Sequence[Factors]) -> np.ndarray:
        return np.array([_parameters(factors, self.num_classes) for factors in settings], dtype=float)

    def width(self, factors: Factors, budget: float) -> float:
        return _width_by_search(self, factors, budget)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one image, as predicted from measured settings."""

    surface: Surface
    unit = "ms"

    def of(self, settings: Sequence[Factors]) -> np.ndarray:
        return self.surface.predict(settings).mean

    def width(self, factors: Factors, budget: float) -> float:
        return _width_by_search(self, factors, budget)


def _width_by_search(cost: Cost, factors: Factors, budget: float) -> float:
    """Where the cost crosses the budget, or the end of WIDTHS that is nearer to it."""

    def excess(width: float) -> float:
        return float(cost.of([factors._replace(width=width)])[0]) - budget

    if excess(WIDTHS[0]) >= 0:
        return WIDTHS[0]
    return WIDTHS[1] if excess(WIDTHS[1]) <= 0 else float(brentq(excess, *WIDTHS, xtol=1e-4))


@functools.lru_cache(maxsize=200_000)
def _macs(factors: Factors, num_classes: int) -> int:
    return counts.macs(factors.config, num_classes)


@functools.lru_cache(maxsize=200_000)
def _parameters(factors: Factors, num_classes: int) -> int:
    return counts.parameters(factors.config, num_classes)
