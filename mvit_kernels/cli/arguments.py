"""Values of flags, and flags that several subcommands have."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from mvit_kernels.models import Normalization


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def natural_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a non-negative integer, got {text!r}")
    return int(text)


def names(text: str) -> list[str]:
    """A list with commas."""
    values = [name.strip() for name in text.split(",") if name.strip()]
    if not values:
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return values


NUMBERS = {"mean": "finite numbers", "std": "finite numbers, each more than 0"}


def is_normalization(name: str, values: Sequence[float]) -> bool:
    """Whether these may be a mean or a deviation."""
    return all(map(math.isfinite, values)) and (name == "mean" or min(values) > 0)


def add_normalization(parser: argparse.ArgumentParser) -> None:
    """--mean and --std, for `normalization_of`."""
    of = (
        "of red, green, blue pixels in [0, 1] (default: as the file says, else as the published weights of the model want it; a plan says "
        "nothing, and without --model gets pixels as they are)"
    )
    parser.add_argument("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help=f"what is subtracted {of}")
    parser.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="what that is divided by")


def normalization_of(args: argparse.Namespace, otherwise: Normalization) -> Normalization:
    """What the flags say; what they don't, as otherwise. Raises ValueError, which names the flag."""
    for name in NUMBERS:
        value = getattr(args, name)
        if value is not None and not is_normalization(name, value):
            raise ValueError(f"--{name}: expected {NUMBERS[name]}, got {', '.join(map(str, value))}")
    return Normalization(tuple(args.mean or otherwise.mean), tuple(args.std or otherwise.std))
