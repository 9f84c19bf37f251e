"""A model with its weights, and what its checkpoint file says about itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

import mvit_kernels as mk


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode. class_names: None where no file names them. size: side of its images in pixels."""

    name: str
    model: torch.nn.Module
    class_names: tuple[str, ...] | None
    size: int
    trained: bool


def load_classifier(name: str | None, checkpoint: Path | None, num_classes: int | None = None) -> Classifier:
    """Model `name` with the weights of a checkpoint file, or with random ones (seed 0).

    What is None, is as the metadata of a safetensors file say (`mvit-kernels train` writes them), else 1000 classes.
    """
    metadata = {} if checkpoint is None else _metadata(checkpoint)
    name = name or metadata.get("model")
    if name is None:
        raise ValueError(f"--model: expected one of {', '.join(mk.list_models())}, got none, and no checkpoint that names its model")
    class_names = json.loads(metadata["class_names"]) if "class_names" in metadata else None
    num_classes = num_classes or (len(class_names) if class_names else 1000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mk.create_model(name, num_classes=num_classes, checkpoint=checkpoint).eval()
    return Classifier(name, model, class_names and tuple(class_names), int(metadata.get("size", 256)), checkpoint is not None)


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(2, "no such checkpoint", str(path))
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
