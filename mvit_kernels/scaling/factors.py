"""The four factors that make a MobileViTv2 larger or smaller, and the box that settings of them are drawn from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from mvit_kernels.models import MobileViTv2Config

MODEL = "mobilevitv2"


class Factors(NamedTuple):
    """resolution: side of the images in pixels. width, depth_ir, depth_vit: factors of MobileViTv2-1.0, as in `MobileViTv2Config`."""

    resolution: int
    width: float
    depth_ir: float
    depth_vit: float

    @property
    def config(self) -> MobileViTv2Config:
        return MobileViTv2Config(**self._asdict())

    @property
    def arguments(self) -> dict[str, Any]:
        """What `mk.create_model(**arguments)` makes the model of."""
        return {"name": MODEL, **self._asdict()}


def shape_of(factors: Factors) -> tuple[int, ...]:
    """What rounding leaves of the factors: settings of the same shape are the same model on the same images."""
    config = factors.config
    return (
        config.resolution,
        config.stem_channels,
        *config.channels,
        *config.dims,
        *config.block_counts,
        *config.layer_counts,
    )


@dataclass(frozen=True)
class Box:
    """The range of each factor, ends included. Resolutions are multiples of `resolution_step`."""

    resolution: tuple[int, int]
    width: tuple[float, float]
    depth_ir: tuple[float, float]
    depth_vit: tuple[float, float]
    resolution_step: int = 8

    def __post_init__(self) -> None:
        for name in Factors._fields:
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"Box: {name}: expected 0 < lowest <= highest, got {low}, {high}")
        step = self.resolution_step
        if step < 1 or self.resolution[1] // step * step < self.resolution[0]:
            raise ValueError(f"Box: resolution: expected a multiple of {step} from {self.resolution[0]} to {self.resolution[1]}, got none")

    def draw(self, count: int, seed: int) -> list[Factors]:
        """`count` settings of different shapes that fill the box evenly: a scrambled Sobol sequence over the logarithms of the factors.

        The first settings of a longer draw are those of a shorter one. ValueError where the box holds fewer shapes.
        """
        from scipy.stats import qmc

        lows, highs = (np.log([getattr(self, name)[end] for name in Factors._fields]) for end in (0, 1))
        sequence = qmc.Sobol(len(lows), seed=seed)
        drawn: dict[tuple[int, ...], Factors] = {}
        for _ in range(1 + count // 8):
            for point in np.exp(lows + (highs - lows) * sequence.random(64)):
                factors = self._rounded(point)
                drawn.setdefault(shape_of(factors), factors)
            if len(drawn) >= count:
                return list(drawn.values())[:count]
        raise ValueError(f"Box: count: expected at most the {len(drawn)} models that were found in {asdict(self)}, got {count}")

    def _rounded(self, point: np.ndarray) -> Factors:
        resolution, width, depth_ir, depth_vit = (float(value) for value in point)
        step = self.resolution_step
        lowest, highest = math.ceil(self.resolution[0] / step), self.resolution[1] // step
        side = step * min(max(round(resolution / step), lowest), highest)
        return Factors(side, round(width, 4), round(depth_ir, 4), round(depth_vit, 4))
