"""What a network costs before and beside its time: memory of a process that holds and runs it, seconds until it is there.

    python benchmarks/memory.py --models mobilevit_s

Each network is loaded from its file and run in a process of its own, so that nothing of its making counts: a plan of this package, the IR
of OpenVINO. Memory is what the process has more (proportional set size) after ten images of batch 1 than before it loaded the network:
weights, however they are kept, and what lies between layers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peer_cases import Case, settled_model
from peer_variants import openvino_file, openvino_int8_file
from peers import MODELS
from tqdm import tqdm

import mvit_kernels as mk
from mvit_kernels.cli.arguments import names, positive_int
from mvit_kernels.cli.output import json_text, print_table
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions

IMAGES = 10


def plan_file(case: Case, folder: Path, integers: bool) -> tuple[Path, float]:
    """A plan, and the seconds that making it took: `mk.compile`, and before it, for integers, min-max calibration on 32 images."""
    model: torch.nn.Module = case.model
    images = case.calibration
    started = time.perf_counter()
    if integers:
        model = mk.quantize(model, images, mk.QuantConfig(method="minmax"), progress=False)
    fast = mk.compile(model, case.example, num_threads=case.threads)
    seconds = time.perf_counter() - started
    path = folder / f"{case.name}-{'int8' if integers else 'float'}.plan"
    fast.save(path)
    return path, seconds


def load_plan(path: Path, threads: int) -> Callable[[torch.Tensor], Any]:
    return mk.load(path, num_threads=threads)


def load_openvino(path: Path, threads: int) -> Callable[[torch.Tensor], Any]:
    from peer_variants import run_openvino

    return run_openvino(path, threads)


LOADERS = {"plan": load_plan, "openvino": load_openvino}


def main() -> int:
    args = _parser().parse_args()
    if args.measure:
        print(json.dumps(measured(*args.measure, args.size, args.threads)))
        return 0
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
    context = conditions(shlex.join(["python", "benchmarks/memory.py", *sys.argv[1:]])) | {"size": args.size, "threads": args.threads}
    rows = []
    for name in tqdm(args.models, disable=None, leave=False):
        case = Case(name, settled_model(name, args.size), 1, args.size, args.threads)
        folder = case.folder
        folder.mkdir(parents=True, exist_ok=True)
        plans = {label: plan_file(case, folder, integers) for label, integers in (("compile", False), ("compile-int8", True))}
        files = {"openvino": ("openvino", openvino_file(case)), "openvino-int8": ("openvino", openvino_int8_file(case))}
        files |= {label: ("plan", path) for label, (path, _) in plans.items()}
        for label, (loader, path) in files.items():
            row = {"model": name, "variant": label, **_in_a_process(loader, path, args)}
            if label in plans:
                row["seconds_to_make"] = plans[label][1]
            rows.append(row)
    document = {"conditions": context, "results": rows}
    if args.results:
        write_text(args.results / "memory.json", json_text(document))
    if args.json:
        sys.stdout.write(json_text(document))
    else:
        cells = [[row["model"], row["variant"], *(_cell(row, key) for key in ("memory_mib", "load_ms", "seconds_to_make"))] for row in rows]
        print_table("Batch 1", ("model", "variant", "memory\nMiB", "load\nms", "to make\ns"), cells, left=2)
    return 0


def measured(loader: str, path: str, size: int, threads: int) -> dict[str, float]:
    """Of a network in this process."""
    torch.set_num_threads(threads)
    x = torch.rand(1, 3, size, size)
    if loader == "openvino":
        import openvino as ov

        ov.Core().get_property("CPU", "FULL_DEVICE_NAME")  # its library is no part of a network
    before, started = _memory(), time.perf_counter()
    network = LOADERS[loader](Path(path), threads)
    seconds = time.perf_counter() - started
    with torch.inference_mode():
        for _ in range(IMAGES):
            network(x)
    return {"memory_mib": (_memory() - before) / 1024, "load_ms": 1e3 * seconds}


def _memory() -> int:
    """KiB of this process that are its own, and its share of what others map too."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _in_a_process(loader: str, path: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", loader, str(path), "--size", str(args.size), "--threads", str(args.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _cell(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.1f}" if key in row else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=names, default=list(MODELS), metavar="NAME[,NAME...]", help=f"(default: {','.join(MODELS)})")
    parser.add_argument("--size", type=positive_int, default=256, help="side of the images (default: %(default)s)")
    parser.add_argument("--threads", type=positive_int, default=2, help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write memory.json into this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    parser.add_argument("--measure", nargs=2, metavar=("LOADER", "FILE"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
