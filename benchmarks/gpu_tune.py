"""Which tiles the Triton kernels run with, and which calls CUDA kernels run in their place, found on a GPU: the candidates of every kernel
are timed on the calls of two networks, and on the gradients of those whose gradients have kernels, inside of CUDA graphs, and
`mvit_kernels/triton_kernels/tuned.json` gets the fastest of each, where it is not the kernel's or the op's own choice.

Compilers take most of the time: they run beside each other, as many as there are processors, into Triton's cache on disk, before anything
is timed. What is not done in `--seconds` keeps the kernel's own choice, and so does what is less than 3 % slower with it.

    python benchmarks/gpu_tune.py
    python benchmarks/gpu_tune.py --models mobilevit_xs --batches 1 8 64    # adds to what is in the table
    python benchmarks/gpu_tune.py --models mobilevitv2_100 --batches 256 --ops separable_attention_block feed_forward --no-gradients
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import mvit_kernels as mk
from mvit_kernels.files import new_file, write_text
from mvit_kernels.machine import usable_cores
from mvit_kernels.ops import cuda_support
from mvit_kernels.ops.packing import holding
from mvit_kernels.triton_kernels import tuning
from mvit_kernels.triton_kernels.moments import join, keeping_parts

MODELS, BATCHES, SIZE = ("mobilevitv2_100", "mobilevit_s"), (1, 256), 256
# Whose gradients have kernels.
TRAINED = ("feed_forward", "group_norm", "layer_norm", "patch_attention", "separable_attention", "separable_attention_block")
TRITON: tuning.Tile = {"cuda": 0}  # of the choice between backends
LEAST_GAIN = 0.03
MOST_OFF = 0.02  # of results with another tile, in 16 bits
COMPILING = 0.6  # of the seconds
COPIES, REPEATS = 10, 5  # of a call in the graph that times it, and of the graph

Times = list[tuple[float, tuning.Tile]]  # seconds; the kernel's own choice first
Visit = Callable[[tuning.Key, list[tuning.Tile], Callable[..., object]], None]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=mk.list_models(), metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="IMAGES")
    parser.add_argument("--ops", nargs="+", metavar="OP", help="only the calls of these")
    parser.add_argument("--gradients", action=argparse.BooleanOptionalAction, default=True, help="of ops whose gradients have kernels, too")
    parser.add_argument("--seconds", type=float, default=150, help="for all of it")
    parser.add_argument("--output", type=Path, default=tuning.TABLE, metavar="FILE")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"gpu_tune: expected a machine with a GPU, torch {torch.__version__} finds none", file=sys.stderr)
        return 2
    started = time.time()
    if cuda_support.native is None:
        print(f"gpu_tune: without the CUDA kernels: {cuda_support.REASON} (make gpu-check builds them)", file=sys.stderr)
    if not os.access(new_file("gpu_tune: --output", args.output).parent, os.W_OK):  # or nobody would learn what is found
        raise PermissionError(f"gpu_tune: --output: expected a file in a folder that may be written to, got {str(args.output)!r}")
    ways = (False, True) if args.gradients else (False,)
    networks = [(model, batch, gradients) for gradients in ways for model in args.models for batch in args.batches]
    shares = max(1, min(16, usable_cores()) // len(networks))
    # What these do not compile is compiled when it is timed, and what fails there fails here, too.
    tasks = [(*network, args.ops, share, shares) for network in networks for share in range(shares)]
    beside_each_other(compile_share, tasks, started + COMPILING * args.seconds)
    print(f"compiled until {time.time() - started:.0f} s", flush=True)
    found: dict[tuning.Key, Times] = {}
    failed = 0
    faulthandler.dump_traceback_later(max(1.0, started + args.seconds - time.time()) + 60, exit=True, file=sys.__stderr__)
    for network in networks:
        try:
            failed += time_choices(*network, args.ops, found, started + args.seconds)
        except Exception:  # of one network; what it has found is written, and the others are tried
            traceback.print_exc()
            failed += 1
        finally:  # Ctrl-C, too
            write_text(args.output, text_of(merged(written(args.output), found)))
    faulthandler.cancel_dump_traceback_later()
    for key, times in found.items():
        (own, _), (least, tile) = times[0], min(times, key=lambda each: each[0])
        print(f"{' '.join(key):80} {1e6 * own:9.2f} us own {1e6 * least:9.2f} us least {list(tile.values())}")
    print(f"{len(found)} calls in {args.output} after {time.time() - started:.0f} s, {failed} failures")
    if args.ops and not found:
        print(f"gpu_tune: no call of {', '.join(args.ops)} was timed", file=sys.stderr)
    return int(failed > 0 or bool(args.ops and not found))


def beside_each_other(function: Callable[..., object], tasks: Iterable[tuple[Any, ...]], end: float) -> None:
    """function(*task), each in a process of its own, which ends at `end` if not before: compilers take most of the time, and what they make
    stays in caches on disk."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=function, args=task) for task in tasks]
    for each in processes:
        each.start()
    for each in processes:
        each.join(max(0.0, end - time.time()))
    for each in processes:
        each.kill()
        each.join(5)


