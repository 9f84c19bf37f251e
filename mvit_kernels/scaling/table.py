"""Trained and measured settings: a folder with samples.csv, one line a setting, and recipe.json, which says how they were made."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvit_kernels.files import write_text
from mvit_kernels.messages import shown

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
        rows = _rows(table)
        document = json.loads(recipe.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"samples: expected what `scale sample` writes in {str(folder)!r}, got other files ({error!r})") from error
    if not isinstance(document, dict):
        raise ValueError(f"samples: expected a JSON object in {str(recipe)!r}, got {shown(document)}")
    samples = list[Sample]()
    for line, row in enumerate(rows, 2):
        try:
            samples.append(_sample(row))
        except (KeyError, TypeError) as error:
            raise ValueError(f"samples: expected what `scale sample` writes in {str(folder)!r}, got other files ({error!r})") from error
        except (ValueError, OverflowError) as error:
            raise ValueError(f"samples: expected numbers of a setting in line {line} of {str(table)!r} ({error})") from error
    if twice := [index for index, count in Counter(each.index for each in samples).items() if count > 1]:
        raise ValueError(f"samples: expected each index once in {str(table)!r}, got {twice[0]} again")
    return SampleSet(tuple(samples), document)


def has_samples(folder: Path) -> bool:
    """Whether anything stands below the first line of a table in the folder."""
    table = folder / "samples.csv"
    return table.is_file() and len(table.read_bytes().splitlines()) > 1


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


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _sample(row: dict[str, str]) -> Sample:
    if None in row:  # where csv puts what stands behind the last column
        raise TypeError("more values than columns")
    latency = {}
    for name, value in row.items():
        if name.endswith("t_ms") and value:
            precision, _, threads = name.removesuffix("t_ms").rpartition("_")
            latency[precision, int(threads)] = float(value)
    factors = Factors(int(row["resolution"]), float(row["width"]), float(row["depth_ir"]), float(row["depth_vit"]))
    counts = (int(row["macs"]), int(row["params"]), float(row["top1"]), int(row["heldout_samples"]), int(row["steps"]))
    sample = Sample(int(row["index"]), factors, *counts, float(row["seconds"]), latency)
    _ = factors.config  # raises ValueError for what makes no network
    if not 0 <= sample.top1 <= 1:
        raise ValueError(f"top1: expected a share, got {sample.top1}")
    if sample.index < 0 or min(sample.macs, sample.params, sample.heldout_samples) < 1:
        raise ValueError(f"expected macs, params and heldout_samples of at least 1 and no negative index, got {row}")
    if not all(0 < each < math.inf for each in latency.values()):
        raise ValueError(f"expected positive milliseconds, got {list(latency.values())}")
    return sample
