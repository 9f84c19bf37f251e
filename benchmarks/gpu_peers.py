"""One network on a GPU against torch.compile, max-autotune too: `make gpu-peers MODEL=mobilevitv2_100 BATCH=8`.

    python benchmarks/gpu_peers.py --model mobilevit_s --batch 1

Each variant is timed by itself as soon as it is ready, and written; at last all are timed in turn. One that fails, that is not ready in
time, or whose logits are not eager's, is listed with its reason: one comparison fits into nine minutes. Max-autotune comes last, as it may
take all of them. The exit code is 1 where none could be timed, or results not be written.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import math
import os
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_records as records

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 470  # after which no variant is made ready any more
GRACE = 60  # after these, and what they do not reach (a kernel that hangs), all ends
ROUNDS, CALLS = 20, 5
SLOWEST = "compile, max-autotune"  # to prepare
COLUMNS = {
    "variant": "variant", "median_ms": "median ms", "min_ms": "min ms", "prepare_s": "to prepare, s", "off": "off", "error": "error"
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", default="mobilevitv2_100")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="of those in `variants`; all by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no variant is made ready any more")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    args = parser.parse_args(arguments)
    until = time.monotonic() + args.seconds
    import torch

    if not torch.cuda.is_available():
        print(f"gpu_peers: expected a machine with a GPU, torch {torch.__version__} finds none", file=sys.stderr)
        return 2
    import triton

    from mvit_kernels.cli.output import json_text, print_table
    from mvit_kernels.files import write_text
    from mvit_kernels.machine import conditions

    context = conditions(shlex.join(["python", "benchmarks/gpu_peers.py", *(sys.argv[1:] if arguments is None else arguments)])) | {
        "gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda, "triton": triton.__version__,
        "model": args.model, "batch": args.batch, "size": args.size, "dtype": args.dtype, "cuda_kernels": without_cuda_kernels() or "built",
    }  # fmt: skip
    if context["cuda_kernels"] != "built":
        print(f"gpu_peers: {context['cuda_kernels']} (make gpu-check builds them)", file=sys.stderr)
    path, unwritten = args.results / result_name(args.model, args.batch, args.size, args.dtype, args.variants), ""
    rows: list[dict[str, Any]] = []
    faulthandler.dump_traceback_later(args.seconds + GRACE, exit=True, file=sys.__stderr__)
    for rows in measure(args.model, args.batch, args.size, getattr(torch, args.dtype), args.variants, until):
        print(" ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json_text({"conditions": context, "results": rows}))
        except OSError as error:  # what is printed stays
            unwritten = f"gpu_peers: {error}"
    faulthandler.cancel_dump_traceback_later()
    cells = [[str(row.get(key, "")) for key in COLUMNS] for row in rows]
    print_table(f"{args.model}, batch {args.batch}, {args.dtype}", tuple(COLUMNS.values()), cells)
    if unwritten:
        print(unwritten, file=sys.stderr)
    return int(bool(unwritten) or not any("median_ms" in row for row in rows))


def result_name(model: str, batch: int, size: int, dtype: str, names: list[str] | None) -> str:
    """Of the file: what is not as usual is in it."""
    unusual = (str(size) if size != 256 else "", dtype if dtype != "float16" else "", "some" if names else "")
    return "-".join(filter(None, ("gpu-peers", model, str(batch), *unusual))) + ".json"


def without_cuda_kernels() -> str:
    """Why the CUDA kernels are not there, or nothing: Triton's are timed in their place then."""
    from mvit_kernels.ops import cuda_support

    return "" if cuda_support.native is not None else f"without the CUDA kernels: {cuda_support.REASON}"


def variants(model: Callable[[], Any], size: int) -> dict[str, Callable[[], Callable[[Any], Any]]]:
    """How each is made; all begin with the same weights."""
    import torch

    import mvit_kernels as mk

    def compiled() -> Any:
        network = model()
        return mk.compile(network, torch.empty(1, 3, size, size, device="cuda"))

    return {
        "eager": model,
        "compile": lambda: torch.compile(model(), dynamic=False),
        "compile, CUDA graph": lambda: torch.compile(model(), dynamic=False, mode="reduce-overhead"),
        "mk.accelerate": lambda: mk.accelerate(model()),
        "mk.compile": compiled,
        "mk.compile, int8": lambda: mk.compile(quantized(model(), size), torch.empty(1, 3, size, size, device="cuda")),
        "mk.compile, int6": lambda: mk.compile(quantized(model(), size, 6), torch.empty(1, 3, size, size, device="cuda")),
        SLOWEST: lambda: torch.compile(model(), dynamic=False, mode="max-autotune"),
    }


