"""Pictures of fitted surfaces, and of models against the plain family."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvit_kernels.files import replace_file

from .cost import Cost
from .downsize import Derived, Downsizer
from .factors import Factors
from .surface import Surface

_POINTS, _GRID = 60, 30
_LABELS = {"resolution": "resolution r", "width": "width w", "depth_ir": "depth of inverted residuals", "depth_vit": "depth of attention"}


def surfaces(surface: Surface, ranges: dict[str, tuple[float, float]], title: str, path: Path) -> None:
    """Slices of the four-dimensional fit through the middle of the samples: each factor alone, and each pair, mean over deviation. Factors
    that are the same in all samples have none."""
    middle = {name: float(np.exp(np.mean(np.log(ends)))) for name, ends in ranges.items()}
    varied = [name for name, ends in ranges.items() if ends[0] < ends[1]] or Factors._fields[:1]
    axes_of = {name: np.geomspace(*ranges[name], _POINTS) for name in varied}
    pairs = list(itertools.combinations(varied, 2))
    figure = Figure(figsize=(3.3 * max(len(pairs), 3), 9.5 if pairs else 3.5), layout="constrained")
    top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 2)).flat if pairs else (figure, None)
    for axes, name in zip(top.subplots(1, len(varied), squeeze=False).flat, varied, strict=True):
        mean, deviation = surface.predict([_at(middle, {name: value}) for value in axes_of[name]])
        axes.fill_between(axes_of[name], mean - 2 * deviation, mean + 2 * deviation, alpha=0.25, linewidth=0)
        axes.plot(axes_of[name], mean)
        axes.scatter([getattr(each, name) for each in surface.settings], surface.values, s=8, color="0.5")
        axes.set(xscale="log", xlabel=_LABELS[name])
    for column, (across, up) in zip(below.subplots(2, len(pairs), squeeze=False).T if below else (), pairs, strict=True):
        xs, ys = (np.geomspace(*ranges[name], _GRID) for name in (across, up))
        prediction = surface.predict([_at(middle, {across: x, up: y}) for y in ys for x in xs])
        for axes, values, what in zip(column, prediction, ("mean", "deviation"), strict=True):
            drawn = axes.pcolormesh(xs, ys, values.reshape(_GRID, _GRID), shading="nearest")
            axes.scatter(*([getattr(each, name) for each in surface.settings] for name in (across, up)), s=5, color="white", alpha=0.7)
            axes.set(xscale="log", yscale="log", xlabel=_LABELS[across], ylabel=_LABELS[up], title=what)
            figure.colorbar(drawn, ax=axes)
    others = ", ".join(f"{name} {value:.3g}" for name, value in middle.items())
    top.suptitle(
        f"{title}: mean and two deviations along each factor\nsamples in grey, of all settings of the others ({others})", fontsize="medium"
    )
    _save(figure, path)


def fronts(downsizer: Downsizer, derived: Sequence[Derived], title: str, path: Path) -> None:
    """Predicted accuracy over cost: the Pareto front, derived models, and the plain family, which only becomes narrower."""
    accuracy, cost, ranges = downsizer.accuracy, downsizer.formula.cost, downsizer.ranges
    plain = [Factors(round(ranges["resolution"][1]), width, 1.0, 1.0) for width in np.geomspace(*ranges["width"], _POINTS)]
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(cost.of(accuracy.settings), accuracy.values, s=10, color="0.6", label="samples, measured")
    _curve(axes, accuracy, cost, downsizer.front.settings, "Pareto front, predicted")
    _curve(axes, accuracy, cost, plain, f"width-scaled MobileViTv2 at {plain[0].resolution}, predicted")
    axes.errorbar(
        [each.cost for each in derived],
        [each.accuracy for each in derived],
        yerr=[2 * each.accuracy_deviation for each in derived],
        fmt="*",
        markersize=11,
        color="black",
        label="derived",
    )
    axes.set(xscale="log", xlabel=cost.unit, ylabel="top-1", title=title)
    axes.legend(loc="lower right")
    _save(figure, path)


def _curve(axes: Axes, accuracy: Surface, cost: Cost, settings: Sequence[Factors], label: str) -> None:
    costs, (mean, deviation) = cost.of(settings), accuracy.predict(settings)
    (line,) = axes.plot(costs, mean, label=label)
    axes.fill_between(costs, mean - 2 * deviation, mean + 2 * deviation, color=line.get_color(), alpha=0.15, linewidth=0)


def _at(middle: dict[str, float], values: dict[str, float]) -> Factors:
    factors = {**middle, **values}
    return Factors(round(factors["resolution"]), factors["width"], factors["depth_ir"], factors["depth_vit"])


def _save(figure: Figure, path: Path) -> None:
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))
