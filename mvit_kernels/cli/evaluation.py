"""Networks in any of our files, and sets of labelled images to judge them on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mvit_kernels as mk
from mvit_kernels import checkpoints
from mvit_kernels.data import StandInTask
from mvit_kernels.data.folder import ImageFolder
from mvit_kernels.data.listed import ListedImages, calibration_images, evaluation_set
from mvit_kernels.engine import is_plan
from mvit_kernels.models import Normalization, published_normalization
from mvit_kernels.quant import about as about_of

from .arguments import normalization_of
from .network import load_classifier, model_with, parse_normalization, parse_options

STANDIN = "standin"
Labelled = StandInTask | ImageFolder | ListedImages


@dataclass(frozen=True)
class Network:
    """What classifies. kind: "float", "quantized", "simulated" or "plan"; call: normalized images (B, 3, size, size) to logits;
    class_names: None if unknown."""

    kind: str
    call: Callable[[Tensor], Tensor]
    size: int
    class_names: tuple[str, ...] | None
    normalization: Normalization


def load_network(args: argparse.Namespace, *, compiled: bool) -> Network:
    """A checkpoint of any format (or the name of a shipped one), a file of `mvit-kernels quantize` or of a compiled network.

    args: of `mvit-kernels eval`: network (a path), model, num_classes, size, mean and std. compiled: checkpoints and quantized networks
    run as native plans, but for quantizers that can only be simulated. A plan says nothing of its images: as the flags say, else as the
    published weights of `--model` want them, else pixels as they are.
    Raises ValueError, OSError for files that are none of these.
    """
    path, size = args.network, args.size
    shipped = path is not None and str(path) in checkpoints.SHIPPED
    if path is not None and path.is_file() and is_plan(path):
        plan = mk.load(path, device="cpu")
        side = size or plan.sizes[0][1]
        published = published_normalization(args.model) if args.model else Normalization()
        return Network("plan", plan, side, None, normalization_of(args, published))
    about = None if path is None or shipped else about_of(path)
    if path is not None and about is not None:
        quantized = mk.load_quantized(float_model(about, path), path)
        side = size or quantized.size[1]
        names = tuple(json.loads(about["class_names"])) if "class_names" in about else None
        normalization = normalization_of(args, parse_normalization(path, about, Normalization()))
        if quantized.simulation_only():
            quantized.backend = None  # of what kernels run
            return Network("simulated", quantized, side, names, normalization)
        fast: Any = mk.compile(quantized, torch.zeros(1, quantized.size[0], side, side)) if compiled else mk.convert(quantized)
        return Network("quantized", fast, side, names, normalization)
    classifier = load_classifier(args.model, path, args.num_classes, flag="FILE")
    side = size or classifier.size
    model: Any = mk.compile(classifier.model, torch.zeros(1, 3, side, side)) if compiled else classifier.model
    return Network("float", model, side, classifier.class_names, normalization_of(args, classifier.normalization))


def float_model(about: dict[str, str], path: Path) -> torch.nn.Module:
    """The structure of a quantized network; its weights are in the file."""
    if "model" not in about:
        raise ValueError(f"{path}: expected a file of mvit-kernels quantize, which names its model, got one of mk.save_quantized")
    options = parse_options(path, about.get("options", "{}"))
    return model_with(path, about["model"], options, num_classes=int(about["num_classes"]))


def labelled_images(data: str, size: int, images: int | None) -> Labelled:
    """data: "standin" (held-out images of it), or a folder."""
    return StandInTask("heldout", images or 2000, size) if data == STANDIN else evaluation_set(data, size)


def calibration(data: str, size: int, images: int, seed: int) -> Tensor:
    """(images, 3, size, size) of the training images of "standin", or of a folder."""
    if data != STANDIN:
        return calibration_images(data, images, size, seed)
    task = StandInTask("train", images, size, seed)
    return torch.stack([task[i][0] for i in range(images)])
