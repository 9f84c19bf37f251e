"""How often each value occurs among the results of a float program, over all calibration images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tqdm import tqdm

from mvit_kernels.graph import Node, Program, run

from .calibrate import Range
from .share import ALONE, Share

Tensor = torch.Tensor
BINS = 8192  # 32 for each step of 8 bits


@dataclass(frozen=True)
class Histogram:
    """counts (BINS,) float64 of values in bins of one width from low to high."""

    low: float
    high: float
    counts: Tensor

    def centers(self) -> Tensor:
        """(BINS,) float64."""
        return self.low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * ((self.high - self.low) / BINS)

    def quantiles(self, tail: float) -> tuple[float, float]:
        """What a share of `tail` of all values lies below, and what the same share lies above."""
        up, down = self.counts.cumsum(0), self.counts.flip(0).cumsum(0)
        most = tail * float(up[-1])
        width = (self.high - self.low) / BINS
        below, above = int((up <= most).sum()), int((down <= most).sum())
        return self.low + below * width, self.high - above * width

    def squared_error(self, scale: float, zero_point: int, bits: int) -> float:
        """The mean of (x - Q(x))^2."""
        x = self.centers()
        q = (x / scale).round().clamp(-zero_point, 2**bits - 1 - zero_point)
        return float((self.counts * (scale * q - x).square()).sum() / self.counts.sum())


Part = tuple[str, int, int]  # the name of a result, and which channels of it: first, and one past the last (-1: to the end)


def histograms(
    program: Program, batches: list[Tensor], ranges: Mapping[str, Range], parts: set[Part], progress: bool, share: Share = ALONE
) -> dict[Part, Histogram]:  # fmt: skip
    """Of parts of results, over the ranges that calibration showed."""
    wanted: dict[str, list[Part]] = {}
    for part in parts:
        wanted.setdefault(part[0], []).append(part)
    ends = {
        part: (float(channels(ranges[part[0]].low, part, 0).min()), float(channels(ranges[part[0]].high, part, 0).max())) for part in parts
    }
    counts = {part: torch.zeros(BINS, dtype=torch.float64) for part in parts}

    def watch(node: Node, y: Tensor) -> None:
        for part in wanted.get(node.name, ()):
            low, high = ends[part]
            x = channels(y, part, 1).reshape(-1)
            index = ((x - low) * (BINS / (high - low if high > low else 1.0))).long().clamp_(0, BINS - 1)
            counts[part] += torch.bincount(index, minlength=BINS)

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _, batch in tqdm(share.of(batches), desc="histograms", unit="batch", leave=False, disable=None if progress else True):
            run(program, batch, watch)
    pieces = share.gathered({share.rank: counts})  # whole numbers: their sums are exact
    return {part: Histogram(*ends[part], torch.stack([piece[part] for piece in pieces]).sum(0)) for part in parts}


def channels(x: Tensor, part: Part, axis: int) -> Tensor:
    _, first, end = part
    return x.narrow(axis, first, (x.shape[axis] if end < 0 else end) - first)
