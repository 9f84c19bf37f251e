"""What a run leaves on disk: the state to resume from, the history, the trained weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mvit_kernels.files import replace_file
from mvit_kernels.training.config import TrainConfig

FREE_TO_CHANGE = frozenset({"output", "resume", "checkpoint", "heldout_samples", "workers", "save_every", "accelerate", "device"})
"""Fields of the configuration that may differ when a run is resumed."""


def save_state(path: Path, config: TrainConfig, state: dict[str, Any]) -> None:
    fields = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    replace_file(path, lambda temporary: torch.save({"config": fields, **state}, temporary))


def load_state(path: Path, config: TrainConfig) -> dict[str, Any]:
    """The state in a file, checked against the run it is to go on in."""
    if not path.is_file():
        raise FileNotFoundError(f"train: resume: no such file: {path}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not {"config", "model", "model_ema", "optimizer", "step"} <= state.keys():
        raise ValueError(f"train: resume: expected a state.pt written by training, got {str(path)!r}")
    fields = asdict(config)
    changed = [f"{name} {old!r} -> {fields[name]!r}" for name, old in state["config"].items() if fields[name] != old]
    if changed:
        raise ValueError(f"train: resume: expected the configuration of the interrupted run, got {', '.join(changed)}")
    return state


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Weights as fp16 safetensors; counters keep their type. ValueError if a weight is not finite in fp16."""
    half = {name: (weight.half() if weight.is_floating_point() else weight).contiguous().cpu() for name, weight in weights.items()}
    bad = [name for name, weight in half.items() if not weight.isfinite().all()]
    if bad:
        raise ValueError(f"save_weights: weights: expected values that fp16 holds, got others in {', '.join(bad[:3])}")
    replace_file(path, lambda temporary: temporary.write_bytes(save(half, metadata)))


class History:
    """A file of JSON lines, one a logged step; a resumed run drops what the interrupted one wrote past its state."""

    def __init__(self, path: Path, first_step: int) -> None:
        kept = []
        if first_step and path.is_file():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
        self._path = path
        replace_file(path, lambda temporary: temporary.write_text("".join(kept)))

    def append(self, **values: float) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")
