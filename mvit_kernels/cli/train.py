"""`mvit-kernels train`: a flag for each field of `mvit_kernels.training.TrainConfig`."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import os
import textwrap
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mvit_kernels.training import TrainConfig, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    types, summaries = get_type_hints(TrainConfig), _summaries()
    for field in dataclasses.fields(TrainConfig):
        kind = types[field.name]
        options: dict[str, Any] = {"help": summaries[field.name].replace("%", "%%")}
        if kind is bool:
            options["action"] = "store_true"
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        else:
            options["type"] = next(each for each in get_args(kind) or (kind,) if each is not NoneType)
        if field.default is dataclasses.MISSING:
            options["required"] = True
        elif field.default is not None:
            options["default"] = field.default
            options["help"] += "" if kind is bool else " (default: %(default)s)"
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)


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


def _summaries() -> dict[str, str]:
    """The docstring under each field, which Python itself does not keep."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(TrainConfig))).body
    assert isinstance(definition, ast.ClassDef)
    summaries = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            summaries[field.target.id] = str(ast.literal_eval(text.value))
    return summaries
