"""What calibration costs: seconds and memory of `mk.quantize`.

    python benchmarks/calibration.py --models mobilevitv2_100 --methods qhyvit best

Each network is calibrated on 32 images in a process of its own. Memory is the most that the process had at any time (resident set), with
Python, torch and the network. Processor seconds are those of all threads: on a machine that does other work too, which the load says, they
are what can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peer_cases import settled_model
from tqdm import tqdm

import mvit_kernels as mk
from mvit_kernels.cli.arguments import names, positive_int
from mvit_kernels.cli.output import json_text, print_table
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions
from mvit_kernels.quant.config import METHODS

IMAGES, BATCH = 32, 8


def measured(model: str, method: str, size: int, bits: int) -> dict[str, float]:
    """In this process."""
    network = settled_model(model, size)
    images = torch.rand(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    seconds, processor = time.perf_counter(), time.process_time()
    mk.quantize(network, images.split(BATCH), mk.QuantConfig(bits, bits, method), progress=False)
    return {
        "seconds": time.perf_counter() - seconds,
        "processor_seconds": time.process_time() - processor,
        "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "load": os.getloadavg()[0],
    }


def main() -> int:
    args = _parser().parse_args()
    if args.measure:
        print(json.dumps(measured(*args.measure, args.size, args.bits)))
        return 0
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
    context = conditions(shlex.join(["python", "benchmarks/calibration.py", *sys.argv[1:]])) | {"size": args.size, "bits": args.bits}
    rows: list[dict[str, Any]] = []
    cases = [(model, method) for model in args.models for method in args.methods]
    for model, method in tqdm(cases, disable=None, leave=False):
        command = [sys.executable, __file__, "--measure", model, method, "--size", str(args.size), "--bits", str(args.bits)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        rows.append({"model": model, "method": method, **found})
    document = {"conditions": context, "results": rows}
    if args.results:
        write_text(args.results / "calibration.json", json_text(document))
    if args.json:
        sys.stdout.write(json_text(document))
    else:
        numbers = ("seconds", "processor_seconds", "memory_gib", "load")
        cells = [[row["model"], row["method"], *(f"{row[key]:.1f}" for key in numbers)] for row in rows]
        title = f"{IMAGES} images of {args.size} x {args.size}, W{args.bits}A{args.bits}"
        print_table(title, ("model", "method", "s", "processor\ns", "memory\nGiB", "load"), cells, left=2)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=names, default=["mobilevitv2_100"], help="with commas between them (default: mobilevitv2_100)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=("qhyvit", "best"), help="(default: qhyvit best)")
    parser.add_argument("--size", type=positive_int, default=256, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--bits", type=int, choices=(8, 6), default=8, help="of weights and of results (default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="write calibration.json there")
    parser.add_argument("--json", action="store_true", help="print the document in place of a table")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "METHOD"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
