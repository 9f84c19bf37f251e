"""Rewrites of a program, each exact in real arithmetic: a function from a program to a program.

`optimize` runs all of them. `print(program)` before and after shows what one did.
"""

from __future__ import annotations

from ..program import Program
from .cancel_constants import cancel_constants
from .drop_unused import drop_unused
from .elide_keys import elide_keys
from .fold_affine import fold_affine, fold_affine_forward
from .fold_constants import fold_constants
from .fold_norm import fold_norm
from .fuse_dynamic import fuse_dynamic
from .fuse_epilogues import fuse_epilogues
from .merge_convolutions import merge_convolutions, merge_linears
from .merge_sums import merge_sums
from .pool_first import pool_first
from .share_equal import share_equal
from .split_cat import split_cat
from .stack_products import stack_products

PASSES = (
    fold_constants, drop_unused, share_equal, merge_sums, fold_affine, stack_products, fold_norm, elide_keys, cancel_constants, pool_first,
    fold_affine_forward, merge_convolutions, split_cat, fuse_epilogues,
)  # fmt: skip


DEVICE_PASSES = tuple(merge_linears if each is merge_convolutions else each for each in PASSES)


def optimize(program: Program, *, device: bool = False) -> Program:
    """All passes, in the order in which they find most to do; `device`: those for a GPU."""
    for rewrite in DEVICE_PASSES if device else PASSES:
        program = rewrite(program)
    return program


__all__ = [
    "DEVICE_PASSES",
    "PASSES",
    "cancel_constants",
    "drop_unused",
    "elide_keys",
    "fold_affine",
    "fold_affine_forward",
    "fold_constants",
    "fold_norm",
    "fuse_dynamic",
    "fuse_epilogues",
    "merge_convolutions",
    "merge_linears",
    "merge_sums",
    "optimize",
    "pool_first",
    "share_equal",
    "split_cat",
    "stack_products",
]
