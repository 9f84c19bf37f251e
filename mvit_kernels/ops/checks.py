"""Argument checks. Every message names the op, the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def is_tensor(op: str, name: str, x: object) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{op}: {name}: expected a tensor, got {type(x).__name__}")


def tensor(op: str, name: str, x: torch.Tensor, ndim: int, dtypes: Sequence[torch.dtype] | None = None) -> None:
    if x.ndim != ndim:
        raise ValueError(f"{op}: {name}: expected {ndim} dimensions, got shape {tuple(x.shape)}")
    if dtypes is not None and x.dtype not in dtypes:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{op}: {name}: expected dtype {expected}, got {str(x.dtype).removeprefix('torch.')}")


def patch_size(op: str, value: Sequence[int]) -> tuple[int, int]:
    if len(value) != 2 or value[0] < 1 or value[1] < 1:
        raise ValueError(f"{op}: patch_size: expected two positive integers, got {tuple(value)}")
    return value[0], value[1]


def whole_patches(op: str, name: str, height: int, width: int, patch: tuple[int, int]) -> None:
    if height % patch[0] or width % patch[1]:
        raise ValueError(f"{op}: {name}: expected height and width that are multiples of {patch}, got {height} x {width}")
