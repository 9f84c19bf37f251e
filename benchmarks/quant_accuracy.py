"""What quantization costs: top-1 on held-out images of the networks of `standin_training.py`, and of variants that are harder to quantize.

    python benchmarks/quant_accuracy.py                         # all shipped networks, and those in runs/; goes on where it was interrupted
    python benchmarks/quant_accuracy.py --models mobilevit_s --methods minmax qhyvit best
    python benchmarks/quant_accuracy.py --methods qhyvit --bits 6 --results mine.json
    python benchmarks/quant_accuracy.py --table                 # prints what was measured
    python benchmarks/quant_accuracy.py --imagenet DIR --results imagenet.json   # the table of the Q-HyViT paper, for who has ImageNet

Accuracy is that of the compiled integer plan, or of the simulation where a method has quantizers that no kernel runs ("kernels": false).
Every case is one calibration: network, variant (`stress.py`), bits, method, and the seed by which its 32 training images are drawn and what
the method draws. Which images each got right is kept, so that differences are of the same images; their intervals are those of a bootstrap
over images, in which all seeds of a case stay together. Behind "seeds" is the standard deviation of single calibrations, where there are
several.

With --imagenet, the networks are timm's pretrained ones, calibrated on images of DIR/train and judged on all of DIR/val, in any layout that
`mvit-kernels eval` reads. Beside what is measured the table then has what the paper says of its method. This was never run here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from standin_training import RECIPES, RUNS, weights
from stress import VARIANTS, stressed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import mvit_kernels as mk
from mvit_kernels.cli.network import load_classifier
from mvit_kernels.data import StandInTask
from mvit_kernels.data.listed import calibration_images, evaluation_set
from mvit_kernels.files import write_text
from mvit_kernels.machine import commit, conditions, usable_cores
from mvit_kernels.models import Normalization
from mvit_kernels.quant.config import METHODS

RESULTS = Path(__file__).parent / "results" / "quant_accuracy.json"
PAPER = {  # Q-HyViT, arXiv 2303.12557 v3, table II: top-1 in float, at W8A8 and at W6A6
    "mobilevit_xxs": (69.0, 68.20, 66.33),
    "mobilevit_s": (78.4, 77.92, 77.18),
    "mobilevitv2_100": (78.1, 77.63, 77.11),
    "efficientformer_l1": (80.2, 80.15, 77.25),
    "efficientformerv2_s0": (76.2, 74.69, 74.18),
    "efficientformerv2_l": (83.5, 82.80, 82.71),
}
SAMPLES, CALIBRATION, BATCH = 1000, 32, 50
RESAMPLES = 4000
LEVEL = 0.95
PLAIN = "trained"


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    images: Images = StandIn(args.samples, args.trained) if args.imagenet is None else ImageNet(args.imagenet)
    document = json.loads(args.results.read_text()) if args.results.exists() else {"images": str(images), "float": [], "cases": []}
    if document["images"] != str(images):
        raise SystemExit(f"{args.results} holds accuracies on {document['images']}, not on {images}: pass other --results")
    if not args.table:
        command = shlex.join(["python", "benchmarks/quant_accuracy.py", *(sys.argv[1:] if argv is None else argv)])
        _measure(args, images, document, command)
    print(table(document))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="(default: all)")
    parser.add_argument(
        "--variants", nargs="+", choices=(PLAIN, *VARIANTS), help="of MobileViTs; others are measured as trained (default: all)"
    )
    parser.add_argument("--bits", nargs="+", type=int, default=(8, 6), choices=(8, 6))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--samples", type=int, default=SAMPLES, help="held-out images of the stand-in task (default: %(default)s)")
    parser.add_argument("--trained", type=Path, default=RUNS, metavar="DIR", help="--output of standin_training.py (default: %(default)s)")
    parser.add_argument("--imagenet", metavar="DIR", help="with train and val")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args(argv)
    known, variants = (tuple(RECIPES), (PLAIN, *VARIANTS)) if args.imagenet is None else (tuple(PAPER), (PLAIN,))
    there = [name for name in known if args.imagenet is not None or weights(name, args.trained) is not None]
    args.models, args.variants = args.models or there, args.variants or variants
    for given, choices in ((args.models, known), (args.variants, variants)):
        if wrong := sorted(set(given) - set(choices)):
            parser.error(f"expected some of {', '.join(choices)}, got {wrong[0]}")
    if untrained := sorted(set(args.models) - set(there)):
        name = untrained[0]
        parser.error(f"{name} is not in {args.trained}: standin_training.py --models {name} --output {args.trained} trains it")
    if args.imagenet is not None and args.results == RESULTS:
        parser.error("--imagenet needs --results of its own")
    return args


def _measure(args: argparse.Namespace, images: Images, document: dict[str, Any], command: str) -> None:
    """The conditions of a document are those of the case that was measured last; which code found the others, each says."""
    done = {_key(case) for case in document["cases"]}
    wanted = [
        {"model": model, "variant": variant, "bits": bits, "method": method, "seed": seed}
        for model in args.models for variant in args.variants if variant == PLAIN or model.startswith("mobilevit")
        for seed in args.seeds for bits in args.bits for method in args.methods
    ]  # fmt: skip
    name, network = None, None
    for case in tqdm([case for case in wanted if _key(case) not in done], disable=None):
        if name != (case["model"], case["variant"]):
            name, network = (case["model"], case["variant"]), images.network(case["model"])
            if case["variant"] != PLAIN:
                network = network._replace(model=stressed(network.model, case["variant"]))
        assert network is not None
        exact = next((each for each in document["float"] if each["model"] == case["model"]), None)
        if exact is None:
            hits = _hits(network.model, images.held_out(network))
            document["float"].append({"model": case["model"], "weights": network.weights, "samples": len(hits), "hits": _packed(hits)})
        elif exact["weights"] != network.weights:
            raise SystemExit(f"{args.results} holds accuracies of other weights of {case['model']}: pass other --results")
        config = mk.QuantConfig(case["bits"], case["bits"], case["method"], seed=case["seed"])
        quantized = mk.quantize(network.model, images.calibration(network, case["seed"]), config, progress=False)
        kernels = not quantized.simulation_only()
        if kernels:
            hits = _hits(mk.compile(quantized, torch.zeros(1, 3, network.size, network.size)), images.held_out(network))
        else:
            quantized.backend = None  # kernels for what they run: the same bits
            hits = _hits(quantized, images.held_out(network))
        document["cases"].append(case | {"kernels": kernels, "top1": float(hits.mean()), "hits": _packed(hits), "commit": commit()})
        write_text(args.results, json.dumps(document | {"conditions": conditions(command)}, indent=1) + "\n")
        print(f"{' '.join(str(value) for value in case.values())}: {hits.mean():.1%}", file=sys.stderr, flush=True)


def _key(case: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(case[name] for name in ("model", "variant", "bits", "method", "seed"))


class Network(NamedTuple):
    """weights: what tells them from others."""

    model: nn.Module
    size: int
    weights: str
    normalized: Normalization = Normalization()


class Images(Protocol):
    """Where networks and images come from; str() names it."""

    def network(self, name: str) -> Network: ...

    def calibration(self, network: Network, seed: int) -> list[Tensor]:
        """Training images, other ones for each seed."""

    def held_out(self, network: Network) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches of images and labels."""


