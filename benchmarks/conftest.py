"""What the benchmarks share: how they time, and the summary that `--results FOLDER` writes."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import BLOCKS, Block

import mvit_kernels as mk
from mvit_kernels.cli.output import print_table
from mvit_kernels.cli.timing import Timing, interleaved
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions, machine_line
from mvit_kernels.ops.backend import native as native_kernels

FLOORS = ("copy", "kernel")
"""Contenders that do the least that the others of their group can get away with."""

Record = Callable[..., None]
Summary = dict[str, list[dict[str, Any]]]
_SUMMARY = pytest.StashKey[Summary]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, metavar="FOLDER", help="write a summary of every benchmark file into this folder")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SUMMARY] = {}


@functools.cache
def ceiling(integer: bool = False) -> float | None:
    """Billions of operations a second that registers allow, all threads together, on floats or bytes; None without kernels."""
    if native_kernels is None:
        return None
    measure = native_kernels.dot_gops if integer else native_kernels.fma_gflops
    return round(measure(torch.get_num_threads()), 1)


@pytest.fixture(autouse=True)
def _same_inputs_without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture(params=BLOCKS, ids=str)
def block(request: pytest.FixtureRequest) -> Block:
    return request.param


@pytest.fixture(params=["NCHW", "channels_last"])
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["cpu", "reference", "copy"])
def contender(request: pytest.FixtureRequest) -> str:
    """A backend of an op, or the floor: torch's copy of as many bytes as the op reads and writes."""
    if request.param == "cpu" and not mk.backends()["cpu"].usable:
        pytest.skip(mk.backends()["cpu"].reason)
    return request.param


@pytest.fixture
def native() -> None:
    """Skips the test where there are no native kernels to time."""
    if not mk.backends()["cpu"].usable:
        pytest.skip(mk.backends()["cpu"].reason)


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    """Only see whether the benchmarks run: pytest's --benchmark-disable."""
    return request.config.getoption("benchmark_disable")


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """record(group, contender, seconds median, spread and minimum, other fields): a line of the summary of this file."""
    lines = request.config.stash[_SUMMARY].setdefault(request.path.stem.removeprefix("bench_"), [])

    def append(group: str, contender: str, median: float, spread: float, minimum: float, **fields: Any) -> None:
        times = {"median_us": round(1e6 * median, 3), "spread_us": round(1e6 * spread, 3), "min_us": round(1e6 * minimum, 3)}
        lines.append({"group": group, "contender": contender, **times, **fields})

    return append


@pytest.fixture
def alone(benchmark: Any, record: Record) -> Callable[[str, str, Callable[[], object]], None]:
    """alone(group, contender, function): time by pytest-benchmark, which finds how many calls make a sample."""

    def time(group: str, contender: str, function: Callable[[], object]) -> None:
        benchmark.group, benchmark.name = group, contender
        benchmark(function)
        if benchmark.stats is not None:
            stats = benchmark.stats.stats
            record(group, contender, stats.median, stats.iqr, stats.min)

    return time


@pytest.fixture
def in_turn(record: Record, smoke: bool) -> Callable[..., dict[str, Timing]]:
    """in_turn(group, contenders, rounds, calls): time functions of one test against each other. With `operations`, the floor is the time
    that so many take where nothing but multiply-adds is to be done, of floats or (`integer`) of bytes."""

    def time(
        group: str, contenders: Mapping[str, Callable[[], object]], rounds: int = 25, calls: int = 1, operations: int | None = None,
        integer: bool = False,
    ) -> dict[str, Timing]:  # fmt: skip
        often = {"rounds": 1, "calls": 1} if smoke else {"rounds": rounds, "calls": calls, "settle": 1}
        times = interleaved(contenders, **often, warmup=1, label=group)
        rate = None if operations is None or smoke else ceiling(integer)
        floor = {} if operations is None or rate is None else {"floor_us": round(operations / rate / 1e3, 3)}
        for contender, timing in times.items():
            record(group, contender, timing.median, timing.spread, timing.minimum, **floor)
        return times

    return time


def pytest_terminal_summary(config: pytest.Config) -> None:
    """Print every time beside its floor and, where asked, write them with their conditions."""
    if config.getoption("benchmark_disable"):
        return
    context = conditions(shlex.join(["python", "-m", "pytest", *config.invocation_params.args])) | {
        "fma_gflops": ceiling(),
        "dot_gops": ceiling(integer=True),
    }
    folder: Path | None = config.getoption("results")
    for name, lines in config.stash[_SUMMARY].items():
        floors = {line["group"]: line["median_us"] for line in lines if line["contender"] in FLOORS}
        for line in lines:
            line.setdefault("floor_us", floors.get(line["group"]))
        columns = ("group", "contender", "median\nus", "spread\nus", "min\nus", "floor\nus")
        keys = ("median_us", "spread_us", "min_us", "floor_us")
        rows = [[line["group"], line["contender"], *("" if line[k] is None else f"{line[k]:.2f}" for k in keys)] for line in lines]
        print_table(name, columns, rows, left=2)
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"{name}.json", _text(context, lines))
    print(machine_line(context))


def _text(context: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """JSON with a line for each result, so that two runs can be compared by eye and by diff."""
    results = ",\n".join(json.dumps(line, allow_nan=False) for line in lines)
    return f'{{"conditions": {json.dumps(context, indent=1)},\n"results": [\n{results}\n]}}\n'
