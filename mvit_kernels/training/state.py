"""What a run leaves on disk: the state to resume from, the history, the trained weights."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mvit_kernels.files import replace_file, write_text
from mvit_kernels.training.config import TrainConfig

FREE_TO_CHANGE = frozenset({"output", "resume", "checkpoint", "heldout_samples", "workers", "save_every", "accelerate", "device"})
"""Fields of the configuration that may differ when a run is resumed."""


_STATE_KEYS = {"identity", "model", "model_ema", "optimizer", "step", "seconds", "record"}


def identity_of(config: TrainConfig, processes: int, images: int, classes: int) -> dict[str, Any]:
    """All that shapes the weights: a run goes on as it began only if none of it differs."""
    fields = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    return fields | {"processes": processes, "images": images, "classes": classes}


def save_state(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    replace_file(path, lambda temporary: torch.save({"identity": identity, **state}, temporary))


def load_state(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The state in a file, checked against the run it is to go on in."""
    if not path.is_file():
        raise FileNotFoundError(f"train: resume: no such file: {path}")
    foreign = f"train: resume: expected a state.pt written by training, got {str(path)!r}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(foreign) from error
    if not isinstance(state, dict) or not state.keys() >= _STATE_KEYS or not isinstance(state["identity"], dict):
        raise ValueError(foreign)
    old = state["identity"]
    changed = [f"{name} {old.get(name)!r} -> {identity.get(name)!r}" for name in old | identity if old.get(name) != identity.get(name)]
    if changed:
        raise ValueError(f"train: resume: expected the run that wrote {str(path)!r}, got {', '.join(changed)}")
    return state


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in fp16; counters keep their type. ValueError if a weight is not finite in fp16."""
    half = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    bad = [name for name, weight in half.items() if not weight.isfinite().all()]
    if bad:
        raise ValueError(f"halved: weights: expected values that fp16 holds, got others in {', '.join(bad[:3])}")
    return half


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Weights as fp16 safetensors; see `halved`."""
    half = {name: weight.contiguous().cpu() for name, weight in halved(weights).items()}
    replace_file(path, lambda temporary: temporary.write_bytes(save(half, metadata)))


def read_metadata(path: Path) -> dict[str, str]:
    """What stands beside the weights in a safetensors file; nothing if the file is of another kind."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


class History:
    """A file of JSON lines, one a logged step; a resumed run drops what the interrupted one wrote past its state."""

    def __init__(self, path: Path, first_step: int) -> None:
        kept = []
        if first_step and path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= first_step]
        self._path = path
        write_text(path, "".join(kept))

    def append(self, **values: float) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def _step_of(line: str) -> float:
    """Infinite of what a power cut left of a line, which is no reason not to go on."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
