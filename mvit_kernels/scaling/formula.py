"""The formula that makes smaller MobileViTv2 out of a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from .cost import WIDTHS, Cost
from .factors import Factors
from .pareto import Front
from .process import fitted


class Formula:
    """Resolution r and depths d_i, d_m as functions of the cost c, regressed on the Pareto front; the width w from what is left of it.

        log r(c), log d_i(c), log d_m(c):  Gaussian processes over log c, linear + Matérn 5/2 + white noise
        w(c):                              the positive root of a(r, d_i, d_m) w² + b(r, d_i, d_m) w = c  for multiply-adds (`counts`)

    The form is that of TinyNet (arXiv 2010.14819, section 3.3), where w = sqrt(c / (d r²)). At a cost that lies between those of the
    samples, r and the depths stay inside of theirs; beyond them the linear parts go on as power laws, inside of `limits`.
    """

    def __init__(self, front: Front, cost: Cost, sampled: Sequence[Factors], limits: dict[str, tuple[float, float]], seed: int = 0) -> None:
        self.cost, self.limits = cost, limits
        columns = zip(*sampled, strict=True)
        self._known = {name: (min(column), max(column)) for name, column in zip(Factors._fields, columns, strict=True)}
        self._costs = cost.of(sampled)
        self._middle, self._spread = np.log(front.costs).mean(), np.log(front.costs).std() or 1.0
        kernel = ConstantKernel(1.0) * DotProduct(1.0, "fixed") + ConstantKernel(0.1) * Matern(1.0, (0.3, 1e2), nu=2.5)
        self._curves = {}
        for name in ("resolution", "depth_ir", "depth_vit"):
            values = np.log([getattr(each, name) for each in front.settings])
            process = GaussianProcessRegressor(kernel + WhiteKernel(0.05, (1e-6, 1.0)), normalize_y=True, random_state=seed)
            self._curves[name] = fitted(process, self._input(front.costs), values)

    def at(self, budget: float) -> Factors:
        """The factors for a cost, none of them rounded but the resolution."""
        limits = self._known if self._costs.min() <= budget <= self._costs.max() else self.limits
        values = {}
        for name, process in self._curves.items():
            value = float(np.exp(process.predict(self._input(np.array([budget])))[0]))
            values[name] = min(max(value, limits[name][0]), limits[name][1])
        factors = Factors(round(values["resolution"]), 1.0, values["depth_ir"], values["depth_vit"])
        return factors._replace(width=self.width(factors, budget))

    def width(self, factors: Factors, budget: float) -> float:
        """What is left of the budget, inside of WIDTHS."""
        return min(max(self.cost.width(factors, budget), WIDTHS[0]), WIDTHS[1])

    def _input(self, costs: np.ndarray) -> np.ndarray:
        return (np.log(costs)[:, None] - self._middle) / self._spread
