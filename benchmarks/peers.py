"""This package against every other way to run the same network on a CPU: one process, the same weights and images, in turn.

    python benchmarks/peers.py --models mobilevit_s --batches 1

Peers keep threads of their own that spin for a while after a call. So each variant has its burst in a round: a pause in which they go to
sleep, a call that does not count, then a few that do. Every round starts with the next variant. The exit code is 1 where one of ours could
not run, or computed something else: a peer may be missing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import itertools
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peer_cases import Case, settled_model
from peer_variants import VARIANTS, Network
from tqdm import tqdm

from mvit_kernels.cli.arguments import names, positive_int
from mvit_kernels.cli.output import json_text, print_table, warn
from mvit_kernels.cli.timing import Timing
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions, machine_line
from mvit_kernels.ops.backend import native as native_kernels

MODELS = ("mobilevitv2_050", "mobilevitv2_100", "mobilevitv2_200", "mobilevit_xxs", "mobilevit_s")
PACKAGES = ("openvino", "nncf", "onnxruntime", "onnx", "onnxscript")
CAPS = ("MVIT_KERNELS_ISA", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that hold instruction sets down: of this package, oneDNN, ATen and Inductor, MKL."""
PAUSE, CALLS, BURST = 0.02, 5, 0.25
"""Seconds before a burst; the most calls of it that count; seconds after which no further one is made."""
CEILINGS = {torch.float32: "fma_gflops", torch.bfloat16: "bf16_gflops", torch.int8: "dot_gops"}
"""Of products, what registers allow."""
TOLERANCE = 1e-3
"""Part of the range of logits that a float variant may be off: more than rounding is another network."""

Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
    try:
        models = {name: settled_model(name, args.size) for name in args.models}  # what cannot run fails before the first is measured
    except ValueError as error:
        parser.error(str(error))
    context = conditions(shlex.join(["python", "benchmarks/peers.py", *arguments])) | {
        "size": args.size,
        "rounds": args.rounds,
        "versions": _versions(),
        "environment": {name: os.environ[name] for name in CAPS if name in os.environ},
        **_ceilings(args.threads),
    }
    rows: list[Row] = []
    for name, model in models.items():
        for batch in args.batches:
            case = Case(name, model, batch, args.size, args.threads)
            rows += _measure(case, args.variants, args.rounds, context)
            document = {"conditions": context, "results": rows, "ratios": ratios(rows)}
            if args.results:  # after each case: the next may take minutes
                write_text(args.results / "peers.json", _text(document))
    sys.stdout.write(json_text(document)) if args.json else _show(document)
    return int(any("reason" in row and VARIANTS[row["variant"]].ours for row in rows))


def bursts(networks: Mapping[str, Callable[[], object]], rounds: int, label: str = "") -> dict[str, Timing]:
    """Times of every call that counts."""
    order = list(networks)
    samples: dict[str, list[float]] = {name: [] for name in order}
    gc.collect()
    gc.disable()
    try:
        for turn in tqdm(range(rounds), label, leave=False, disable=None):
            first = turn % len(order)
            for name in order[first:] + order[:first]:
                network = networks[name]
                time.sleep(PAUSE)
                network()
                began = started = time.perf_counter()
                for _ in range(CALLS):
                    network()
                    now = time.perf_counter()
                    samples[name].append(now - started)
                    if now - began > BURST:
                        break
                    started = now
    finally:
        gc.enable()
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def ratios(rows: Iterable[Row]) -> list[Row]:
    """How many times as long as each of ours every peer takes, of minima and of medians; with model None, the
    geometric mean over models."""
    timed = [row for row in rows if "reason" not in row]
    result: list[Row] = [
        {
            "model": peer["model"],
            "batch": peer["batch"],
            "peer": peer["variant"],
            "ours": ours["variant"],
            "of_minima": peer["min_ms"] / ours["min_ms"],
            "of_medians": peer["median_ms"] / ours["median_ms"],
        }
        for peer, ours in itertools.product(timed, timed)
        if (peer["model"], peer["batch"]) == (ours["model"], ours["batch"])
        and not VARIANTS[peer["variant"]].ours
        and VARIANTS[ours["variant"]].ours
    ]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in result:
        groups.setdefault((row["batch"], row["peer"], row["ours"]), []).append(row)
    for (batch, peer, ours), group in groups.items():
        if len(group) < 2:
            continue
        means = {key: statistics.geometric_mean(row[key] for row in group) for key in ("of_minima", "of_medians")}
        result.append({"model": None, "models": len(group), "batch": batch, "peer": peer, "ours": ours, **means})
    return result


