"""From a budget to models: the formula, and the best of the rounded configurations around it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from . import counts
from .cost import WIDTHS, Cost
from .factors import Factors, shape_of
from .fit import accuracy_surface
from .formula import Formula
from .latency import measured
from .pareto import front
from .table import SampleSet

RESOLUTIONS = (32, 512)
DEPTHS = (0.25, 2.0)
GAP = 0.01
"""Share of the budget that may stay unused where some configuration uses more."""
_AROUND = 1.3
"""Ratio of each factor's largest and smallest values to the formula's."""
_ROUNDS, _CLOSE, _MARGIN = 6, 0.9, 1.02
"""Of measured latencies: tries at most, the share of the budget, or else of the prediction, that one candidate must use for no further try,
and the reserve that is added where all were too slow."""

SMALLEST = Factors(RESOLUTIONS[0], WIDTHS[0], DEPTHS[0], DEPTHS[0])


@dataclass(frozen=True)
class Derived:
    """A model within a budget.

    cost, gap: in the unit of the budget, and the share of it that is left. accuracy, accuracy_deviation: of training it by the recipe of
    the samples. formula: the factors before rounding. extrapolated: the factors outside of the samples, where predictions are guesses.
    """

    factors: Factors
    budget: float
    cost: float
    macs: int
    params: int
    accuracy: float
    accuracy_deviation: float
    formula: Factors
    extrapolated: tuple[str, ...]

    @property
    def gap(self) -> float:
        return 1 - self.cost / self.budget

    def document(self) -> dict[str, Any]:
        """As JSON holds it; `mk.create_model(**document["config"])` makes the model."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("factors", "formula")}
        return {
            **self.factors._asdict(),
            **fields,
            "extrapolated": list(self.extrapolated),
            "gap": self.gap,
            "formula": self.formula._asdict(),
            "config": self.factors.arguments,
        }


