"""A model with its weights, and what its checkpoint file says about itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

import mvit_kernels as mk

SCALED = "mobilevitv2"
"""The model whose size follows from options."""


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode, made with `options`. class_names: None where no file names them. size: side of its images in pixels."""

    name: str
    model: torch.nn.Module
    class_names: tuple[str, ...] | None
    size: int
    trained: bool
    options: dict[str, Any]


def load_classifier(name: str | None, checkpoint: Path | None, num_classes: int | None = None) -> Classifier:
    """Model `name` with the weights of a checkpoint file, or with random ones (seed 0).

    What is None, is as the metadata of a safetensors file say (`mvit-kernels train` writes them), else 1000 classes; so is the
    size, else the model's own or 256.
    Raises FileNotFoundError; ValueError for a file that is damaged, doesn't fit or has metadata that make no sense.
    """
    metadata = {} if checkpoint is None else _metadata(checkpoint)
    options = parse_options(checkpoint, metadata.get("options", "{}")) if name in (None, metadata.get("model")) else {}
    name = name or metadata.get("model")
    if name is None or (name == metadata.get("model") and name not in (*mk.list_models(), SCALED)):
        raise ValueError(f"--model: expected one of {', '.join(mk.list_models())}, got none, and no checkpoint that names its model")
    class_names = _class_names(checkpoint, metadata["class_names"]) if "class_names" in metadata else None
    num_classes = num_classes or (len(class_names) if class_names else 1000)
    size = metadata.get("size")
    if size is not None and (not size.isdecimal() or int(size) < 1):
        raise ValueError(f"{checkpoint}: size: expected a positive integer in the metadata, got {size!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mk.create_model(name, num_classes=num_classes, checkpoint=checkpoint, **options).eval()
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"{checkpoint}: class_names: expected {num_classes} in the metadata, one a class, got {len(class_names)}")
    # Some models take images of one size.
    side = getattr(model.config, "image_size", 256) if size is None else int(size)
    return Classifier(name, model, class_names, side, checkpoint is not None, options)


def _class_names(checkpoint: Path | None, text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{checkpoint}: class_names: expected a JSON list of strings in the metadata, got {text!r}")
    return tuple(names)


def parse_options(checkpoint: Path | None, text: str) -> dict[str, Any]:
    """What `mk.create_model` takes beside the name, out of the metadata of a file. Raises ValueError, which names the file."""
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(f"{checkpoint}: options: expected a JSON object in the metadata, got {text!r}")
    return options


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(2, "no such checkpoint", str(path))
    with path.open("rb") as file:
        if file.read(9)[8:] != b"{":  # a torch file, which says nothing about itself
            return {}
    try:
        with safe_open(path, "pt") as tensors:
            return tensors.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