class StandIn:
    """The stand-in task."""

    def __init__(self, samples: int, trained: Path) -> None:
        self.samples, self.trained, self.drawn = samples, trained, dict[int, list[Tensor]]()

    def __str__(self) -> str:
        return f"{self.samples} held-out images of the stand-in task"

    def network(self, name: str) -> Network:
        path = weights(name, self.trained)
        assert path is not None
        classifier = load_classifier(None, path)
        return Network(classifier.model, classifier.size, hashlib.sha256(path.read_bytes()).hexdigest())

    def calibration(self, network: Network, seed: int) -> list[Tensor]:
        images, _ = next(iter(DataLoader(StandInTask("train", CALIBRATION, network.size, 1000 + seed), CALIBRATION)))
        return list(images.split(8))

    def held_out(self, network: Network) -> Iterable[tuple[Tensor, Tensor]]:
        if network.size not in self.drawn:
            self.drawn[network.size] = next(iter(DataLoader(StandInTask("heldout", self.samples, network.size), self.samples)))
        images, labels = self.drawn[network.size]
        return zip(images.split(BATCH), labels.split(BATCH), strict=True)


class ImageNet:
    """ImageNet, and timm's pretrained networks."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return "ImageNet"

    def network(self, name: str) -> Network:
        import timm

        model = timm.create_model(name, pretrained=True).eval()
        data = model.default_cfg
        return Network(
            model, data["input_size"][-1], f"timm's {data['architecture']}.{data['tag']}", Normalization(data["mean"], data["std"])
        )

    def calibration(self, network: Network, seed: int) -> list[Tensor]:
        images = calibration_images(Path(self.folder) / "train", CALIBRATION, network.size, seed)
        return list(network.normalized(images).split(8))

    def held_out(self, network: Network) -> Iterable[tuple[Tensor, Tensor]]:
        loader = DataLoader(evaluation_set(self.folder, network.size), BATCH, num_workers=usable_cores())
        return ((network.normalized(images), labels) for images, labels in loader)


@torch.inference_mode()
def _hits(model: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> np.ndarray:
    """(images,) bool: where the largest logit is the label's."""
    return torch.cat([model(images).argmax(1) == labels for images, labels in batches]).numpy()


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
    """Points of top-1 against the float network on the same images: mean and interval, and the spread of several seeds."""
    exact = {each["model"]: _unpacked(each["hits"], each["samples"]) for each in document["float"]}
    cases: dict[tuple[str, str, int], dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for case in document["cases"]:
        hits = _unpacked(case["hits"], len(exact[case["model"]]))
        cases[case["model"], case["variant"], case["bits"]][case["method"]].append(hits)
    methods = [method for method in METHODS if any(method in each for each in cases.values())]
    paper = ["Q-HyViT as published"] if document["images"] == "ImageNet" else []
    lines = [f"| network (float), variant, bits | {' | '.join(methods + paper)} |", f"|{'---|' * (len(methods + paper) + 1)}"]
    for (model, variant, bits), found in cases.items():
        cells = [_cell(found.get(method, []), exact[model]) for method in methods]
        cells += [f"{PAPER[model][1 if bits == 8 else 2] - PAPER[model][0]:+.1f}" for _ in paper]
        lines.append(f"| `{model}` ({100 * exact[model].mean():.1f}), {variant.replace('_', ' ')}, {bits} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(hits: list[np.ndarray], exact: np.ndarray) -> str:
    if not hits:
        return ""
    mean, low, high = interval(np.mean(hits, axis=0) - exact)
    spread = f"; seeds ± {100 * np.std([each.mean() for each in hits], ddof=1):.1f}" if len(hits) > 1 else ""
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}{spread})"


if __name__ == "__main__":
    main()