class Downsizer:
    """Derives models by the formula that samples and a cost give. num_classes: of the models. seed: of all that is drawn."""

    def __init__(self, samples: SampleSet, cost: Cost, *, num_classes: int = 1000, seed: int = 0) -> None:
        self.accuracy, self.ranges, self.num_classes = accuracy_surface(samples, seed), samples.ranges, num_classes
        self.front = front(self.accuracy, cost, self.ranges, seed=seed)
        self.formula = Formula(
            self.front, cost, self.accuracy.settings, {"resolution": RESOLUTIONS, "depth_ir": DEPTHS, "depth_vit": DEPTHS}, seed
        )

    def derive(self, budget: float, count: int = 1, *, scale: float = 1.0) -> list[Derived]:
        """The `count` best configurations around the formula that cost at most `budget`, by predicted accuracy, best first.

        Around: resolution and depths within a ratio of 1.3 of the formula's, or of those of the setting on the front that is predicted to
        be best with the width that the budget leaves it, and beyond the samples no further than these; at each of these the widest network
        within the budget. Those that leave more than 1 % of it unused are taken only where none leaves less, then those of widths beyond
        all of them.
        scale: what a cost is here, over what it was where the samples were made. Raises ValueError, which names the least possible, where
        nothing costs so little.
        """
        cost = self.formula.cost
        least = scale * float(cost.of([SMALLEST])[0])
        if not least <= budget < math.inf:
            raise ValueError(f"downsize: budget: expected at least {least:.6g} {cost.unit}, the cost of {SMALLEST}, got {budget:.6g}")
        around = self.formula.at(budget / scale)
        anchors = [around, self._of_front(budget / scale)]
        candidates = self._within(anchors, budget / scale) or self._within([SMALLEST], budget / scale)
        costs = scale * cost.of(candidates)
        close = costs >= (1 - GAP) * budget
        low, high = (end(self._reach("width", each.width, ratio) for each in anchors) for end, ratio in ((min, 0), (max, math.inf)))
        known = np.array([low <= each.width <= high for each in candidates])
        chosen = next(each for each in (known & close, close, known, np.full(len(costs), True)) if each.any())
        candidates, costs = [each for each, use in zip(candidates, chosen, strict=True) if use], costs[chosen]
        prediction = self.accuracy.predict(candidates)
        return [
            Derived(
                factors=candidates[index],
                budget=budget,
                cost=_plain(float(costs[index])),
                macs=counts.macs(candidates[index].config, self.num_classes),
                params=counts.parameters(candidates[index].config, self.num_classes),
                accuracy=float(prediction.mean[index]),
                accuracy_deviation=float(prediction.deviation[index]),
                formula=around,
                extrapolated=self._extrapolated(candidates[index]),
            )
            for index in np.lexsort((-costs, -prediction.mean))[:count]
        ]

    def derive_measured(self, budget: float, count: int, precision: str, threads: int) -> list[Derived]:
        """`derive` for a latency, with costs as measured on this machine: up to `count` models, of which none took more than `budget`.

        Where a candidate takes longer than predicted, so do its neighbours: the prediction is scaled, and others are measured.
        """
        scale, best, least = 1.0, list[Derived](), math.inf
        slow, fast = 0.0, math.inf  # scales: the largest with which all were too slow, the smallest with which some were not
        for _ in range(_ROUNDS):
            found = self.derive(budget, count, scale=scale)
            models = [replace(each, cost=measured(each.factors, precision, threads, self.num_classes)) for each in found]
            least = min(least, *(each.cost for each in models))
            within = [each for each in models if each.cost <= budget]
            best = max(best, within, key=lambda models: max((each.cost for each in models), default=0.0))
            ratio = max(model.cost / each.cost for model, each in zip(models, found, strict=True))
            # Where predictions are true, nothing was predicted to use more of the budget.
            if within and (max(each.cost for each in models) >= _CLOSE * budget or ratio >= _CLOSE):
                break
            slow, fast = (slow, min(fast, scale)) if within else (max(slow, scale), fast)
            scale *= ratio if within else ratio * _MARGIN
            if best and slow and not slow < scale < fast:
                scale = math.sqrt(slow * fast)
        if not best:
            raise ValueError(
                f"downsize: budget: expected one that models meet when measured, got {budget:.6g} ms, and {least:.6g} at the least"
            )
        return best

    def _of_front(self, budget: float) -> Factors:
        """The setting of the front that is predicted to be best with the width that the budget leaves it.

        The front ends where nothing dearer is predicted to be more accurate: beyond, the formula has nothing to go by.
        """
        settings = [each._replace(width=self.formula.width(each, budget)) for each in self.front.settings]
        return settings[int(np.argmax(self.accuracy.predict(settings).mean))]

    def _within(self, anchors: Sequence[Factors], budget: float) -> list[Factors]:
        """The widest configuration within the budget for each resolution and each pair of depths around given factors; each depth is the
        nearest to the first of them that gives as many blocks."""
        reach = {
            name: [self._reach(name, getattr(each, name), ratio) for each in anchors for ratio in (1 / _AROUND, _AROUND)]
            for name in Factors._fields
        }
        low, high = ({name: end(values) for name, values in reach.items()} for end in (min, max))
        around = anchors[0]
        step = 2 if high["resolution"] < 160 else 4
        sides = [side for side in range(RESOLUTIONS[0], RESOLUTIONS[1] + 1, step) if low["resolution"] <= side <= high["resolution"]]
        found = []
        for side in sides or [around.resolution]:
            for depth_ir in _depths("block_counts", around.depth_ir, low["depth_ir"], high["depth_ir"]):
                for depth_vit in _depths("layer_counts", around.depth_vit, low["depth_vit"], high["depth_vit"]):
                    factors = Factors(side, WIDTHS[0], depth_ir, depth_vit)
                    width = widest(factors, budget, self.formula.cost)
                    if width is not None:
                        found.append(factors._replace(width=width))
        return found

    def _reach(self, name: str, value: float, ratio: float) -> float:
        """value * ratio, held to the samples, or to the value itself where that lies outside of them."""
        lowest, highest = self.ranges[name]
        return min(max(value * ratio, min(lowest, value)), max(highest, value))

    def _extrapolated(self, factors: Factors) -> tuple[str, ...]:
        return tuple(name for name, value in factors._asdict().items() if not self.ranges[name][0] <= value <= self.ranges[name][1])


def _depths(counts_of: str, around: float, lowest: float, highest: float) -> list[float]:
    """Factors of a depth that give different numbers of blocks, each the one nearest to `around`; that itself where none is on the grid."""
    grid = (step / 20 for step in range(round(DEPTHS[0] * 20), round(DEPTHS[1] * 20) + 1))
    by_counts: dict[tuple[int, ...], float] = {}
    for depth in sorted((depth for depth in grid if lowest <= depth <= highest), key=lambda depth: abs(depth - around)):
        by_counts.setdefault(getattr(Factors(256, 1.0, depth, depth).config, counts_of), depth)
    return sorted(by_counts.values()) or [round(around, 4)]


@functools.cache
def _distinct_widths() -> list[float]:
    """The widths of WIDTHS, in steps of a thousandth, that round to different channels."""
    widths: dict[tuple[int, ...], float] = {}
    for step in range(round(WIDTHS[0] * 1000), round(WIDTHS[1] * 1000) + 1):
        widths.setdefault(shape_of(Factors(256, step / 1000, 1.0, 1.0)), step / 1000)
    return list(widths.values())


def widest(factors: Factors, budget: float, cost: Cost) -> float | None:
    """The largest of the distinct widths with which the network costs at most `budget`; None if there is none."""
    widths = _distinct_widths()
    low, high = 0, len(widths)
    while low < high:  # widths[:low] fit, widths[high:] don't
        middle = (low + high) // 2
        if float(cost.of([factors._replace(width=widths[middle])])[0]) <= budget:
            low = middle + 1
        else:
            high = middle
    return widths[low - 1] if low else None


def _plain(cost: float) -> float:
    return int(cost) if cost.is_integer() else cost
