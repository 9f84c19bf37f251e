"""What quantization costs: top-1 on held-out images of the shipped networks, and of variants of them that are harder to quantize.

    python benchmarks/quant_accuracy.py                          # everything; goes on where it was interrupted
    python benchmarks/quant_accuracy.py --methods qhyvit --bits 6 --results /tmp/mine.json
    python benchmarks/quant_accuracy.py --table                  # prints what was measured

Accuracy is that of the compiled integer plan. Every case is one calibration: network, variant (`stress.py`), bits, method, and the seed by
which its 32 training images are drawn. Which images each got right is kept, so that differences are of the same images; their intervals are
those of a bootstrap over images, in which all seeds of a case stay together.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stress import VARIANTS, stressed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import mvit_kernels as mk
from mvit_kernels import checkpoints
from mvit_kernels.cli.network import load_classifier
from mvit_kernels.data import StandInTask
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions
from mvit_kernels.quant.config import AVAILABLE

RESULTS = Path(__file__).parent / "results" / "quant_accuracy.json"
SAMPLES, CALIBRATION, BATCH = 1000, 32, 50
RESAMPLES = 4000
LEVEL = 0.95
PLAIN = "trained"


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    document = json.loads(args.results.read_text()) if args.results.exists() else {"samples": args.samples, "float": [], "cases": []}
    if document["samples"] != args.samples:
        raise SystemExit(
            f"{args.results} holds accuracies on {document['samples']} images: pass --samples {document['samples']}, or other --results"
        )
    if not args.table:
        _measure(args, document)
    print(table(document))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=checkpoints.SHIPPED, choices=checkpoints.SHIPPED)
    parser.add_argument("--variants", nargs="+", default=(PLAIN, *VARIANTS), choices=(PLAIN, *VARIANTS))
    parser.add_argument("--bits", nargs="+", type=int, default=(8, 6), choices=(8, 6))
    parser.add_argument("--methods", nargs="+", default=AVAILABLE, choices=AVAILABLE)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--samples", type=int, default=SAMPLES, help="held-out images (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    return parser.parse_args(argv)


def _measure(args: argparse.Namespace, document: dict[str, Any]) -> None:
    done = {_key(case) for case in document["cases"]}
    wanted = [
        {"model": model, "variant": variant, "bits": bits, "method": method, "seed": seed}
        for model in args.models for variant in args.variants for seed in args.seeds for bits in args.bits for method in args.methods
    ]  # fmt: skip
    wanted = [case for case in wanted if _key(case) not in done]
    command = "python benchmarks/quant_accuracy.py"
    network, images, labels = _Networks(), torch.empty(0), torch.empty(0)
    for case in tqdm(wanted, disable=None):
        model, size = network(case["model"], case["variant"])
        if images.shape[-1] != size:
            images, labels = _held_out(size, args.samples)
        if not any(each["model"] == case["model"] for each in document["float"]):
            document["float"].append({"model": case["model"], "hits": _packed(_hits(model, images, labels))})
        began = time.monotonic()
        config = mk.QuantConfig(method=case["method"], weight_bits=case["bits"], activation_bits=case["bits"], seed=case["seed"])
        quantized = mk.quantize(model, calibration(size, case["seed"]), config, progress=False)
        seconds = time.monotonic() - began
        hits = _hits(mk.compile(quantized, images[:1]), images, labels)
        document["cases"].append(case | {"top1": float(hits.mean()), "seconds": round(seconds, 1), "hits": _packed(hits)})
        write_text(args.results, json.dumps({"conditions": conditions(command), **document}, indent=1) + "\n")
        print(f"{' '.join(str(value) for value in case.values())}: {hits.mean():.1%}, {seconds:.0f} s", file=sys.stderr, flush=True)


def _key(case: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(case[name] for name in ("model", "variant", "bits", "method", "seed"))


class _Networks:
    """The network of a case, made once for all that follow each other."""

    def __init__(self) -> None:
        self.name: tuple[str, str] | None = None
        self.model: tuple[nn.Module, int] | None = None

    def __call__(self, name: str, variant: str) -> tuple[nn.Module, int]:
        if self.name != (name, variant) or self.model is None:
            classifier = load_classifier(None, checkpoints.path(name))
            model = classifier.model if variant == PLAIN else stressed(classifier.model, variant)
            self.name, self.model = (name, variant), (model, classifier.size)
        return self.model


def calibration(size: int, seed: int) -> list[Tensor]:
    """Training images, other ones for each seed."""
    images, _ = next(iter(DataLoader(StandInTask("train", CALIBRATION, size, 1000 + seed), CALIBRATION)))
    return list(images.split(8))


def _held_out(size: int, samples: int) -> tuple[Tensor, Tensor]:
    images, labels = next(iter(DataLoader(StandInTask("heldout", samples, size), samples)))
    return images, labels


@torch.inference_mode()
def _hits(model: Any, images: Tensor, labels: Tensor) -> np.ndarray:
    """(images,) bool: where the largest logit is the label's."""
    return torch.cat(
        [model(batch).argmax(1) == label for batch, label in zip(images.split(BATCH), labels.split(BATCH), strict=True)]
    ).numpy()


def _packed(hits: np.ndarray) -> str:
    return np.packbits(hits).tobytes().hex()


def _unpacked(text: str, samples: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:samples].astype(np.float64)


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Of (images,) differences: their mean, and the ends of the bootstrap's interval of it."""
    generator = np.random.default_rng(0)
    means = differences[generator.integers(len(differences), size=(RESAMPLES, len(differences)))].mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(differences.mean()), float(low), float(high)


def table(document: dict[str, Any]) -> str:
    """Points of top-1 lost against the float network on the same images: mean and interval."""
    samples = document["samples"]
    exact = {each["model"]: _unpacked(each["hits"], samples) for each in document["float"]}
    cases: dict[tuple[str, str, int], dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for case in document["cases"]:
        cases[case["model"], case["variant"], case["bits"]][case["method"]].append(_unpacked(case["hits"], samples))
    methods = [method for method in AVAILABLE if any(method in each for each in cases.values())]
    lines = [f"| network, variant, bits | {' | '.join(methods)} |", f"|{'---|' * (len(methods) + 1)}"]
    lines += [
        f"| `{model}` ({100 * exact[model].mean():.1f}), {variant.replace('_', ' ')}, {bits} | "
        + " | ".join(_cell(found.get(method, []), exact[model]) for method in methods) + " |"
        for (model, variant, bits), found in cases.items()
    ]  # fmt: skip
    return "\n".join(lines)


def _cell(hits: list[np.ndarray], exact: np.ndarray) -> str:
    if not hits:
        return ""
    mean, low, high = interval(np.mean(hits, axis=0) - exact)
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    main()
