"""`mvit-kernels run IMAGE...`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import mvit_kernels as mk
from mvit_kernels.data import evaluation_view, read_image
from mvit_kernels.machine import conditions

from .arguments import add_normalization, normalization_of, positive_int
from .network import load_classifier
from .output import print_table, warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a file that Pillow reads")
    parser.add_argument("--model", help="a name that mvit-kernels info lists (default: the one that the checkpoint names)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="weights of timm, transformers, ml-cvnets or mvit-kernels train, or the name of a shipped checkpoint",
    )
    parser.add_argument("--num-classes", type=positive_int, help="classes of the checkpoint (default: what it says, else 1000)")
    parser.add_argument("--topk", type=positive_int, help="predictions an image (default: 5, or all of fewer classes)")
    parser.add_argument("--backend", default="auto", help="auto, cpu or reference (default: %(default)s)")
    parser.add_argument(
        "--size", type=positive_int, help="side in pixels of what the network sees (default: the checkpoint's, the model's, or 256)"
    )
    add_normalization(parser)


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict[str, Any]:
    classifier = load_classifier(args.model, args.checkpoint, args.num_classes)
    size = args.size or classifier.size
    normalization = normalization_of(args, classifier.normalization)
    views = [normalization(evaluation_view(read_image(path), size)) for path in args.images]
    model = mk.accelerate(classifier.model, backend=args.backend)
    if not classifier.trained:
        warn(f"{classifier.name} has UNTRAINED, random weights: its predictions mean nothing. Give it a --checkpoint.")
    return {
        "conditions": conditions(args.command),
        "model": classifier.name,
        "checkpoint": args.checkpoint and str(args.checkpoint),
        "trained": classifier.trained,
        "backend": args.backend,
        "size": size,
        **normalization._asdict(),
        "images": [
            {"path": str(path), "predictions": _predictions(model(view[None])[0], args.topk, classifier.class_names)}
            for path, view in zip(args.images, views, strict=True)
        ],
    }


def show(document: dict[str, Any]) -> None:
    state = f"weights of {document['checkpoint']}" if document["trained"] else "UNTRAINED WEIGHTS, the predictions mean nothing"
    rows = [
        [image["path"], _title(prediction), f"{100 * prediction['probability']:.1f} %"]
        for image in document["images"]
        for prediction in image["predictions"]
    ]
    title = f"{document['model']} at {document['size']} x {document['size']}: {state}"
    print_table(title, ("image", "prediction", "probability"), rows, left=2)


def _predictions(logits: torch.Tensor, topk: int | None, class_names: tuple[str, ...] | None) -> list[dict[str, Any]]:
    topk = topk or min(5, len(logits))
    if topk > len(logits):
        raise ValueError(f"--topk: expected at most {len(logits)}, the number of classes, got {topk}")
    probabilities, classes = logits.softmax(0).topk(topk)
    return [
        {"class": label, "name": class_names[label] if class_names else None, "probability": probability}
        for label, probability in zip(classes.tolist(), probabilities.tolist(), strict=True)
    ]


def _title(prediction: dict[str, Any]) -> str:
    return prediction["name"] or f"class {prediction['class']}"
