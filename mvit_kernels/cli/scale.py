"""`mvit-kernels scale sample|fit|downsize`: MobileViTv2 of any size, by Gaussian processes over its factors (`mvit_kernels/scaling`)."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvit_kernels.data.digits import MIN_SIZE, TARGETS
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions
from mvit_kernels.training import TrainConfig

from .arguments import natural_number, positive_int
from .fields import add_fields
from .output import json_text, print_table, warn

if TYPE_CHECKING:
    from mvit_kernels.scaling import SampleSet

_OF_ONE_RUN = ("model", "output", "size", "options", "checkpoint", "resume")
_RANGES = {"resolution": (128, 256), "width": (0.25, 1.0), "depth-ir": (0.5, 2.0), "depth-vit": (0.25, 1.5)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="sample|fit|downsize")
    for name, add, summary in (
        ("sample", _add_sample, "train settings of the factors briefly and time them; goes on where an earlier run ended"),
        ("fit", _add_fit, "fit Gaussian processes to the samples, judge them and draw them"),
        ("downsize", _add_downsize, "derive models within a budget"),
    ):
        step = steps.add_parser(name, help=summary, description=summary)
        add(step)
        step.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document, nothing else, on stdout")


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder for samples.csv and recipe.json; settings may be added to it")
    parser.add_argument("--count", type=positive_int, default=48, help="settings (default: %(default)s)")
    parser.add_argument("--only", choices=("accuracy", "latency"), help="leave out the other; latency takes its settings from samples.csv")
    parser.add_argument("--jobs", type=positive_int, default=1, help="settings trained at a time (default: %(default)s)")
    for name, (low, high) in _RANGES.items():
        kind = int if name == "resolution" else float
        parser.add_argument(
            f"--{name}", type=_range_of(kind), default=(low, high), metavar="LOW,HIGH", help=f"range of the factor (default: {low},{high})"
        )
    parser.add_argument("--resolution-step", type=positive_int, default=8, help="resolutions are its multiples (default: %(default)s)")
    parser.add_argument("--canvas", type=positive_int, help="stand-in task: side of the drawn images (default: the highest resolution)")
    parser.add_argument("--target", choices=TARGETS, default="both", help="stand-in task: what is asked for (default: %(default)s)")
    parser.add_argument("--plain", action="store_true", help="stand-in task: digits on black")
    parser.add_argument("--threads", type=_list_of(positive_int), default=[1, 2], help="of the timed networks (default: 1,2)")
    parser.add_argument("--limit", type=float, help="seconds after which no further setting is timed")
    add_fields(parser, TrainConfig, without=_OF_ONE_RUN)


def _add_fit(parser: argparse.ArgumentParser) -> None:
    _add_samples(parser)
    parser.add_argument("--output", type=Path, help="folder for pictures of the surfaces")


def _add_downsize(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--macs", type=_amount, help="multiply-adds of one image, such as 300M")
    budget.add_argument("--params", type=_amount, help="parameters, such as 1.5M")
    budget.add_argument("--latency-ms", type=_amount, help="milliseconds of one image, measured here with mk.compile")
    _add_samples(parser)
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32", help="of --latency-ms (default: %(default)s)")
    parser.add_argument("--threads", type=positive_int, default=1, help="of --latency-ms (default: %(default)s)")
    parser.add_argument("--classes", type=positive_int, default=1000, help="of the models (default: %(default)s)")
    parser.add_argument("--top", type=positive_int, default=5, help="models, best first (default: %(default)s)")
    parser.add_argument(
        "--family",
        type=positive_int,
        help="in place of --top: the best of this many budgets, each --ratio of the one before, down to the least possible",
    )
    parser.add_argument("--ratio", type=float, default=0.5, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for models.json, whose configs mk.create_model takes, and front.png")


def _add_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=Path, help="folder that `scale sample` filled (default: the one that is shipped)")
    parser.add_argument("--seed", type=natural_number, default=0, help="of all that is drawn (default: %(default)s)")


def run(args: argparse.Namespace) -> Any:
    return {"sample": _sample, "fit": _fit, "downsize": _downsize}[args.step](args)


def _sample(args: argparse.Namespace) -> dict[str, Any]:
    from mvit_kernels.scaling import Box, Recipe, measure, sample

    if args.only != "latency":
        training = {field.name: getattr(args, field.name) for field in dataclasses.fields(TrainConfig) if field.name not in _OF_ONE_RUN}
        box = Box(args.resolution, args.width, args.depth_ir, args.depth_vit, args.resolution_step)
        canvas = args.canvas or max(args.resolution[1], MIN_SIZE)
        recipe = Recipe(TrainConfig("mobilevitv2", args.output, **training), box, canvas, args.target, args.plain)
        samples = sample(args.output, args.count, recipe, jobs=args.jobs, command=args.command)
    if args.only != "accuracy":
        samples = measure(args.output, threads=args.threads, limit=args.limit)
        samples = dataclasses.replace(samples, recipe={**samples.recipe, "latency": conditions(args.command)})
        write_text(args.output / "recipe.json", json_text(samples.recipe))
    return {"samples": [_row(each) for each in samples.samples], "recipe": samples.recipe}


def _row(sample: Any) -> dict[str, Any]:
    fields = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    latency = {f"{precision}_{threads}t_ms": value for (precision, threads), value in sample.latency.items()}
    return {**fields, "factors": sample.factors._asdict(), "latency": latency}


def _read(folder: Path | None) -> SampleSet:
    """What --samples says. Raises ValueError, which names the flag."""
    from mvit_kernels.scaling import SHIPPED, read

    try:
        samples = read(folder or SHIPPED)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"--samples: expected a folder that `mvit-kernels scale sample` filled, with samples.csv and recipe.json, got {str(folder)!r}"
        ) from error
    if not samples.samples:
        raise ValueError(f"--samples: expected samples, lines below the first one of samples.csv in {str(folder)!r}, got none")
    return samples


def _fit(args: argparse.Namespace) -> dict[str, Any]:
    from mvit_kernels import scaling

    samples = _read(args.samples)
    surfaces = {"top-1": scaling.accuracy_surface(samples, args.seed)}
    for precision, threads in scaling.timed(samples):
        surfaces[f"{precision}, {threads} threads, ms"] = scaling.latency_surface(samples, precision, threads, args.seed)
    if args.output:
        from mvit_kernels.scaling import plots

        args.output.mkdir(parents=True, exist_ok=True)
        for name, surface in surfaces.items():
            plots.surfaces(surface, samples.ranges, name, args.output / f"{re.sub('[^a-z0-9]+', '-', name)}.png")
    fits = {name: {**surface.leave_one_out()._asdict(), "kernel": surface.kernel} for name, surface in surfaces.items()}
    return {"samples": len(samples.samples), "ranges": samples.ranges, "inputs": scaling.INPUTS, "fits": fits}


def _downsize(args: argparse.Namespace) -> list[dict[str, Any]]:
    from mvit_kernels import scaling

    if not 0 < args.ratio < 1:
        raise ValueError(f"--ratio: expected a number between 0 and 1, got {args.ratio}")
    samples = _read(args.samples)
    cost: scaling.Cost = scaling.Macs(args.classes)
    if args.params is not None:
        cost = scaling.Params(args.classes)
    elif args.latency_ms is not None:
        cost = scaling.Latency(scaling.latency_surface(samples, args.precision, args.threads, args.seed))
    downsizer = scaling.Downsizer(samples, cost, num_classes=args.classes, seed=args.seed)
    first = next(budget for budget in (args.macs, args.params, args.latency_ms) if budget is not None)
    models = list[scaling.Derived]()
    for budget in [first * args.ratio**step for step in range(args.family or 1)]:
        try:
            if args.latency_ms is None:
                found = downsizer.derive(budget, args.top)
            else:
                found = downsizer.derive_measured(budget, args.top, args.precision, args.threads)
        except ValueError as error:
            if not models:
                raise
            warn(f"the family ends after {len(models)} of {args.family} models: {error}")
            break
        models += found[:1] if args.family else found
    documents = [{"measure": cost.unit, **model.document()} for model in models]
    if args.output:
        from mvit_kernels.scaling import plots

        args.output.mkdir(parents=True, exist_ok=True)
        write_text(args.output / "models.json", json_text(documents))
        title = f"MobileViTv2 within a budget; accuracy predicted from {len(samples.samples)} samples"
        plots.fronts(downsizer, models, title, args.output / "front.png")
    return documents


def show(document: Any) -> None:
    if isinstance(document, list):
        _show_models(document)
    elif "fits" in document:
        _show_fits(document)
    else:
        _show_samples(document)


def _show_samples(document: dict[str, Any]) -> None:
    latencies = sorted({name for sample in document["samples"] for name in sample["latency"]})
    rows = [
        [
            *_factors(sample["factors"]),
            f"{sample['macs'] / 1e6:.1f}",
            f"{sample['params'] / 1e6:.3f}",
            f"{100 * sample['top1']:.1f}",
            *(f"{sample['latency'][name]:.2f}" if name in sample["latency"] else "" for name in latencies),
        ]
        for sample in document["samples"]
    ]
    columns = (*_COLUMNS, "MACs\nM", "params\nM", "top-1\n%", *(name.removesuffix("_ms").replace("_", "\n") + ", ms" for name in latencies))
    print_table(f"{len(rows)} settings", columns, rows, left=0)


def _show_fits(document: dict[str, Any]) -> None:
    rows = [
        [name, f"{fit['rmse']:.3g}", f"{fit['r2']:.3f}", f"{100 * fit['within_68']:.0f} %", f"{100 * fit['within_95']:.0f} %"]
        for name, fit in document["fits"].items()
    ]
    print_table(f"{document['samples']} samples, each predicted from the others", ("fit", "rmse", "R²", "in 68 %", "in 95 %"), rows)
    print("R² on the fitted scale (logits, logarithms); the last two: share of samples in the central intervals of that probability.")


def _show_models(models: list[dict[str, Any]]) -> None:
    rows = [
        [
            *_factors(model),
            f"{model['macs'] / 1e6:.2f}",
            f"{model['params'] / 1e6:.3f}",
            f"{model['cost']:.4g}",
            f"{100 * model['gap']:.2f} %",
            f"{100 * model['accuracy']:.1f} ± {100 * model['accuracy_deviation']:.1f}",
            ", ".join(model["extrapolated"]),
        ]
        for model in models
    ]
    columns = (*_COLUMNS, "MACs\nM", "params\nM", models[0]["measure"], "gap", "top-1, %\npredicted", "outside of the samples")
    budgets = " to ".join(f"{each:.4g}" for each in dict.fromkeys((models[0]["budget"], models[-1]["budget"])))
    print_table(f"Within {budgets} {models[0]['measure']}", columns, rows, left=0)
    print("Accuracies are those of the recipe of the samples, one deviation; where a factor is outside of the samples, guesses.")


_COLUMNS = ("resolution", "width", "depth\nIR", "depth\nViT")


def _factors(values: dict[str, Any]) -> list[str]:
    return [str(values["resolution"]), *(f"{values[name]:.3g}" for name in ("width", "depth_ir", "depth_vit"))]


def _range_of(kind: type) -> Callable[[str], tuple[Any, Any]]:
    def parse(text: str) -> tuple[Any, Any]:
        try:
            low, high = (kind(value) for value in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected two numbers with a comma between them, got {text!r}") from None
        return low, high

    return parse


def _list_of(kind: Callable[[str], int]) -> Callable[[str], list[int]]:
    return lambda text: [kind(value) for value in text.split(",")]


def _amount(text: str) -> float:
    """A positive number, in thousands (k), millions (M) or billions (G) if it says so."""
    factor = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}.get(text[-1:])
    try:
        value = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number such as 5, 800k, 300M or 1.2G, got {text!r}")
    return value
