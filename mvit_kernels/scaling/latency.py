"""What a setting takes with the engine: one image through `mk.compile`, float or int8."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.benchmark import Timer
from tqdm import tqdm

from mvit_kernels.engine import CompiledModel, compile
from mvit_kernels.files import locked
from mvit_kernels.messages import shown
from mvit_kernels.models import create_model
from mvit_kernels.quant import QuantConfig, quantize

from . import table
from .factors import Factors
from .table import SampleSet

PRECISIONS = ("fp32", "int8")
_CALIBRATION_IMAGES = 2


def compiled(factors: Factors, precision: str, num_classes: int) -> tuple[CompiledModel, torch.Tensor]:
    """The network of a setting with random weights (seed 0), which take as long as trained ones, and an image for it."""
    if precision not in PRECISIONS:
        raise ValueError(f"latency: precision: expected one of {', '.join(PRECISIONS)}, got {shown(precision)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = create_model(**factors.arguments, num_classes=num_classes).eval()
        images = torch.rand(_CALIBRATION_IMAGES, 3, factors.resolution, factors.resolution)
    if precision == "int8":
        model = quantize(model, [images], QuantConfig(method="minmax"), progress=False)
    return compile(model, images[:1]), images[:1]


def milliseconds(network: CompiledModel, x: torch.Tensor, threads: int, seconds: float) -> float:
    """The shortest of many calls on `threads` threads, which take `seconds` together: other work on the machine only adds."""
    network.num_threads = threads
    timer = Timer("network(x)", globals={"network": network, "x": x}, num_threads=threads)
    timer.timeit(2)
    return 1e3 * min(timer.timeit(1).mean for _ in range(_calls(seconds, timer.timeit(1).mean)))


def _calls(seconds: float, one: float) -> int:
    return min(max(round(seconds / one), 5), 1000)


def measured(factors: Factors, precision: str, threads: int, num_classes: int = 1000, seconds: float = 0.3) -> float:
    """Milliseconds that one image takes here."""
    network, x = compiled(factors, precision, num_classes)
    return milliseconds(network, x, threads, seconds)


def measure(
    folder: Path,
    *,
    threads: Sequence[int] = (1, 2),
    precisions: Sequence[str] = PRECISIONS,
    seconds: float = 0.3,
    limit: float | None = None,
) -> SampleSet:
    """Time every setting in `folder` that lacks a latency of `precisions` on `threads`; the table is written as they come.

    limit: seconds after which no further setting is begun; a later call goes on from there.
    Raises ValueError where another process fills the folder: each would write the table without what the other found.
    """
    table.read(folder)  # there is no folder to lock where this raises
    with locked("measure: folder", folder):
        there = table.read(folder)
        classes = there.recipe.get("num_classes")
        if not isinstance(classes, int) or classes < 1:
            raise ValueError(f"measure: folder: expected num_classes in recipe.json of {str(folder)!r}, got {shown(classes)}")
        samples = {each.index: each for each in there.samples}
        wanted = [(precision, count) for precision in precisions for count in threads]
        started = time.monotonic()
        for each in tqdm([each for each in there.samples if not each.latency.keys() >= set(wanted)], "latency", disable=None):
            if limit is not None and time.monotonic() - started > limit:
                break
            latency = dict(each.latency)
            for precision in precisions:
                network, x = compiled(each.factors, precision, classes)
                latency |= {(precision, count): milliseconds(network, x, count, seconds) for count in threads}
            samples[each.index] = replace(each, latency=latency)
            table.write(folder, samples.values())
    return table.read(folder)
