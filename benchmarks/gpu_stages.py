"""The stages of gpu_check.py that compute, each in a process of its own: tasks, one after another, as long as there is time for them.

A task that fails costs no other. Where it leaves the GPU unusable for its process, hangs or ends that, gpu_check.py starts another, which
goes on behind it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import itertools
import os
import statistics
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_records as records
import torch
from gpu_cases import RESIDUALS, Case, cases, integer_residual, residual, wrong
from gpu_peers import judged, quantized, settled
from gpu_tune import beside_each_other, seconds

import mvit_kernels as mk
from mvit_kernels.machine import usable_cores
from mvit_kernels.ops import cuda_support

Record = records.Record
Task = tuple[Record, str, Callable[[], Record]]  # what it is about, the part of that, and what finds its values

ROOT = Path(__file__).resolve().parents[1]
DEVICE, DTYPE = "cuda", torch.float16
BACKENDS = ("cuda", "triton")
BATCHES = (128, 1)
MAPS = ((128, 32), (192, 16), (256, 8))  # (dim, side) of the attention blocks of MobileViTv2-1.0 at 256 x 256
MODELS, SIZE = ("mobilevitv2_100", "mobilevit_s"), 256
NETWORK_BATCHES = (256, 1)
LONGEST = 45  # seconds of a task, which ends its process; and no more than a part of those that are left
PART, LEAST = 0.4, 15
COMPILING = 0.5  # of the time of a stage, at most
MOST_PROCESSES = 15  # which all have inputs on the GPU


def main(stage: str) -> int:
    first = not records.read(os.environ[records.RECORDS])
    if first and stage in COMPILED:
        shares, end = max(1, min(MOST_PROCESSES, usable_cores() - 1)), float(os.environ[records.UNTIL])
        beside_each_other(COMPILED[stage], [(share, shares) for share in range(shares)], end - (1 - COMPILING) * (end - time.time()))
    return perform(STAGES[stage]())


def perform(tasks: Iterator[Task]) -> int:
    """Each that no process before this one has begun."""
    seen = {records.key(each) for each in records.read(os.environ[records.RECORDS]) if "of" in each}
    for of, part, task in tasks:
        word = {"of": of, "part": part}
        if records.key(word) in seen:
            continue
        if records.late():
            break
        records.write(word | {"begun": True})
        faulthandler.dump_traceback_later(longest(), exit=True)
        try:
            values = task()
        except Exception as error:
            traceback.print_exc()
            values = {"error": f"{type(error).__name__}: {error}"[:500]}
        faulthandler.cancel_dump_traceback_later()
        records.write(word | values)
        if "error" in values and records.broken():
            return 1
    return 0


def longest() -> float:
    """Seconds of a task: one that hangs leaves some to the others, in another process."""
    return min(LONGEST, max(LEAST, PART * (float(os.environ[records.UNTIL]) - time.time())))


# --- networks: milliseconds of one batch, by CUDA events ---

VARIANTS = ("compile", "compile, int8", "accelerate", "eager")  # the last has nothing to compile


def networks() -> Iterator[Task]:
    records.write({"planned": len(MODELS) * len(NETWORK_BATCHES) * len(VARIANTS)})
    for name, batch, variant in itertools.product(MODELS, NETWORK_BATCHES, VARIANTS):
        of = {"model": name, "batch": batch, "variant": variant}
        yield of, "", functools.partial(_network_times, name, batch, variant)


def _network_times(name: str, batch: int, variant: str) -> Record:
    with torch.inference_mode():
        model, x, right = _network(name, variant), _images(batch), _logits(name, batch)
        off = float((model(x).float() - right).abs().max() / right.abs().max())
        return {"ms": _milliseconds(functools.partial(model, x)), **judged(variant, off)}


@functools.cache
def _network(name: str, variant: str) -> Callable[[torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)  # all variants have the same weights
    with torch.inference_mode(False):
        model = settled(name, SIZE)
        image = torch.empty(1, 3, SIZE, SIZE, device=DEVICE)
        if variant == "compile, int8":
            return mk.compile(quantized(model, SIZE), image)
        model = model.to(DEVICE, DTYPE, memory_format=torch.channels_last)
        return {"eager": lambda: model, "accelerate": lambda: mk.accelerate(model), "compile": lambda: mk.compile(model, image)}[variant]()


@functools.cache
def _images(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, SIZE, SIZE, generator=generator).to(DEVICE, DTYPE).contiguous(memory_format=torch.channels_last)


@functools.cache
def _logits(name: str, batch: int) -> torch.Tensor:
    """Of the images, by plain torch."""
    return _network(name, "eager")(_images(batch)).float()


def _milliseconds(function: Callable[[], object]) -> float:
    times = []
    for turn in range(23):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(begin.elapsed_time(end))
    return round(statistics.median(times), 3)


def _compile_networks(share: int, shares: int) -> None:
    torch.set_num_threads(1)
    for name, batch, variant in list(itertools.product(MODELS, NETWORK_BATCHES, VARIANTS[:-1]))[share::shares]:
        with torch.inference_mode():
            _network(name, variant)(_images(batch))


# --- ops: microseconds of a call inside a CUDA graph, of ours and of plain torch; and, after all of them, of what Inductor compiles ---

PARTS = ("ours", "inductor")


def ops() -> Iterator[Task]:
    names = [case.name for case in cases("cpu", 1, 4, 8, torch.float32, ())]
    records.write({"planned": len(BATCHES) * len(MAPS) * len(names) + 2 * len(RESIDUALS)})
    copy, product = _copy_rate(), _product_rate()
    records.write({"copy_gb_s": round(copy / 1e9), "fp16_tflop_s": round(product / 1e12)})
    for of, part, case in _parts():
        if isinstance(case, Exception):
            yield of, part, functools.partial(_raise, case)
        else:
            yield of, part, functools.partial(_op_times, case, part, copy, product)


def _parts() -> Iterator[tuple[Record, str, Case | Exception]]:
    """The most wanted first; an exception where no inputs could be made."""
    for batch, part in itertools.product(BATCHES, PARTS):
        for name, of_map in _maps(batch):
            of = {"batch": batch, "map": name}
            try:
                for case in of_map:
                    if part == "ours" or case.compiled:
                        yield {"op": case.name, **of}, part, case
            except Exception as error:
                yield {"op": "inputs", **of}, part, error
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


def _maps(batch: int) -> Iterator[tuple[str, Iterator[Case]]]:
    usable = tuple(each for each in BACKENDS if each != "cuda" or cuda_support.native is not None)
    for dim, side in MAPS:
        yield f"{dim}x{side}", cases(DEVICE, batch, side, dim, DTYPE, usable)
    for block in RESIDUALS if batch == max(BATCHES) else ():
        yield "x".join(map(str, block)), _residuals(batch, block, usable)


def _residuals(batch: int, block: tuple[int, ...], usable: tuple[str, ...]) -> Iterator[Case]:
    yield residual(DEVICE, batch, block, DTYPE, usable)
    yield integer_residual(DEVICE, batch, block, usable)


def _contenders(case: Case, part: str) -> dict[str, Callable[[], object]]:
    if part == "inductor":
        return {"inductor": _by_inductor(case.compiled)}
    return {**case.ours, "eager": case.plain} if case.peer else dict(case.ours)


def _by_inductor(function: Callable[[], object] | None) -> Callable[[], object]:
    torch.compiler.reset()  # each size is one of its own
    return torch.compile(function, dynamic=False)


def _op_times(case: Case, part: str, copy: float, product: float) -> Record:
    """Of all that are right."""
    errors = wrong(case) if part == "ours" else {}
    values: Record = {"floor_us": round(1e6 * max(case.bytes / copy, case.operations / product), 3)}
    for name, function in _contenders(case, part).items():
        try:
            if name not in errors:
                values[f"{name}_us"] = microseconds(function)
        except Exception as error:
            traceback.print_exc()
            errors[name] = f"{type(error).__name__}: {error}"
    return values | ({"error": "; ".join(f"{name}: {error}" for name, error in errors.items())[:500]} if errors else {})


def _raise(error: Exception) -> Record:
    raise error


def microseconds(function: Callable[[], object]) -> float:
    """As many calls in the graph that times them as take a millisecond."""
    function()  # what is compiled, packed and chosen by a first call
    one = seconds(function, 3, 3)
    copies = min(200, int(1e-3 / one))
    return round(1e6 * (seconds(function, copies) if copies > 3 else one), 3)


def _copy_rate() -> float:
    """Bytes a second, read and written, of torch's copy or of a kernel that does as little, whichever is faster."""
    source, target = (torch.zeros(2**27, dtype=torch.float32, device=DEVICE) for _ in range(2))
    ways = (lambda: target.copy_(source), lambda: torch.neg(source, out=target))
    return 2e6 * source.nbytes / min(map(microseconds, ways))


