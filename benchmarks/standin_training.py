"""Accuracy of the shipped checkpoints on generated held-out images, and on the same images of half the resolution.

    python benchmarks/standin_training.py

writes results/standin_training.json, with the commands that trained the checkpoints and the time that it took.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

import mvit_kernels.checkpoints as checkpoints
from mvit_kernels.data import StandInTask
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions
from mvit_kernels.models import create_model
from mvit_kernels.training import evaluate

SAMPLES = 2000
RESULTS = Path(__file__).parent / "results" / "standin_training.json"


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name in checkpoints.SHIPPED:
        with safe_open(checkpoints.path(name), "pt") as file:
            metadata = file.metadata()
        model = create_model(name, num_classes=int(metadata["num_classes"]), checkpoint=checkpoints.path(name))
        heldout = StandInTask("heldout", SAMPLES, int(metadata["size"]), int(metadata["seed"]))
        full, half = (evaluate(model, heldout, downscale=factor).top1 for factor in (1, 2))
        print(f"{name}: {full:.2%} at full, {half:.2%} at half resolution")
        training = {key: int(metadata[key]) for key in ("steps", "seconds")}
        training |= {key: metadata[key] for key in ("command", "trained_on")}
        accuracy = {"top1": full, "top1_half_resolution": half, "heldout_samples": SAMPLES}
        rows.append({"model": name, "size": heldout.size, "training": training} | accuracy)
    document = {"conditions": conditions("python benchmarks/standin_training.py"), "checkpoints": rows}
    write_text(RESULTS, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
