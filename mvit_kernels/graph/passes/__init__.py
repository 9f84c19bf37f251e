"""Rewrites of a program, each exact in real arithmetic: a function from a program to a program.

`optimize` runs all of them. `print(program)` before and after shows what one did.
"""

from __future__ import annotations

from ..program import Program
from .cancel_constants import cancel_constants
from .drop_unused import drop_unused
from .elide_keys import elide_keys
from .fold_affine import fold_affine, fold_affine_forward
from .fold_norm import fold_norm
from .fuse_epilogues import fuse_epilogues
from .merge_convolutions import merge_convolutions
from .merge_sums import merge_sums
from .pool_first import pool_first
from .split_cat import split_cat

PASSES = (
    drop_unused, merge_sums, fold_affine, fold_norm, elide_keys, cancel_constants, pool_first, fold_affine_forward, merge_convolutions,
    split_cat, fuse_epilogues,
)  # fmt: skip


def optimize(program: Program) -> Program:
    """All passes, in the order in which they find most to do."""
    for rewrite in PASSES:
        program = rewrite(program)
    return program


__all__ = [
    "PASSES",
    "cancel_constants",
    "drop_unused",
    "elide_keys",
    "fold_affine",
    "fold_affine_forward",
    "fold_norm",
    "fuse_epilogues",
    "merge_convolutions",
    "merge_sums",
    "optimize",
    "pool_first",
    "split_cat",
]
