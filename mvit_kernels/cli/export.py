"""`mvit-kernels export`: a quantized network as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mvit_kernels as mk
from mvit_kernels.machine import conditions
from mvit_kernels.quant import about as about_of

from .arguments import positive_int
from .evaluation import float_model
from .output import require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", type=Path, metavar="FILE", help="of mvit-kernels quantize")
    parser.add_argument("--output", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--size", type=positive_int, help="side of its images in pixels (default: that of the calibration)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    require_writable("--output", args.output)
    about = about_of(args.network)
    if about is None:
        raise ValueError(f"{args.network}: expected a file of mvit-kernels quantize, got another")
    quantized = mk.load_quantized(float_model(about, args.network), args.network)
    size = args.size or quantized.size[1]
    mk.export_onnx(quantized, args.output, (size, size))
    return {
        "conditions": conditions(args.command),
        "network": str(args.network),
        "output": str(args.output),
        "size": size,
        "bytes": args.output.stat().st_size,
    }


def show(document: dict[str, Any]) -> None:
    side = document["size"]
    print(f"{document['output']}: ONNX, {document['bytes'] / 2**20:.2f} MiB, images of {side} x {side}")
