"""Networks trained on the stand-in task, and how accurate they are on held-out images of it, at full and at half resolution.

    python benchmarks/standin_training.py                  # judges the shipped checkpoints, and what is in runs/
    python benchmarks/standin_training.py --models all     # trains first what is not there; goes on where it was interrupted
    python benchmarks/standin_training.py --models mobilevit_s --output elsewhere/    # trains and judges this one

writes results/standin_training.json, with the commands that trained the networks and the time that it took; what it knew of others stays.
Two networks come with the package (`mvit_kernels/checkpoints`); the others are larger, and are trained by `RECIPES`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mvit_kernels import checkpoints
from mvit_kernels.cli.network import load_classifier
from mvit_kernels.data import StandInTask
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions
from mvit_kernels.training import TrainConfig, evaluate, train

SAMPLES = 2000
RUNS = Path("runs")
RESULTS = Path(__file__).parent / "results" / "standin_training.json"
RECIPES: dict[str, tuple[dict[str, Any], ...]] = {
    "mobilevit_xxs": ({"size": 64, "samples": 40_000}, {"size": 128, "samples": 60_000}),
    "mobilevitv2_050": (
        {"size": 64, "samples": 40_000, "lr": 0.002, "amp": "bf16"},
        {"size": 128, "samples": 45_000, "lr": 0.002, "amp": "bf16"},
    ),
    "mobile_former_26m": ({"size": 64, "samples": 50_000, "lr": 0.002},),
    "efficientformerv2_s0": ({"size": 96, "samples": 40_000, "lr": 0.002, "options": '{"image_size": 96}'},),
    "efficientformer_l1": (
        {"size": 64, "samples": 25_600, "warmup": 100, "options": '{"image_size": 64}', "amp": "bf16"},
        {"size": 64, "samples": 44_800, "warmup": 50, "options": '{"image_size": 64}', "amp": "bf16"},
    ),
    "mobilevitv2_100": ({"size": 64, "samples": 40_000}, {"size": 64, "samples": 64_000, "warmup": 50}),
    "mobilevit_s": ({"size": 64, "samples": 40_000},),
}
"""What each training differs in from the defaults of `TrainConfig`; of several, each goes on from the weights of the one before."""


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    for name in args.models:
        trained(name, args.output)
    known = {each["model"]: each for each in json.loads(args.results.read_text())["checkpoints"]} if args.results.exists() else {}
    found = args.models or [name for name in RECIPES if weights(name, args.output) is not None]
    command = shlex.join(["python", "benchmarks/standin_training.py", *(sys.argv[1:] if argv is None else argv)])
    known |= {name: row(name, args.output, args.heldout_samples, command) for name in found}
    rows = [known[name] for name in RECIPES if name in known]
    write_text(args.results, json.dumps({"checkpoints": rows}, indent=2) + "\n")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=(), choices=("all", *RECIPES), metavar="NAME", help=f"to train: all, {', '.join(RECIPES)}"
    )
    parser.add_argument("--output", type=Path, default=RUNS, help="folder of the trained networks (default: %(default)s)")
    parser.add_argument("--heldout-samples", type=int, default=SAMPLES, help="images to judge on (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if "all" in args.models:
        args.models = tuple(RECIPES)
    return args


def trained(name: str, folder: Path) -> Path:
    """The weights of a network, trained by its recipe if they are not in the folder yet: `folder/name/model.safetensors`."""
    path: Path | None = None
    for settings in RECIPES[name]:
        last = settings is RECIPES[name][-1]
        output = folder / (name if last else f"{name}-{settings['size']}")
        state = output / "state.pt"
        config = TrainConfig(name, output, checkpoint=path, resume=state if state.exists() else None, **settings)
        path = output / "model.safetensors"
        if not path.exists():
            train(config)
    assert path is not None
    return path


def weights(name: str, folder: Path) -> Path | None:
    """The file of a network's weights: in the folder, else of those that are shipped, else None."""
    path = folder / name / "model.safetensors"
    if path.is_file():
        return path
    return checkpoints.path(name) if name in checkpoints.SHIPPED else None


def row(name: str, folder: Path, samples: int, command: str) -> dict[str, Any]:
    """What the results say of a network."""
    path = weights(name, folder)
    assert path is not None
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    classifier = load_classifier(name, path)
    heldout = StandInTask("heldout", samples, classifier.size, int(metadata["seed"]))
    full, half = (evaluate(classifier.model, heldout, downscale=factor).top1 for factor in (1, 2))
    print(f"{name}: {full:.2%} at full, {half:.2%} at half resolution")
    training = {key: int(metadata[key]) for key in ("seed", "steps", "seconds")}
    training |= {key: metadata[key] for key in ("command", "trained_on")}
    accuracy = {"top1": full, "top1_half_resolution": half, "heldout_samples": samples}
    judged = {"conditions": conditions(command)}
    return {"model": name, "size": classifier.size, "training": training} | accuracy | judged


if __name__ == "__main__":
    main()
