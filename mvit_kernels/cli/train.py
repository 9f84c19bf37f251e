"""`mvit-kernels train`: a flag for each field of `mvit_kernels.training.TrainConfig`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from mvit_kernels.training import TrainConfig, train

from .fields import add_fields


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_fields(parser, TrainConfig)


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train; every process of torchrun comes here, and the first one reports."""
    if args.batch_size == 1 and args.size <= 32:
        raise ValueError(
            "--batch-size: expected at least 2 where --size is at most 32: BatchNorm needs more than one value a channel, got 1"
        )
    result = train(TrainConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(TrainConfig)}))
    if os.environ.get("RANK", "0") != "0":
        return None
    return {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(result).items()}


def show(document: dict[str, Any]) -> None:
    print(
        f"{document['weights']}: {100 * document['top1']:.1f} % top-1 on {document['heldout_samples']} held-out images, "
        f"{document['steps']} steps in {document['seconds']:.0f} s\n"
        f"classify with it: mvit-kernels run IMAGE --checkpoint {document['weights']}"
    )
