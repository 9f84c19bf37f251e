"""A model with its weights, and what its checkpoint file says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

import mvit_kernels as mk
from mvit_kernels import checkpoints
from mvit_kernels.models import Normalization, published_normalization
from mvit_kernels.models.checkpoint import TORCH_FILES
from mvit_kernels.quant import about

from .arguments import NUMBERS, is_normalization

SCALED = "mobilevitv2"
"""The model whose size follows from options."""


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode, made with `options`. class_names: None where no file names them. size: side of its images in pixels.
    normalization: what it takes, of pixels in [0, 1]."""

    name: str
    model: torch.nn.Module
    class_names: tuple[str, ...] | None
    size: int
    trained: bool
    options: dict[str, Any]
    normalization: Normalization


def load_classifier(name: str | None, checkpoint: Path | None, num_classes: int | None = None, *, flag: str = "--checkpoint") -> Classifier:
    """Model `name` with the weights of a checkpoint file (or of a shipped one, by its name), or with random ones (seed 0).

    What is None, is as the metadata of a safetensors file say (`mvit-kernels train` writes them), else 1000 classes; so is the
    size, else the model's own or 256. Images are normalized as the metadata say; not at all if `mvit-kernels train` wrote them and they
    don't; else as for the published weights of the model.
    flag: of the checkpoint, for errors.
    Raises FileNotFoundError; ValueError for a file that is damaged, doesn't fit or has metadata that make no sense.
    """
    if checkpoint is not None and str(checkpoint) in checkpoints.SHIPPED:
        checkpoint = checkpoints.path(str(checkpoint))
    metadata = {} if checkpoint is None else _metadata(checkpoint, flag)
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
        model = model_with(checkpoint, name, options, num_classes=num_classes, checkpoint=checkpoint)
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"{checkpoint}: class_names: expected {num_classes} in the metadata, one a class, got {len(class_names)}")
    # Some models take images of one size.
    side = getattr(model.config, "image_size", 256) if size is None else int(size)
    written_here = "trained_on" in metadata
    normalization = parse_normalization(checkpoint, metadata, Normalization() if written_here else published_normalization(name))
    return Classifier(name, model, class_names, side, checkpoint is not None, options, normalization)


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


def model_with(source: Path | None, name: str, options: dict[str, Any], **arguments: Any) -> torch.nn.Module:
    """What `mk.create_model` makes with the options of a file, in evaluation. Raises ValueError, which names the file, for options that the
    model does not have."""
    try:
        return mk.create_model(name, **arguments, **options).eval()
    except TypeError as error:
        if not options:
            raise
        raise ValueError(f"{source}: options: {error}") from error


def parse_normalization(checkpoint: Path | None, metadata: Mapping[str, str], otherwise: Normalization) -> Normalization:
    """How the metadata of a file say that images are normalized, each a JSON list. Raises ValueError, which names the file."""
    values = list[tuple[float, ...]]()
    for name, default in otherwise._asdict().items():
        try:
            value = json.loads(metadata.get(name, json.dumps(default)))
            values.append(tuple(map(float, value)))
        except (TypeError, ValueError):
            raise ValueError(f"{checkpoint}: {name}: expected a JSON list of numbers in the metadata, got {metadata[name]!r}") from None
        if len(value) != len(default) or not is_normalization(name, values[-1]):
            raise ValueError(f"{checkpoint}: {name}: expected {len(default)} {NUMBERS[name]} in the metadata, got {metadata[name]!r}")
    return Normalization(*values)


def _metadata(path: Path, flag: str) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(2, f"no such checkpoint, nor one of the shipped {', '.join(checkpoints.SHIPPED)}", str(path))
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(TORCH_FILES):  # they say nothing about themselves
        return {}
    if start[8:] != b"{":
        raise ValueError(f"{flag}: expected weights in a safetensors or a torch file, got {str(path)!r}, which is neither")
    if about(path) is not None:
        raise ValueError(f"{path}: expected weights in floats, got a network of mvit-kernels quantize, which mvit-kernels eval takes")
    try:
        with safe_open(path, "pt") as tensors:
            return tensors.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{flag}: expected weights, got {str(path)!r}, which is damaged or no safetensors file ({error})") from error