@functools.cache
def plan_of(model: str) -> Any:
    size = (3, SIZE, SIZE)
    return mk.compile(mk.create_model(model).cuda().half().eval(), torch.empty(1, *size, device="cuda")).plan(size)


def walk(
    plan: Any, batch: int, gradients: bool, visit: Visit, ops: Sequence[str] | None = None, begin: float = 0.0, end: float = math.inf
) -> None:
    """Show every choice of a tile that the calls of a plan make, or of some ops, or their gradients: the kernel's own and its candidates,
    and what runs the op with one of them. Calls get random numbers, each by itself, and those of one size are one. begin: which of them is
    the first, as a part of all; end: when there is no time for another."""
    values = {"input": plan.input} | {call.name: call.result for call in plan.calls}
    collecting = {f"{call.name}.moments": call for call in plan.calls if call.collects}

    def given(name: str) -> torch.Tensor:
        if name in collecting:  # in as many parts as its producer has programs
            call = collecting[name]
            return call.run(*map(given, call.inputs))[1]
        return tensor(values[name], batch, plan.device)

    alike, seen = set(), set()
    first = int(begin * len(plan.calls))
    for call in (*plan.calls[first:], *plan.calls[:first]):
        sizes = [str(values.get(name, "moments")) for name in call.inputs]
        name = " ".join([call.op, *sizes, str(call.result), str(call.weight_bytes)])
        if call.reason is not None or (gradients and call.op not in TRAINED) or name in alike or (ops and call.op not in ops):
            continue
        if time.time() >= end:
            break
        alike.add(name)
        with contextlib.nullcontext() if gradients else keeping_parts():  # as plans run them
            run = gradient_of(call, given(call.inputs[0])) if gradients else functools.partial(call.run, *map(given, call.inputs))
            for key, tiles in choices(run).items():
                if key not in seen:
                    seen.add(key)
                    visit(key, tiles, functools.partial(run_with, key, run))


