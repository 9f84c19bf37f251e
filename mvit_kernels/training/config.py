"""What a training run is made of."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class TrainConfig:
    """A training run. On one machine, two runs on the CPU with the same configuration give the same weights.

    The defaults follow MobileViT (Mehta and Rastegari 2022, section 4.1), made short enough for one CPU core.
    """

    model: str
    """a name that `mvit_kernels.create_model` knows"""
    output: Path
    """folder for model.safetensors (the result), state.pt (to resume from) and history.jsonl"""
    data: str = "standin"
    """"standin", or a folder with train/<class>/ and val/<class>/"""
    checkpoint: Path | None = None
    """weights to start from; without it they are random, as a classifier of other classes always is"""
    options: str = "{}"
    """options of the model, as a JSON object such as {"width": 0.4, "depth_vit": 0.5}"""
    samples: int = 100_000
    """stand-in task: generated training images an epoch"""
    heldout_samples: int = 2000
    """stand-in task: generated held-out images"""
    size: int = 128
    """side of the square training image in pixels"""
    epochs: int = 1
    """passes over the training set"""
    steps: int | None = None
    """optimizer steps; overrides epochs"""
    batch_size: int = 32
    """images a step and process"""
    lr: float = 1e-3
    """peak learning rate; a cosine takes it to a hundredth of this"""
    weight_decay: float = 0.01
    """AdamW's, on weights of two dimensions and more"""
    warmup: int = 200
    """steps of linear warm-up"""
    label_smoothing: float = 0.1
    """share of the target spread over all classes"""
    ema: float = 0.999
    """decay a step of the averaged weights, which are the result; 0: the last weights are"""
    clip: float = 5.0
    """largest norm of the gradient"""
    amp: Literal["none", "bf16"] = "none"
    """autocast of the forward pass"""
    accelerate: bool = False
    """train with the kernels of this package in place of PyTorch's"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to train; under torchrun, cuda means the process's own GPU"""
    workers: int = 0
    """processes that prepare images, for each training process"""
    seed: int = 0
    """of the weights, the stand-in images, their order and the augmentation"""
    save_every: int = 250
    """steps between two written states"""
    resume: Path | None = None
    """a state.pt to go on from; every field that shapes the weights must be as it was"""

    def __post_init__(self) -> None:
        for field in ("samples", "heldout_samples", "size", "epochs", "batch_size", "save_every"):
            _require(self, field, getattr(self, field) >= 1, "at least 1")
        _require(self, "steps", self.steps is None or self.steps >= 1, "at least 1")
        for field in ("weight_decay", "warmup", "workers", "seed"):
            _require(self, field, getattr(self, field) >= 0, "at least 0")
        for field in ("lr", "clip"):
            _require(self, field, getattr(self, field) > 0, "more than 0")
        for field in ("lr", "weight_decay"):
            _require(self, field, getattr(self, field) < math.inf, "a finite number")
        _require(self, "seed", self.seed < 2**32, "below 2**32")
        for field in ("ema", "label_smoothing"):
            _require(self, field, 0 <= getattr(self, field) < 1, "at least 0 and below 1")
        model_options(self)
        _require(self, "amp", self.amp in ("none", "bf16"), "none or bf16")
        _require(self, "device", self.device in ("cpu", "cuda"), "cpu or cuda")


def model_options(config: TrainConfig) -> dict[str, Any]:
    """What `create_model` takes beside the name. ValueError if `config.options` is no JSON object."""
    try:
        options = json.loads(config.options)
    except ValueError:
        options = None
    _require(config, "options", isinstance(options, dict), "a JSON object")
    taken = options.keys() & {"num_classes", "checkpoint", "features_only"}
    _require(config, "options", not taken, f"no {' and '.join(sorted(taken))}, which the run itself decides,")
    return options


def _require(config: TrainConfig, field: str, met: bool, expected: str) -> None:
    if not met:
        raise ValueError(f"TrainConfig: {field}: expected {expected}, got {getattr(config, field)!r}")


def command_line(config: TrainConfig) -> str:
    """The command that starts this run; what equals its default, and the state that it resumed from, is left out."""
    words = ["mvit-kernels train"]
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name != "resume" and (field.default is MISSING or value != field.default):
            flag = f"--{field.name.replace('_', '-')}"
            words += [flag] if value is True else [flag, shlex.quote(str(value))]
    return " ".join(words)