def settled(name: str, size: int) -> Any:
    """A network of random weights whose BatchNorms have the statistics of a few random images, as those of trained ones have of theirs.
    Without, maps shrink from layer to layer, and curves have finer scales than those of any trained network."""
    import torch

    import mvit_kernels as mk

    model = mk.create_model(name)
    norms = [each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    momenta = [each.momentum for each in norms]
    for each in norms:
        each.momentum = 1.0
    with torch.no_grad():
        model.train()(_images(size))
    for each, momentum in zip(norms, momenta, strict=True):
        each.momentum = momentum
    return model.eval()


def _images(size: int) -> Any:
    import torch

    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def quantized(model: Any, size: int, bits: int = 8) -> Any:
    """With the ranges of a few random images: what it takes to time it, not what makes it accurate."""
    import mvit_kernels as mk

    config = mk.QuantConfig(method="minmax", weight_bits=bits, activation_bits=bits)
    return mk.quantize(model.cpu().float(), [_images(size)], config)


def judged(variant: str, off: float) -> dict[str, Any]:
    """off: largest difference of a logit from eager's over the largest logit. More than rounding explains is an error."""
    most = 0.5 if "int" in variant else 0.05
    row = {"off": round(off, 5)} if math.isfinite(off) else {}
    return row if off <= most else {**row, "error": f"logits are off by {off:g} of the largest, expected {most} at most"}


def measure(
    name: str, batch: int, size: int, dtype: Any, names: list[str] | None = None, until: float = math.inf
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    import torch

    import mvit_kernels as mk

    torch.manual_seed(0)
    state = settled(name, size).state_dict()

    def model() -> Any:
        network = mk.create_model(name)
        network.load_state_dict(state)
        return network.to("cuda", dtype, memory_format=torch.channels_last).eval()

    made = variants(model, size)
    if unknown := set(names or ()) - set(made):
        raise ValueError(f"gpu_peers: variants: expected some of {', '.join(made)}, got {', '.join(sorted(unknown))}")
    x = torch.randn(batch, 3, size, size, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        right = model()(x)
        yield from compared({label: make for label, make in made.items() if not names or label in names}, x, right, until)


def compared(
    made: dict[str, Callable[[], Callable[[Any], Any]]], x: Any, right: Any, until: float = math.inf
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    """Rows of the variants, once more after each: it is timed by itself; and at last all in turn. right: what eager gives for x; until:
    when they have to be ready, in time.monotonic()."""
    import torch

    rows: list[dict[str, Any]] = []
    ready: dict[str, Callable[[], Any]] = {}
    for label, make in made.items():
        begin, row = time.monotonic(), {"variant": label}
        rows.append(row)
        try:
            with _no_longer_than(until - begin):
                with torch.inference_mode(False):  # of parameters made in it nobody knows whether they change: they are packed at each call
                    network = make()
                for _ in range(3):
                    y = network(x)
                off = float((y.float() - right.float()).abs().max() / right.float().abs().max())
            row |= {"prepare_s": round(time.monotonic() - begin, 1), **judged(label, off)}
            call = functools.partial(network, x)
            row |= _values(_in_turn({label: call})[label])
            ready[label] = call
        except (Exception, KeyboardInterrupt) as error:  # whatever stands in its way is what there is to say; Ctrl-C ends this variant
            row.setdefault("error", f"{type(error).__name__}: {error}"[:300])
        yield [dict(each) for each in rows]
        if "error" in row and records.broken():
            rows += [{"variant": later, "error": f"the GPU computes nothing more since {label}"} for later in list(made)[len(rows) :]]
            yield rows
            return
    if len(ready) > 1:
        times = _in_turn(ready)
        for row in rows:
            if times.get(row["variant"]):
                row |= _values(times[row["variant"]])
            elif row["variant"] in ready:
                row.setdefault("error", "it failed beside the others")
        yield rows


def _values(times: list[float]) -> dict[str, float]:
    return {"median_ms": round(statistics.median(times), 4), "min_ms": round(min(times), 4)}


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """Inside, TimeoutError is raised after so many seconds, and again as long as what tries choices takes it for one that failed."""

    def over(*_: object) -> None:
        raise TimeoutError(f"not ready in the {max(seconds, 0):.1f} s that were left")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, min(max(seconds, 1e-3), 1e6), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _in_turn(ready: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Milliseconds of a call by CUDA events, all variants once a round. One that fails beside others leaves the round, and its times go."""
    times: dict[str, list[float]] = {label: [] for label in ready}
    for _ in range(ROUNDS):
        for label, call in list(ready.items()):
            if label not in times:
                continue
            try:
                times[label] += _by_events(call)
            except Exception:
                if len(ready) == 1:
                    raise
                del times[label]
    return times


def _by_events(call: Callable[[], Any]) -> list[float]:
    import torch

    call()
    times = []
    for _ in range(CALLS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    code = main()
    sys.stdout.flush()
    os._exit(code)  # compilers of max-autotune that are still at work would be waited for
