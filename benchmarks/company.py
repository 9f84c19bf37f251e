"""A compiled network that is not alone: between torch's own ops, whose threads spin for a while after each, and beside busy processes.

    python benchmarks/company.py --models mobilevitv2_100

`csrc/cpu/core/crew.h` says what its threads do about either.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import mvit_kernels as mk
from mvit_kernels.cli.arguments import names, positive_int
from mvit_kernels.cli.compare import compiled, compiled_integers
from mvit_kernels.cli.output import json_text, print_table
from mvit_kernels.cli.timing import Timing
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions, machine_line

VARIANTS = {"compile": compiled, "compile-int8": compiled_integers}
BUSY = (0, 1, 2)  # processes


def main() -> int:
    args = _parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
    floats = torch.rand(4_000_000)
    before: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "a torch op": lambda: floats.add(1),
        "20 ms": lambda: time.sleep(0.02),
    }
    rows = []
    for name in args.models:
        torch.manual_seed(0)
        x = torch.rand(1, 3, args.size, args.size)
        networks = {variant: make(mk.create_model(name).eval(), [x]) for variant, make in VARIANTS.items()}
        for busy in BUSY:
            with busy_processes(busy), torch.inference_mode():
                for variant, network in networks.items():
                    for what, first in before.items():
                        times = timed(functools.partial(network, x), first, args.calls)
                        milliseconds = {"min_ms": 1e3 * times.minimum, "median_ms": 1e3 * times.median}
                        rows.append({"model": name, "variant": variant, "busy": busy, "before": what, **milliseconds})
    document = {"conditions": conditions(shlex.join(["python", "benchmarks/company.py", *sys.argv[1:]])), "results": rows}
    if args.results:
        write_text(args.results / "company.json", json_text(document))
    cells = [
        [row["model"], row["variant"], str(row["busy"]), row["before"], f"{row['min_ms']:.2f}", f"{row['median_ms']:.2f}"] for row in rows
    ]
    print_table("Batch 1", ("model", "variant", "busy\nprocesses", "before each call", "min\nms", "median\nms"), cells, left=2)
    print(machine_line(document["conditions"]))
    return 0


def timed(network: Callable[[], object], first: Callable[[], object], calls: int) -> Timing:
    samples = []
    for _ in range(calls + 3):
        first()
        started = time.perf_counter()
        network()
        samples.append(time.perf_counter() - started)
    return Timing(tuple(samples[3:]))


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=names, default=["mobilevitv2_050", "mobilevitv2_100"], metavar="NAME[,NAME...]")
    parser.add_argument("--size", type=positive_int, default=256, help="side of the images (default: %(default)s)")
    parser.add_argument("--threads", type=positive_int, default=2, help="(default: %(default)s)")
    parser.add_argument("--calls", type=positive_int, default=40, help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write company.json into this folder")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
