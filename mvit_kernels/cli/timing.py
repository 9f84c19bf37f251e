"""How this project times things against each other: in turn, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, a sample a round."""

    samples: tuple[float, ...]

    @property
    def minimum(self) -> float:
        return min(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range, 0 for a single sample."""
        if len(self.samples) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.samples, method="inclusive")
        return third - first


def interleaved(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int, calls: int = 1, settle: int = 0, label: str = ""
) -> dict[str, Timing]:
    """Time every contender once a round, after `warmup` rounds that don't count; a sample is the mean of `calls` calls.

    Each round starts with the next contender, so that none always runs behind the same neighbour. `settle` calls before a sample don't
    count: in them caches and threads, which were the neighbour's, become the contender's, as they are between the layers of a network.
    """
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in tqdm(range(-warmup, rounds), label, leave=False, disable=None):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                function = contenders[name]
                for _ in range(settle):
                    function()
                started = time.perf_counter()
                for _ in range(calls):
                    function()
                elapsed = time.perf_counter() - started
                if turn >= 0:
                    samples[name].append(elapsed / calls)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(values)) for name, values in samples.items()}
