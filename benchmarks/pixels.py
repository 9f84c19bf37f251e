"""How the time of a compiled network grows with its images: each side in turn, in one process, nanoseconds a pixel.

python benchmarks/pixels.py --models mobilevitv2_100
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from pathlib import Path

import torch
from peers import bursts

import mvit_kernels as mk
from mvit_kernels.cli.arguments import names, positive_int
from mvit_kernels.cli.compare import compiled, compiled_integers
from mvit_kernels.cli.output import json_text, print_table
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions, machine_line

SIDES = (128, 192, 256, 320, 384, 512)
VARIANTS = {"compile": compiled, "compile-int8": compiled_integers}


def main() -> int:
    args = _parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.models:
        for variant, make in VARIANTS.items():
            torch.manual_seed(0)
            model = mk.create_model(name).eval()
            images = {side: torch.rand(1, 3, side, side) for side in SIDES}
            network = make(model, [images[256]])
            with torch.inference_mode():
                times = bursts({str(side): functools.partial(network, x) for side, x in images.items()}, args.rounds, f"{name}, {variant}")
            for side in SIDES:
                least = times[str(side)].minimum
                median = times[str(side)].median
                ns = 1e9 * least / side**2
                rows.append(
                    {"model": name, "variant": variant, "side": side, "min_ms": 1e3 * least, "median_ms": 1e3 * median, "ns_a_pixel": ns}
                )
    document = {"conditions": conditions(shlex.join(["python", "benchmarks/pixels.py", *sys.argv[1:]])), "results": rows}
    if args.results:
        write_text(args.results / "pixels.json", json_text(document))
    cells = [[row["model"], row["variant"], *(f"{row[key]:.6g}" for key in ("side", "min_ms", "median_ms", "ns_a_pixel"))] for row in rows]
    print_table("Batch 1", ("model", "variant", "side", "min\nms", "median\nms", "ns\na pixel"), cells, left=2)
    print(machine_line(document["conditions"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=names, default=["mobilevitv2_050", "mobilevitv2_100"], metavar="NAME[,NAME...]")
    parser.add_argument("--threads", type=positive_int, default=2, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=10, help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write pixels.json into this folder")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
