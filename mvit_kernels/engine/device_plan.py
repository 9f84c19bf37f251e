"""A plan of a GPU: calls of ops in order, captured in one CUDA graph for each batch size.

A graph reads and writes memory of its own. Images are copied into it and results out of it, so callers never see that memory; calls from
several threads and streams run one after another. All graphs of a plan share one pool of memory, as they never run at the same time.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mvit_kernels.graph import Program
from mvit_kernels.graph.passes import fuse_dynamic
from mvit_kernels.ops.backend import requested
from mvit_kernels.ops.moments import keeping_parts
from mvit_kernels.ops.packing import holding, recalling

from .device_report import profile_of, report_of
from .lower_calls import Call, lower_calls
from .report import PlanReport, Profile
from .steps import Value

Tensor = torch.Tensor
MOST_GRAPHS = 8  # batch sizes at hand
# One capture at a time in a process: another's synchronization would end it.
_capturing = threading.Lock()


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    input: Tensor
    outputs: list[Tensor]
    weights: list[Any]  # packed, which the graph reads and others may forget


class DevicePlan:
    """For images of one size (C, H, W), any number of them.

    Attributes:
        program: gives what it was made of, which a file has of it (`described.py`).
        uncaptured: why its calls run one by one and not as a graph, where one of torch's cannot be captured; else None.
    """

    def __init__(self, program: Program, dtype: torch.dtype, device: torch.device, again: Callable[[], Program] | None = None) -> None:
        """Of a float or an integer program; floats are stored as dtype. again: makes the program once more, for a file; without it the plan
        keeps the program, with weights on the host that the device has copies of."""
        self.program = again or (lambda: program)
        fused = fuse_dynamic(program)
        self.device, self.structure, self.outputs = device, program.structure, fused.outputs
        self.calls = tuple(lower_calls(fused, dtype, device))
        self.input = Value(program["input"].size, dtype, channels_last=False)
        self.uncaptured: str | None = None
        last: dict[str, int] = {}
        for i, call in enumerate(self.calls):
            for name in (*call.inputs, *_results(call)):  # a result that nobody takes is gone at once
                last[name] = i
        self._done = [[name for name in last if last[name] == i and name not in self.outputs] for i in range(len(self.calls))]
        self._graphs: OrderedDict[tuple[int, bool, str], _Graph] = OrderedDict()
        self._held: list[Any] = []  # packed weights that graphs of callers read
        self._lock = threading.Lock()
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._pool = torch.cuda.graph_pool_handle()
                self._free = torch.cuda.Event()  # when the memory of the graphs was last read
            # What it holds may be of another stream than the last replay, and be given away while that still runs.
            weakref.finalize(self, _wait, self._free).atexit = False

    def run(self, x: Tensor, threads: int = 0) -> list[Tensor]:
        """x (B, C, H, W) on the device, of any float dtype and strides; results in the dtypes of the plan.

        It waits for nothing, but where the graph of a batch size is captured, at its first call, or an old one is given up.
        """
        if self.device.type != "cuda":
            return self.call_all(x)
        with torch.cuda.device(self.device):
            if torch.cuda.is_current_stream_capturing():  # a graph of the caller's, of which nobody knows how long it lives
                # What all of the process forgot after an optimizer's step is as it was when graphs of the plan were captured.
                known = [use for held in list(self._graphs.values()) for use in held.weights]
                with recalling(known), holding() as weights:
                    results = self.call_all(x)
                self._held += weights
                return results
            if x.shape[0] == 0 or self.uncaptured:
                return self.call_all(x)
            with self._lock:
                held = self._graph_for(x)
                if held is None:
                    return self.call_all(x)
                stream = torch.cuda.current_stream()
                stream.wait_event(self._free)
                held.input.copy_(x, non_blocking=True)
                held.graph.replay()
                results = [y.clone() for y in held.outputs]
                self._free.record(stream)
        return results

    def close(self) -> None:
        """Wait until nothing reads the memory of its graphs any more: before it is given up."""
        if self.device.type == "cuda":
            self._free.synchronize()

    def call_all(self, x: Tensor, watch: Callable[[Call, list[Tensor]], None] | None = None) -> list[Tensor]:
        """Call by call, on the current stream. watch: sees each call and its inputs."""
        # What ops make once and keep must not be tensors of inference mode: `lower_calls`.
        modes = torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False), keeping_parts()
        with contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            values = {"input": x.detach().to(self.input.dtype)}
            for call, done in zip(self.calls, self._done, strict=True):
                inputs = [values[name] for name in call.inputs]
                if watch is not None:
                    watch(call, inputs)
                y = call.run(*inputs)
                values.update(zip(_results(call), y if call.collects else (y,), strict=True))
                del inputs, y
                for name in done:
                    del values[name]
            return [values[name] for name in self.outputs]

    def _graph_for(self, x: Tensor) -> _Graph | None:
        """Captured at the first batch of its size, in the memory format of that one: the copy of others changes theirs."""
        key = x.shape[0], x.is_contiguous(memory_format=torch.channels_last), requested()
        held = self._graphs.get(key)
        if held is not None:
            self._graphs.move_to_end(key)
            return held
        with _capturing:
            held = self._captured(x, _format(key[1]))
        if held is None:
            return None
        while len(self._graphs) >= MOST_GRAPHS:
            self.close()
            self._graphs.popitem(last=False)
        self._graphs[key] = held
        return held

    def _captured(self, x: Tensor, memory_format: torch.memory_format) -> _Graph | None:
        with torch.inference_mode(False):  # later calls may be in no such mode, and write to it
            static = torch.empty(x.shape, dtype=self.input.dtype, device=self.device, memory_format=memory_format)
            static.copy_(x)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # A capture that fails leaves its stream the current one: the outer block puts that right.
        with torch.cuda.stream(stream):
            self.call_all(static)  # kernels are compiled and weights arranged before the capture, inside of which nothing runs
            torch.cuda.synchronize()
            try:
                with holding() as weights, torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = self.call_all(static)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                foreign = [call.name for call in self.calls if call.foreign]
                if not foreign:
                    raise
                _give_back_random_numbers()
                self.uncaptured = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                warnings.warn(
                    f"mvit_kernels: the network runs call by call, not as a CUDA graph: torch runs {', '.join(foreign)}, and something"
                    f" there cannot be captured ({self.uncaptured})",
                    stacklevel=6,
                )
                return None
        return _Graph(graph, static, outputs, weights)

    def report(self) -> PlanReport:
        if self.device.type != "cuda":
            return report_of(self)
        with torch.cuda.device(self.device), _capturing:  # it compiles kernels and arranges weights, as a first call does
            return report_of(self)

    def profile(self, x: Tensor, repeats: int) -> Profile:
        with torch.cuda.device(self.device), self._lock, _capturing:
            return profile_of(self, x, repeats)

    @property
    def arena_bytes(self) -> int:
        """The most that results of one image take while they are wanted."""
        sizes, now, most = {"input": self.input.bytes}, self.input.bytes, 0
        for call, done in zip(self.calls, self._done, strict=True):
            sizes[call.name] = call.result.bytes
            now += call.result.bytes
            most = max(most, now)
            now -= sum(sizes.get(name, 0) for name in done)
        return most


def _give_back_random_numbers() -> None:
    """A capture that fails keeps the state of the device's generator, which then refuses whatever else draws numbers: a dropout, randn."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


def _wait(event: torch.cuda.Event) -> None:
    if not torch.cuda.is_current_stream_capturing():  # where nothing may wait, and the garbage of others is collected too
        event.synchronize()


def _results(call: Call) -> tuple[str, ...]:
    return (call.name, f"{call.name}.moments") if call.collects else (call.name,)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
