"""`mvit-kernels quantize`: an integer network from a checkpoint and some images, in a file."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import mvit_kernels as mk
from mvit_kernels.data.listed import calibration_files
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions
from mvit_kernels.quant.config import METHODS

from .arguments import add_normalization, names, natural_number, normalization_of, positive_int
from .evaluation import STANDIN, calibration
from .network import load_classifier
from .output import json_text, print_table, require_picture, require_writable
from .processes import process_group

_BATCH = 8
_IMAGES = 32
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT",
        help="weights of timm, transformers, ml-cvnets or mvit-kernels train, or the name of a shipped checkpoint",
    )  # fmt: skip
    parser.add_argument("--model", help="a name that mvit-kernels info lists (default: the one that the checkpoint names)")
    parser.add_argument("--num-classes", type=positive_int, help="classes of the checkpoint (default: what it says, else 1000)")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, for mvit-kernels eval and mk.load_quantized")
    parser.add_argument("--calibration", required=True, help="a folder of pictures (or DIR/train below it), or standin")
    parser.add_argument("--images", type=positive_int, default=_IMAGES, help="of the calibration (default: %(default)s)")
    parser.add_argument("--size", type=positive_int, help="side in pixels (default: the checkpoint's, the model's, or 256)")
    add_normalization(parser)
    parser.add_argument("--method", choices=METHODS, default="qhyvit", help="(default: %(default)s)")
    parser.add_argument("--weight-bits", type=int, choices=(8, 6), default=8, help="(default: %(default)s)")
    parser.add_argument("--activation-bits", choices=("8", "6", "none"), default="8", help="none: weights alone (default: %(default)s)")
    parser.add_argument("--skip", type=names, default=[], help="patterns of nodes that stay float, with commas between them")
    parser.add_argument(
        "--seed", type=natural_number, default=0, help="of the images that are drawn, and of the method (default: %(default)s)"
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="keeps what is found on the way: called again with it, an interrupted run goes on there",
    )
    parser.add_argument("--report", type=Path, help="write every decision, and what each layer by itself costs, as JSON")
    parser.add_argument("--plot", type=Path, help="draw what each layer by itself costs")
    parser.add_argument("--target", type=float, help="points of top-1 that may be lost: says which layers to keep in floats for it")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Every process of torchrun takes a share of the images; the first one writes."""
    for flag in ("output", "report", "plot"):  # before the work
        require_writable(f"--{flag}", getattr(args, flag))
    require_picture("--plot", args.plot)
    if args.target is not None and not 0 <= args.target <= 100:
        raise ValueError(f"--target: expected points of top-1, from 0 to 100, got {args.target}")
    if args.calibration != STANDIN:
        _require_pictures(args.calibration, args.images)
    classifier = load_classifier(args.model, args.checkpoint, args.num_classes, flag="CHECKPOINT")
    size = args.size or classifier.size
    normalization = normalization_of(args, classifier.normalization)
    bits = None if args.activation_bits == "none" else int(args.activation_bits)
    config = mk.QuantConfig(args.weight_bits, bits, args.method, skip=tuple(args.skip), seed=args.seed)
    began = time.monotonic()
    with process_group() as (rank, world):
        images = normalization(calibration(args.calibration, size, args.images, args.seed))
        quantized = mk.quantize(classifier.model, images.split(_BATCH), config, progress=rank == 0, distributed=world > 1, state=args.state)
    if rank:
        return None
    seconds = time.monotonic() - began
    about = {"model": classifier.name, "num_classes": str(_classes(classifier.model, size))}
    about |= {name: json.dumps(value) for name, value in normalization._asdict().items()}
    if classifier.options:
        about["options"] = json.dumps(classifier.options)
    if classifier.class_names is not None:
        about["class_names"] = json.dumps(classifier.class_names)
    report = quantized.report()
    mk.save_quantized(quantized, args.output, about=about)
    costs = None
    if args.report is not None or args.plot is not None or args.target is not None:
        costs = quantized.sensitivity(images.split(_BATCH), target=args.target)
    if args.report is not None and costs is not None:
        write_text(args.report, json_text({"config": config.to_dict(), **report.to_dict(), "sensitivity": costs.to_dict()}))
    if args.plot is not None and costs is not None:
        costs.save_picture(args.plot)
    return {
        "conditions": conditions(args.command),
        "model": classifier.name,
        "checkpoint": str(args.checkpoint),
        "config": config.to_dict(),
        "calibration": {"data": args.calibration, **quantized.calibration},
        "size": size,
        **normalization._asdict(),
        "processes": world,
        "seconds": round(seconds, 1),
        "integer_nodes": report.integer_nodes,
        "float_nodes": report.float_nodes,
        "simulation_only": len(report.simulation_only),
        "bytes": args.output.stat().st_size,
        "output": str(args.output),
        "sensitivity": costs and costs.to_dict(),
    }


def show(document: dict[str, Any]) -> None:
    config = document["config"]
    costs = document["sensitivity"]
    if costs is not None:
        rows = [[each["node"], _number(each["sqnr"]), f"{each['effect']:.2e}", _number(each["drop"])] for each in costs["rows"][:_SHOWN]]
        print_table("layers that cost most when they alone are quantized", ("layer", "SQNR, dB", "divergence", "points of top-1"), rows)
        if costs["target"] is not None:
            flags = f"--skip {','.join(costs['keep_float'])}" if costs["keep_float"] else "nothing need stay float"
            print(f"to lose at most {costs['target']} points: {flags}")
    print(
        f"{document['model']} by {config['method']}, W{config['weight_bits']}A{config['activation_bits'] or 32}: "
        f"{document['integer_nodes']} nodes in integers, {document['float_nodes']} in floats, {document['seconds']:.0f} s\n"
        f"{document['output']}: {document['bytes'] / 2**20:.2f} MiB{_simulated(document['simulation_only'])}\n"
        f"judge it: mvit-kernels eval {document['output']} --data {document['calibration']['data']}"
    )


def _require_pictures(data: str, images: int) -> None:
    """Raises ValueError, which names the flags, if the folder has fewer."""
    try:
        calibration_files(data, images)
    except ValueError as error:
        raise ValueError(f"--calibration {data} (or {STANDIN}), --images {images} (default: {_IMAGES}): {error}") from error


@torch.inference_mode()
def _classes(model: torch.nn.Module, size: int) -> int:
    return int(model(torch.zeros(1, 3, size, size)).shape[1])


def _simulated(nodes: int) -> str:
    return f", a simulation: no kernel runs the quantizers of {nodes} nodes" if nodes else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
