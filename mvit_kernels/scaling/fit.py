"""The surfaces of a set of samples."""

from __future__ import annotations

from .surface import Surface
from .table import SampleSet


def accuracy_surface(samples: SampleSet, seed: int = 0) -> Surface:
    """Top-1 over the factors."""
    _require(samples)
    counts = min(each.heldout_samples for each in samples.samples)
    return Surface([each.factors for each in samples.samples], [each.top1 for each in samples.samples], "logit", counts=counts, seed=seed)


def latency_surface(samples: SampleSet, precision: str, threads: int, seed: int = 0) -> Surface:
    """Milliseconds over the factors. ValueError where the samples were not all timed so."""
    _require(samples)
    key = (precision, threads)
    if not all(key in each.latency for each in samples.samples):
        known = ", ".join(f"{precision} on {threads}" for precision, threads in timed(samples)) or "none"
        raise ValueError(f"latency: expected one of those that every sample has ({known}), got {precision} on {threads} threads")
    return Surface([each.factors for each in samples.samples], [each.latency[key] for each in samples.samples], "log", seed=seed)


def timed(samples: SampleSet) -> list[tuple[str, int]]:
    """(precision, threads) of the latencies that every sample has."""
    return sorted(set.intersection(*(set(each.latency) for each in samples.samples))) if samples.samples else []


def _require(samples: SampleSet) -> None:
    if len(samples.samples) < 5:
        raise ValueError(f"samples: expected at least 5 settings, got {len(samples.samples)}")
