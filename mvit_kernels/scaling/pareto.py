"""The settings that no other beats in predicted accuracy and in cost alike, by NSGA-III over the fitted surface."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.problem import Problem
from pymoo.operators.sampling.lhs import LHS
from pymoo.optimize import minimize
from pymoo.util.ref_dirs import get_reference_directions

from .cost import Cost
from .factors import Factors, shape_of
from .surface import Surface

DIRECTIONS = 60


class Front(NamedTuple):
    """Settings by rising cost and rising predicted accuracy; costs and accuracies of them."""

    settings: list[Factors]
    costs: np.ndarray
    accuracies: np.ndarray


def settings_of(points: np.ndarray) -> list[Factors]:
    """Rows of logarithms (r, w, d_i, d_m) as settings."""
    return [Factors(round(r), float(w), float(d_i), float(d_m)) for r, w, d_i, d_m in np.exp(points)]


def front(accuracy: Surface, cost: Cost, ranges: dict[str, tuple[float, float]], *, generations: int = 80, seed: int = 0) -> Front:
    """The Pareto front inside of `ranges`, where predictions rest on samples.

    Source: NSGA-III (Deb and Jain 2014), as "Navigating Efficiency in MobileViT through Gaussian Process on Global Architecture
    Factors" (arXiv 2406.04820) has it.
    """
    lows, highs = (np.log([ranges[name][end] for name in Factors._fields]) for end in (0, 1))
    problem = _Compromise(accuracy, cost, lows, highs)
    directions = get_reference_directions("das-dennis", 2, n_partitions=DIRECTIONS - 1)
    algorithm = NSGA3(directions, pop_size=DIRECTIONS, sampling=LHS())
    result = minimize(problem, algorithm, ("n_gen", generations), seed=seed)
    settings = settings_of(np.atleast_2d(result.X))
    distinct = list({shape_of(each): each for each in settings}.values())
    costs, accuracies = cost.of(distinct), accuracy.predict(distinct).mean
    best, kept = -np.inf, list[int]()
    for index in np.lexsort((-accuracies, costs)):  # rounding may have put some behind others
        if accuracies[index] > best:
            best, kept = accuracies[index], [*kept, int(index)]
    return Front([distinct[index] for index in kept], costs[kept], accuracies[kept])


class _Compromise(Problem):
    def __init__(self, accuracy: Surface, cost: Cost, lows: np.ndarray, highs: np.ndarray) -> None:
        super().__init__(n_var=len(lows), n_obj=2, xl=lows, xu=highs)
        self._accuracy, self._cost = accuracy, cost

    def _evaluate(self, x: np.ndarray, out: dict[str, np.ndarray], *args: object, **kwargs: object) -> None:
        settings = settings_of(x)
        out["F"] = np.column_stack([-self._accuracy.predict(settings).mean, np.log(self._cost.of(settings))])
