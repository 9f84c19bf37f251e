"""`mvit-kernels bench`: flags named as in timm's benchmark.py."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions, machine_line

from . import compare
from .arguments import names, natural_number, positive_int
from .compare import Variant
from .network import load_classifier
from .output import json_text, print_table

_FORMATS = (".csv", ".json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=names, required=True, metavar="NAME[,NAME...]", help="names that mvit-kernels info lists")
    parser.add_argument("-b", "--batch-size", type=positive_int, default=1, help="(default: %(default)s)")
    parser.add_argument("--img-size", type=positive_int, help="side in pixels (default: the model's, or 256)")
    parser.add_argument("--channels-last", action="store_true", help="memory format of images and weights")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    parser.add_argument(
        "--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile as well (default backend: %(const)s)"
    )
    parser.add_argument("--threads", type=positive_int, help="of torch and of the kernels (default: torch's choice)")
    parser.add_argument("--num-warm-iter", type=natural_number, default=5, help="rounds before timing (default: %(default)s)")
    parser.add_argument("--num-bench-iter", type=positive_int, default=30, help="timed rounds (default: %(default)s)")
    parser.add_argument("--results-file", type=Path, help=f"write the results here; the suffix is one of {', '.join(_FORMATS)}")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.results_file and (args.results_file.suffix not in _FORMATS or not args.results_file.parent.is_dir()):
        raise ValueError(f"--results-file: expected {' or '.join(_FORMATS)} in a folder that exists, got {str(args.results_file)!r}")
    if args.torchcompile and args.torchcompile not in torch.compiler.list_backends(exclude_tags=()):
        raise ValueError(f"--torchcompile: expected one of {', '.join(torch.compiler.list_backends())}, got {args.torchcompile!r}")
    if args.threads:
        torch.set_num_threads(args.threads)
    classifiers = [load_classifier(name, None) for name in args.model]
    sizes = [args.img_size or classifier.size for classifier in classifiers]
    images = {size: torch.rand(args.batch_size, 3, size, size, generator=torch.Generator().manual_seed(0)) for size in dict.fromkeys(sizes)}
    with torch.inference_mode():
        for classifier, size in zip(classifiers, sizes, strict=True):  # what cannot run fails before the first is timed
            classifier.model(images[size])
    results = []
    for name, classifier, size in zip(args.model, classifiers, sizes, strict=True):
        rows = compare.compare(
            classifier.model,
            [images[size]],
            _variants(args.channels_last, args.torchcompile),
            rounds=args.num_bench_iter,
            warmup=args.num_warm_iter,
            dtype=getattr(torch, args.precision),
            label=name,
        )
        results += [
            {
                "model": name,
                **row,
                "infer_samples_per_sec": args.batch_size / row["median_ms"] * 1e3,
                "infer_batch_size": args.batch_size,
                "infer_img_size": size,
                "param_count": sum(p.numel() for p in classifier.model.parameters()) / 1e6,
                "precision": args.precision,
                "channels_last": args.channels_last,
            }
            for row in rows
        ]
    document = {"conditions": conditions(args.command), "rounds": args.num_bench_iter, "results": results}
    if args.results_file:
        write_text(args.results_file, _csv(document) if args.results_file.suffix == ".csv" else json_text(document))
    return document


def show(document: dict[str, Any]) -> None:
    first = document["results"][0]
    layout = "channels_last" if first["channels_last"] else "NCHW"
    title = f"Batch {first['infer_batch_size']}, {first['precision']}, {layout}, {document['rounds']} rounds"
    rows = [[f"{row['model']}, {row['infer_img_size']}", *compare.cells(row)] for row in document["results"]]
    print_table(title, ("model, side", *compare.COLUMNS), rows, left=2)
    print(f"Random weights and images. {compare.NOTE}")
    print(machine_line(document["conditions"]))


def _variants(channels_last: bool, torchcompile: str | None) -> list[Variant]:
    variants = [replace(each, channels_last=channels_last) for each in compare.VARIANTS if each.channels_last in (channels_last, None)]
    if torchcompile:

        def compiled(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> compare.Network:
            torch._dynamo.reset()  # or it would run models eagerly once it has compiled as many of their class as it keeps
            return torch.compile(model, backend=torchcompile)

        variants.append(Variant(f"torch.compile {torchcompile}", compiled, channels_last))
    return variants


def _csv(document: dict[str, Any]) -> str:
    """One line a model and variant, with the conditions on each."""
    text = io.StringIO()
    rows = [{**row, **document["conditions"]} for row in document["results"]]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