class Gradients(TorchDispatchMode):
    """Finds the calls of ops that compute gradients: by themselves they run on any stream, without autograd and the forward. Of parameters,
    as in training, what kernels read is arranged once."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Callable[[], object]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(op).startswith("mvit_kernels.") and str(op).endswith("_backward.default"):
            given = [torch.nn.Parameter(x.detach(), requires_grad=False) if isinstance(x, torch.Tensor) else x for x in args]
            self.runs.append(functools.partial(op, *given))
        return op(*args, **(kwargs or {}))


def gradient_of(call: Any, x: torch.Tensor) -> Callable[[], object]:
    """What runs the gradient of a call, whose norm is told nothing of its map."""
    with torch.enable_grad(), Gradients() as found:
        y = call.run(x.requires_grad_())
        y = y[0] if call.collects else y
        y.backward(torch.randn_like(y))
    (run,) = found.runs
    return run


def tensor(value: Any, batch: int, device: torch.device) -> torch.Tensor:
    """Numbers for images of a value of the plan."""
    x = torch.randn(batch, *value.size, dtype=value.dtype, device=device)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 and value.channels_last else x


def choices(run: Callable[[], object]) -> dict[tuning.Key, list[tuning.Tile]]:
    """Of a call, by Triton too where CUDA's kernel runs it; which of them does is the last, as Triton's best tile decides it."""
    found: dict[tuning.Key, list[tuning.Tile]] = {}

    def look(key: tuning.Key, guess: tuning.Tile, candidates: Callable[[], Any]) -> tuning.Tile:
        found.setdefault(key, [guess, *(tile for tile in candidates() if tile != guess)])
        return TRITON if by_triton and is_backend(key) else guess

    by_triton = False
    with tuning.watched(look):
        run()
    by_triton = any(is_backend(key) and tiles[0] != TRITON for key, tiles in found.items())
    if by_triton:
        with tuning.watched(look):
            run()
    return dict(sorted(found.items(), key=lambda each: is_backend(each[0])))


def is_backend(key: tuning.Key) -> bool:
    """Whether it is the choice of `ops/fastest.py`."""
    return key[1].endswith(" backend")


def run_with(
    key: tuning.Key, run: Callable[[], object], tile: tuning.Tile, table: Mapping[tuning.Key, tuning.Tile] | None = None
) -> object:
    """Other choices of the same call are those of `table`, or the kernels' own; where a tile is chosen, Triton runs it."""

    def other(each: tuning.Key, guess: tuning.Tile) -> tuning.Tile:
        return TRITON if is_backend(each) and not is_backend(key) else (table or {}).get(each, guess)

    with tuning.watched(lambda each, guess, _: tile if each == key else other(each, guess)):
        return run()


def compile_share(model: str, batch: int, gradients: bool, ops: Sequence[str] | None, share: int, shares: int) -> None:
    """Compile every `shares`th tile that the calls of a network, or their gradients, may choose. Whoever looks for choices runs all calls
    with kernels' own tiles: each process begins with another call, and finds most of what the others have made on disk."""
    torch.set_num_threads(1)

    def compiled(key: tuning.Key, tiles: list[tuning.Tile], run: Callable[[tuning.Tile], object]) -> None:
        for tile in tiles[1:]:
            if share_of(key, tile, shares) == share:
                tried(key, tile, run, lambda _: True)

    walk(plan_of(model), batch, gradients, compiled, ops, share / shares)


def share_of(key: tuning.Key, tile: tuning.Tile, shares: int) -> int:
    """The same in every process."""
    return zlib.crc32(f"{key} {sorted(tile.items())}".encode()) % shares


def time_choices(
    model: str, batch: int, gradients: bool, ops: Sequence[str] | None, found: dict[tuning.Key, Times], end: float
) -> int:  # fmt: skip
    """Time what is not in `found` and put it there; how many failed."""
    failed = 0

    def timed(key: tuning.Key, tiles: list[tuning.Tile], run: Callable[[tuning.Tile], object]) -> None:
        nonlocal failed
        if key in found or len(tiles) < 2 or time.time() >= end:
            return
        own, *others = tiles
        run = functools.partial(run, table={each: best(times) for each, times in found.items()})
        right: list[list[torch.Tensor]] = []  # of the first tile that runs

        def measure(tile: tuning.Tile) -> float:
            values = values_of(run(tile))
            right.extend([] if right else [values])
            if (off := how_far(values, right[0])) > MOST_OFF:
                raise ValueError(f"its results are off by {off:g} of the largest")
            return seconds(functools.partial(run, tile))

        times = [(tried(key, own, run, measure), own)]
        for tile in others if times[0][0] is not None else ():
            if time.time() < end:
                times.append((tried(key, tile, run, measure), tile))
        if len(times) > 1:  # the kernel's own choice, once more: the first is at a disadvantage
            again = tried(key, own, run, measure)
            times[0] = min(each for each in (times[0][0], again) if each is not None), own
            found[key] = [(each, tile) for each, tile in times if each is not None]
        failed += sum(each is None for each, _ in times)

    walk(plan_of(model), batch, gradients, timed, ops, end=end)
    return failed


