"""Trained and measured settings: a folder with samples.csv, one line a setting, and recipe.json, which says how they were made."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvit_kernels.files import write_text

from .factors import Factors

SHIPPED = Path(__file__).with_name("samples")
_COLUMNS = ("index", *Factors._fields, "macs", "params", "top1", "heldout_samples", "steps", "seconds")


@dataclass(frozen=True)
class Sample:
    """top1: accuracy on `heldout_samples` images after `steps` steps, `seconds` of training.

    latency: ms of one image by (precision, threads). macs, params: with the classes of the data it was trained on.
    """

    index: int
    factors: Factors
    macs: int
    params: int
    top1: float
    heldout_samples: int
    steps: int
    seconds: float
    latency: dict[tuple[str, int], float] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleSet:
    """What a folder holds."""

    samples: tuple[Sample, ...]
    recipe: dict[str, Any]

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The smallest and the largest value of each factor."""
        columns = zip(*(sample.factors for sample in self.samples), strict=True)
        return {name: (min(column), max(column)) for name, column in zip(Factors._fields, columns, strict=True)}


def read(folder: Path) -> SampleSet:
    """Raises FileNotFoundError, and ValueError for files that are not such a table."""
    table, recipe = folder / "samples.csv", folder / "recipe.json"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            samples = tuple(_sample(row) for row in csv.DictReader(file))
        document = json.loads(recipe.read_text(encoding="utf-8"))
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"samples: expected what `scale sample` writes in {str(folder)!r}, got other files ({error!r})") from error
    except ValueError as error:
        raise ValueError(f"samples: expected numbers in {str(table)!r} ({error})") from error
    return SampleSet(samples, document)


def write(folder: Path, samples: Iterable[Sample]) -> None:
    """The table, whole or not at all; settings in their order."""
    ordered = sorted(samples, key=lambda sample: sample.index)
    timed = sorted({key for sample in ordered for key in sample.latency})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(f"{precision}_{threads}t_ms" for precision, threads in timed)])
    for sample in ordered:
        row: list[Any] = [sample.index, *sample.factors, sample.macs, sample.params, sample.top1, sample.heldout_samples, sample.steps]
        times = (f"{sample.latency[key]:.4f}" if key in sample.latency else "" for key in timed)
        writer.writerow([*row, f"{sample.seconds:.1f}", *times])
    write_text(folder / "samples.csv", text.getvalue())


def _sample(row: dict[str, str]) -> Sample:
    latency = {}
    for name, value in row.items():
        if name.endswith("t_ms") and value:
            precision, _, threads = name.removesuffix("t_ms").rpartition("_")
            latency[precision, int(threads)] = float(value)
    factors = Factors(int(row["resolution"]), float(row["width"]), float(row["depth_ir"]), float(row["depth_vit"]))
    counts = (int(row["macs"]), int(row["params"]), float(row["top1"]), int(row["heldout_samples"]), int(row["steps"]))
    return Sample(int(row["index"]), factors, *counts, float(row["seconds"]), latency)