def _measure(case: Case, variants: Iterable[str], rounds: int, context: Mapping[str, Any]) -> list[Row]:
    """A row for each variant, with its reason where it cannot run."""
    with torch.inference_mode():
        expected = torch.cat([case.model(x) for x in case.judged])
    label = f"{case.name}, batch {case.batch}"
    networks: dict[str, Callable[[], object]] = {}
    rows: list[Row] = []
    for name in tqdm(list(variants), f"{label}: prepare", leave=False, disable=None):
        row: Row = {"model": case.name, "batch": case.batch, "variant": name}
        rows.append(row)
        variant = VARIANTS[name]
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        try:
            with _quiet():
                network = variant.prepare(case)
            inputs = [x.to(memory_format=layout) for x in case.judged]
            with torch.inference_mode():
                row |= _compare(network, inputs, expected, exact=variant.products == torch.float32)
        except Exception as error:  # whatever stands in its way, the others run
            row["reason"] = _reason(error)
            continue
        networks[name] = functools.partial(network, inputs[0])
    with torch.inference_mode():
        times = bursts(networks, rounds, label)
    for row in rows:
        if "reason" not in row:
            row |= _times(times[row["variant"]], case, context[CEILINGS[VARIANTS[row["variant"]].products]])
    return rows


def _compare(network: Network, inputs: Iterable[torch.Tensor], expected: torch.Tensor, *, exact: bool) -> Row:
    """How far logits are from those of plain PyTorch in float32. ValueError where a float network computes something else."""
    logits = torch.cat([network(x).clone() for x in inputs])
    difference, reach = float((logits - expected).abs().max()), float(expected.max() - expected.min())
    if not math.isfinite(difference):
        raise ValueError("its logits are not finite")
    if exact and difference > TOLERANCE * reach:
        raise ValueError(f"its logits are off by {difference:.2g}, of a range of {reach:.2g}")
    cosine = float(F.cosine_similarity(logits, expected).min())
    return {"cosine": cosine, "max_difference": difference, "logit_range": reach}


def _times(timing: Timing, case: Case, ceiling: float | None) -> Row:
    row: Row = {
        key: 1e3 * seconds for key, seconds in (("min_ms", timing.minimum), ("median_ms", timing.median), ("spread_ms", timing.spread))
    }
    if ceiling is not None:
        row["floor_ms"] = 2 * case.macs / ceiling / 1e6
        row["share_of_floor"] = row["floor_ms"] / row["min_ms"]
    return row


