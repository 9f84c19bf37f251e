"""What a plan of a GPU does, call by call, and how long each call takes."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from mvit_kernels.ops.backend import Chosen, hearing
from mvit_kernels.ops.packing import holding

from .lower_calls import Call
from .report import PlanReport, Profile, Row, boundaries, kind_of, timed

if TYPE_CHECKING:
    from .device_plan import DevicePlan

Tensor = torch.Tensor
_COPIES = 4  # of a call in the graph that times it
_MATRIX = 8192  # rows and columns of the product that shows the ceiling


def report_of(plan: DevicePlan) -> PlanReport:
    """One image of zeros says which kernels take which call."""
    return _report(plan, _rows(plan, torch.zeros(1, *plan.input.size, dtype=plan.input.dtype, device=plan.device)))


def profile_of(plan: DevicePlan, x: Tensor, repeats: int) -> Profile:
    """Each call by itself: the median of `repeats` replays of a graph that holds it a few times."""
    times: list[float] = []
    plain = _rows(plan, x)
    plan.call_all(x, lambda call, inputs: times.append(_seconds(call, inputs, repeats)))
    batch, ceilings = max(x.shape[0], 1), _ceilings(plan.device, plan.input.dtype)
    rows = tuple(timed(row, seconds / batch, ceilings) for row, seconds in zip(plain, times, strict=True))
    return Profile(**{**vars(_report(plan, plain)), "rows": rows}, batch=x.shape[0], ceilings=ceilings)


def _report(plan: DevicePlan, rows: tuple[Row, ...]) -> PlanReport:
    weights = sum(call.weight_bytes for call in plan.calls)
    return PlanReport(rows, 0, _name(plan.device), plan.arena_bytes, weights, boundaries(rows))


def _rows(plan: DevicePlan, x: Tensor) -> tuple[Row, ...]:
    """Of a run of x, call by call: what ops choose depends on sizes, dtypes and the device, and is said nowhere else."""
    choices: list[list[Chosen]] = []
    with hearing(lambda chosen: choices[-1].append(chosen)):
        plan.call_all(x, lambda *_: choices.append([]))
    return tuple(_row(call, chosen) for call, chosen in zip(plan.calls, choices, strict=True))


def _row(call: Call, choices: Sequence[Chosen]) -> Row:
    backends = dict.fromkeys("torch" if each.backend == "reference" else each.backend for each in choices)
    by_torch = dict.fromkeys(f"{each.op} in plain torch ({each.reason})" for each in choices if each.reason is not None)
    reason = call.reason or "; ".join(by_torch) or None
    kind, backend = kind_of(call.op) if reason is None else "torch", "torch" if call.reason else "+".join(backends) or None
    return Row(call.op, call.name, len(call.nodes), str(call.result), kind, call.macs, call.bytes, reason, backend=backend)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _seconds(call: Call, inputs: list[Tensor], repeats: int) -> float:
    run, copies = _captured(call, inputs)
    return _median(run, repeats) / copies


def _median(run: Callable[[], object], repeats: int) -> float:
    """Seconds by CUDA events, after two runs that warm up."""
    times = []
    for i in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _captured(call: Call, inputs: list[Tensor]) -> tuple[Callable[[], object], int]:
    """(what runs the call, how often it does at once): one of torch's that cannot be captured runs once, from Python."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):  # a capture that fails leaves its stream the current one
        try:
            with holding() as weights, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                for _ in range(_COPIES):
                    call.run(*inputs)
        except RuntimeError:
            if not call.foreign:
                raise
            return functools.partial(call.run, *inputs), 1
    return functools.partial(_replay, graph, weights), _COPIES


def _replay(graph: torch.cuda.CUDAGraph, weights: Sequence[object]) -> None:
    """weights: packed, which the graph reads and must live as long."""
    graph.replay()


@functools.cache
def _ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Billions of operations a second of large products by torch."""
    floats = torch.randn(_MATRIX, _MATRIX, dtype=dtype, device=device)
    integers = torch.randint(-128, 128, (_MATRIX, _MATRIX), dtype=torch.int8, device=device)
    products = {"float": lambda: floats @ floats, "integer": lambda: torch._int_mm(integers, integers.T)}
    return {name: 2 * _MATRIX**3 / _median(product, 6) / 1e9 for name, product in products.items()}
