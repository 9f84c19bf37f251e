"""What a plan does, step by step, and how long each step takes."""

from __future__ import annotations

import functools
import itertools
import operator
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mvit_kernels.ops.backend import native

from .plan import Plan, Segment
from .steps import TorchStep

Tensor = torch.Tensor


@dataclass(frozen=True)
class Row:
    """One step. Multiply-adds and bytes are of one image."""

    op: str
    node: str  # the last one of the program that it computes
    nodes: int  # how many of the program it computes
    result: str  # its size and dtype, for one image
    kind: str  # "float", "integer", "copy" or "torch"
    macs: int
    bytes: int
    reason: str | None  # why torch runs it
    seconds: float | None = None  # of one image, in a profile
    share: float | None = None  # of the arithmetic ceiling, in a profile
    backend: str | None = None  # on a GPU, whose kernels run it: "cuda", "triton", "torch" or, in several parts, "cuda+torch"

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class PlanReport:
    """A table when printed; `to_dict()` for programs."""

    rows: tuple[Row, ...]
    threads: int  # 0 on a GPU
    isa: str  # of a GPU its name
    arena_bytes: int  # of one image in work
    weight_bytes: int
    boundaries: int  # between float and integer steps

    @property
    def fallbacks(self) -> tuple[Row, ...]:
        """What torch runs."""
        return tuple(row for row in self.rows if row.kind == "torch")

    def to_dict(self) -> dict[str, Any]:
        numbers = {key: value for key, value in vars(self).items() if key != "rows"}
        return {**numbers, "rows": [row.to_dict() for row in self.rows]}

    def __str__(self) -> str:
        return "\n".join([_table(self.rows), self.summary()])

    def summary(self) -> str:
        macs = sum(row.macs for row in self.rows)
        fallbacks = f"{len(self.fallbacks)} by torch" if self.fallbacks else "none by torch"
        return (
            f"{len(self.rows)} steps, {fallbacks}, {macs / 1e6:.0f} M multiply-adds; {self.boundaries} times between float and integer; "
            f"weights {self.weight_bytes / 2**20:.1f} MiB, arena {self.arena_bytes / 2**20:.1f} MiB; {self.machine}"
        )

    @property
    def machine(self) -> str:
        return f"{self.isa}, {self.threads} threads" if self.threads else self.isa


@dataclass(frozen=True)
class Profile(PlanReport):
    """A report with times. ceilings: billions of operations a second of all threads, "float" and "integer"."""

    batch: int = 1
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of one image."""
        return sum(row.seconds or 0.0 for row in self.rows)

    def summary(self) -> str:
        macs = sum(row.macs for row in self.rows)
        return f"{self.seconds * 1e3:.3f} ms an image, {2 * macs / self.seconds / 1e9:.0f} GOP/s; {super().summary()}"

    def save_picture(self, path: str | Path) -> None:
        """A bar for each step, and a roofline: operations a second over operations a byte."""
        from .picture import draw

        draw(self, Path(path))


def _table(rows: Sequence[Row]) -> str:
    timed, of_gpu = any(row.seconds is not None for row in rows), any(row.backend is not None for row in rows)
    times = ("us", "GOP/s", "GB/s", "ceiling") if timed else ()
    lines = [("op", "kind", *(("backend",) if of_gpu else ()), "node", "result", "MMAC", "KiB", *times, "")]
    for row in rows:
        line = [row.op, row.kind, *((row.backend or "",) if of_gpu else ())]
        line += [row.node, row.result, f"{row.macs / 1e6:.2f}", f"{row.bytes / 1024:.0f}"]
        if timed:
            seconds = row.seconds or 0.0
            line += [f"{seconds * 1e6:.1f}", *(f"{each / seconds / 1e9:.0f}" if seconds else "" for each in (2 * row.macs, row.bytes))]
            line.append("" if row.share is None else f"{100 * row.share:.0f} %")
        lines.append((*line, row.reason or ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def report_of(plan: Plan, threads: int) -> PlanReport:
    rows = _rows(plan)
    return PlanReport(rows, threads, native.isa(), plan.arena_bytes, plan.weights.nbytes, boundaries(rows))


def profile_of(plan: Plan, x: Tensor, threads: int, repeats: int) -> Profile:
    """Medians of `repeats` runs, after a few that warm up."""
    runs: list[list[float]] = []
    for i in range(repeats + 3):
        seconds: list[float] = []
        begin = time.perf_counter()

        def timing(part: Segment | TorchStep, times: Any, seconds: list[float] = seconds) -> None:
            nonlocal begin
            now = time.perf_counter()
            seconds.extend(times if times is not None else [now - begin])
            begin = time.perf_counter()

        plan.run(x, threads, timing)
        if i >= 3:
            runs.append(seconds)
    batch = max(x.shape[0], 1)
    medians = [statistics.median(each) / batch for each in zip(*runs, strict=True)]
    ceilings = _ceilings(threads, native.isa(), plan.input.dtype == torch.bfloat16)
    rows = tuple(timed(row, seconds, ceilings) for row, seconds in zip(_rows(plan), medians, strict=True))
    return Profile(rows, threads, native.isa(), plan.arena_bytes, plan.weights.nbytes, boundaries(rows), x.shape[0], ceilings)


@functools.cache
def _ceilings(threads: int, isa: str, bfloat16: bool) -> dict[str, float]:
    """bfloat16: of a plan that stores floats so."""
    return {"float": (native.bf16_gflops if bfloat16 else native.fma_gflops)(threads), "integer": native.dot_gops(threads)}


def timed(row: Row, seconds: float, ceilings: dict[str, float]) -> Row:
    share = 2 * row.macs / seconds / 1e9 / ceilings[row.kind] if row.macs and row.kind in ceilings and seconds > 0 else None
    return Row(**{**vars(row), "seconds": seconds, "share": share})


def _rows(plan: Plan) -> tuple[Row, ...]:
    rows = []
    for part in plan.parts:
        if isinstance(part, Segment):
            for step in part.steps:
                rows.append(Row(step.op, step.nodes[-1], len(step.nodes), step.result, kind_of(step.op), step.macs, step.bytes, None))
        else:
            node = part.node
            target = node.settings.get("target", node.kind)
            op = target.__name__ if target is operator.getitem else str(target)
            rows.append(Row(op, node.name, 1, str(plan.values[node.name]), "torch", node.macs(), 0, part.reason))
    return tuple(rows)


def kind_of(op: str) -> str:
    if op in ("cat", "channels_last"):
        return "copy"
    return "integer" if op == "stream_sums" or (op.startswith("q") and not op.startswith("quantize")) else "float"


def boundaries(rows: Sequence[Row]) -> int:
    """How often a value goes from floats to integers or back between the first and the last integer step."""
    kinds = [row.kind == "integer" for row in rows if row.kind != "copy"]
    if True not in kinds:
        return 0
    inside = kinds[kinds.index(True) : len(kinds) - kinds[::-1].index(True)]
    return sum(a != b for a, b in itertools.pairwise(inside))