def _ceilings(threads: int) -> dict[str, float | None]:
    """Billions of operations a second that registers allow: the most of ten tries; None without kernels."""
    if native_kernels is None:
        return dict.fromkeys(CEILINGS.values())
    measures = {name: getattr(native_kernels, name) for name in CEILINGS.values()}
    found = dict.fromkeys(measures, 0.0)
    for _ in range(10):  # some seconds apart, as other work takes a core for a while
        time.sleep(0.5)
        found = {name: max(found[name], measure(threads)) for name, measure in measures.items()}
    return {name: round(rate, 1) for name, rate in found.items()}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What peers print while they convert goes to a file that nobody reads: stdout is for results."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), torch.no_grad():
        yield


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _show(document: Mapping[str, Any]) -> None:
    context, rows = document["conditions"], document["results"]
    columns = ("model, batch", "variant", "min\nms", "median\nms", "spread\nms", "share of\nfloor", "cosine", "difference")
    title = f"{context['size']} x {context['size']}, threads: {context['threads']}, {context['rounds']} rounds of bursts in turn"
    print_table(title, columns, [_cells(row) for row in rows], left=2)
    print(
        "Random weights, images of the stand-in task. Share of floor: the original network's multiply-adds at what registers allow,\n"
        "over the minimum. Cosine: the smallest of an image's logits with those of plain PyTorch in float32; difference: the largest.\n"
    )
    for batch in dict.fromkeys(row["batch"] for row in rows):
        _show_ratios(batch, [row for row in document["ratios"] if row["batch"] == batch])
    for row in rows:
        if "reason" in row:
            warn(f"{row['model']}, batch {row['batch']}, {row['variant']}: {row['reason']}")
    if context["environment"]:
        caps = ", ".join(f"{name}={value}" for name, value in context["environment"].items())
        print(f"Held down by {caps}. ONNX Runtime has no such switch; OpenVINO obeys in what it computes by oneDNN.")
    print(machine_line(context), *(f"{name} {number}" for name, number in context["versions"].items()), sep=", ")


def _cells(row: Row) -> list[str]:
    head = [f"{row['model']}, {row['batch']}", row["variant"]]
    if "reason" in row:
        return [*head, *["-"] * 6]
    times = [f"{row[key]:.2f}" for key in ("min_ms", "median_ms", "spread_ms")]
    share = f"{100 * row['share_of_floor']:.0f} %" if "share_of_floor" in row else ""
    return [*head, *times, share, f"{row['cosine']:.5f}", f"{row['max_difference']:.1e}"]


def _show_ratios(batch: int, found: list[Row]) -> None:
    ours = list(dict.fromkeys(row["ours"] for row in found))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in found:
        model = row["model"] or f"mean of {row['models']}"
        lines.setdefault((model, row["peer"]), {})[row["ours"]] = f"{row['of_minima']:.2f} ({row['of_medians']:.2f})"
    if lines:
        title = f"Batch {batch}: times as long as ours that a peer takes, of minima (of medians), and geometric means over models"
        cells = [[*key, *(line.get(name, "-") for name in ours)] for key, line in lines.items()]
        print_table(title, ("model", "peer", *ours), cells, left=2)


def _text(document: Mapping[str, Any]) -> str:
    """JSON with a line for each result, so that two runs can be compared by eye and by diff."""
    parts = [f'"conditions": {json.dumps(document["conditions"], indent=1, allow_nan=False)}']
    for name in ("results", "ratios"):
        lines = ",\n".join(json.dumps(_rounded(row), allow_nan=False) for row in document[name])
        parts.append(f'"{name}": [\n{lines}\n]')
    return "{" + ",\n".join(parts) + "}\n"


def _rounded(row: Row) -> Row:
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f"Variants: {', '.join(VARIANTS)}.")
    parser.add_argument("--models", type=names, default=list(MODELS), metavar="NAME[,NAME...]", help=f"(default: {','.join(MODELS)})")
    parser.add_argument("--batches", type=_batches, default=[1, 8], metavar="N[,N...]", help="(default: 1,8)")
    parser.add_argument("--variants", type=_variants, default=list(VARIANTS), metavar="NAME[,NAME...]", help="(default: all)")
    parser.add_argument("--size", type=positive_int, default=256, help="side of the images, 64 to 256 (default: %(default)s)")
    parser.add_argument("--threads", type=positive_int, default=2, help="of every variant (default: %(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=15, help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write peers.json into this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    return parser


def _batches(text: str) -> list[int]:
    return [positive_int(each) for each in names(text)]


def _variants(text: str) -> list[str]:
    chosen = names(text)
    if unknown := set(chosen) - set(VARIANTS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(VARIANTS)}, got {', '.join(sorted(unknown))}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