def values_of(result: object) -> list[torch.Tensor]:
    """Moments (groups, parts, 3) of tiles joined, as other tiles have other parts."""
    values = [each for each in pytree.tree_leaves(result) if isinstance(each, torch.Tensor)]
    return [join(x) if x.ndim == 3 and x.shape[2] == 3 and x.dtype == torch.float32 else x.clone() for x in values]


def how_far(values: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """The largest difference of a finite value over the largest; of integers any is infinite, and so is NaN or infinity in other places."""
    off = 0.0
    for one, other in zip(values, right, strict=True):
        finite = other.isfinite()
        if not torch.equal(one.isfinite(), finite) or not (one.is_floating_point() or torch.equal(one, other)):
            return math.inf
        a, b = one[finite].double(), other[finite].double()
        if a.numel():
            off = max(off, float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)))
    return off


def tried(key: tuning.Key, tile: tuning.Tile, run: Callable[[tuning.Tile], object], measure: Callable[[tuning.Tile], Any]) -> Any:
    """What is measured, after a first run; infinity for a tile that the GPU has no room for; None, and a word, where it fails."""
    from triton.runtime.errors import OutOfResources

    try:
        run(tile)
        return measure(tile)
    except OutOfResources:
        return float("inf")
    except Exception as error:  # one of another version of Triton, say; what others measure is not lost for it
        print(f"gpu_tune: {' '.join(key)} with {tile}: {type(error).__name__}: {str(error)[-500:]}", file=sys.stderr, flush=True)
        return None


def seconds(run: Callable[[], object], copies: int = COPIES, repeats: int = REPEATS) -> float:
    """Of one call, the median of graphs that hold several. Captured without torch's tidying up, which takes longer than all of it."""
    graph, times = torch.cuda.CUDAGraph(), []
    torch.cuda.synchronize()
    with torch.cuda.stream(_stream()), holding():  # reads what is packed before, as nobody changes it
        run()  # what libraries make once for a stream
        torch.cuda.synchronize()
        graph.capture_begin()
        try:
            for _ in range(copies):
                run()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # it says that something failed before: what, is known
                graph.capture_end()  # or nothing could be run on this stream any more
            raise
        graph.capture_end()
    for turn in range(repeats + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if turn:
            times.append(begin.elapsed_time(end) / 1e3 / copies)
    return statistics.median(times)


@functools.cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def best(times: Times) -> tuning.Tile:
    """The fastest tile; the kernel's own where that is nearly as fast."""
    (own, own_tile), (least, tile) = times[0], min(times, key=lambda each: each[0])
    return tile if least < (1 - LEAST_GAIN) * own else own_tile


def merged(table: dict[tuning.Key, tuning.Tile], found: dict[tuning.Key, Times]) -> dict[tuning.Key, tuning.Tile]:
    """The table with what was found; without calls whose own choice is the best, which may become a better one."""
    tiles = {key: best(times) for key, times in found.items()}
    better = {key: tile for key, tile in tiles.items() if tile != found[key][0][1]}
    return {key: tile for key, tile in table.items() if key not in tiles} | better


def written(path: Path) -> dict[tuning.Key, tuning.Tile]:
    return tuning.read(path) if path.exists() else {}


def text_of(tiles: dict[tuning.Key, tuning.Tile]) -> str:
    """JSON, a call on a line."""
    devices: dict[str, dict[str, list[str]]] = {}
    for (device, kernel, call), tile in sorted(tiles.items()):
        devices.setdefault(device, {}).setdefault(kernel, []).append(f"   {json.dumps(call)}: {json.dumps(tile)}")
    kernels = {
        device: ",\n".join(f"  {json.dumps(kernel)}: {{\n" + ",\n".join(lines) + "\n  }" for kernel, lines in each.items())
        for device, each in devices.items()
    }  # fmt: skip
    return "{\n" + ",\n".join(f" {json.dumps(device)}: {{\n{text}\n }}" for device, text in kernels.items()) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