def _product_rate() -> float:
    """Operations a second of torch's product of large float16 matrices."""
    a = torch.randn(8192, 8192, dtype=DTYPE, device=DEVICE)
    return 2e6 * 8192**3 / microseconds(lambda: a @ a)


def _compile_ops(share: int, shares: int) -> None:
    """Maps of an op have kernels in common: one process compiles them all. What Inductor makes is of one size."""
    torch.set_num_threads(1)
    for of, part, case in _parts():
        whose = of["op"] if part == "ours" else f"{of} {part}"
        if not isinstance(case, Exception) and zlib.crc32(whose.encode()) % shares == share:
            for name, function in _contenders(case, part).items():
                if name != "eager":
                    with contextlib.suppress(Exception):  # the task shows it
                        function()


# --- sanitizer: the CUDA kernels on odd sizes, by a process that compute-sanitizer watches ---


def sanitizer() -> Iterator[Task]:
    """As many of the cases of tests/gpu as there is time for: in turn one of each op."""
    if cuda_support.native is None:
        records.write({"skipped": f"there are no CUDA kernels: {cuda_support.REASON}"})
        return
    sys.path.insert(0, str(ROOT / "tests"))
    import cuda_cases

    device = torch.device(DEVICE, 0)
    made = {op: (cuda_cases.assert_equal_bits, {name: (case,) for name, case in of_op().items()}) for op, of_op in cuda_cases.CASES.items()}
    made["separable_attention_block"] = cuda_cases.assert_attention_block, cuda_cases.attention_blocks()
    made["inverted_residual"] = cuda_cases.assert_residual_block, cuda_cases.residual_blocks()
    columns = [
        [({"op": op, "case": name}, "", functools.partial(_checked, check, *inputs, device)) for name, inputs in each.items()]
        for op, (check, each) in made.items()
    ]
    records.write({"planned": sum(map(len, columns))})
    yield from filter(None, itertools.chain.from_iterable(itertools.zip_longest(*columns)))


def _checked(check: Callable[..., object], *arguments: object) -> Record:
    check(*arguments)
    return {}


STAGES = {"networks": networks, "ops": ops, "sanitizer": sanitizer}
COMPILED = {"networks": _compile_networks, "ops": _compile_ops}  # beside each other, before anything is timed

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
