"""Argument checks. Every message names the op, the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# --- in the public functions, before the dispatcher sees the call ---


def is_tensor(op: str, name: str, x: object) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{op}: {name}: expected a tensor, got {type(x).__name__}")


def backend(op: str, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{op}: backend: expected a name or None, got {name!r}")


def pair(op: str, name: str, value: Any) -> None:
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int:
        return
    ints = (int, torch.SymInt)
    if not isinstance(value, Sequence) or len(value) != 2 or not all(isinstance(each, ints) for each in value):
        raise TypeError(f"{op}: {name}: expected two integers, got {value!r}")


# --- in the registered implementations and their fakes ---


def tensor(op: str, name: str, x: torch.Tensor, ndim: int, dtypes: Sequence[torch.dtype] | None = None) -> None:
    if x.layout is not torch.strided:
        raise TypeError(f"{op}: {name}: expected a dense tensor, got {x.layout}")
    if x.ndim != ndim:
        raise ValueError(f"{op}: {name}: expected {ndim} dimensions, got shape {tuple(x.shape)}")
    if dtypes is not None and x.dtype not in dtypes:
        expected = ", ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise TypeError(f"{op}: {name}: expected dtype {expected}, got {str(x.dtype).removeprefix('torch.')}")


def channelwise(op: str, name: str, value: torch.Tensor, x: torch.Tensor, channels: int) -> None:
    """`value` has one float32 value, or one of the dtype of x, for each channel of x."""
    if (
        value.layout is torch.strided
        and value.shape == (channels,)
        and value.dtype in (torch.float32, x.dtype)
        and value.device == x.device
    ):
        return
    tensor(op, name, value, 1, (torch.float32, x.dtype))
    if value.shape[0] != channels:
        raise ValueError(f"{op}: {name}: expected one value for each of {channels} channels, got {value.shape[0]}")
    raise ValueError(f"{op}: {name}: expected device {x.device}, got {value.device}")


def like(op: str, name: str, x: torch.Tensor, other: torch.Tensor, size: Sequence[int]) -> None:
    """x is of that size, with the dtype and device of `other`."""
    if x.shape != tuple(size) or x.dtype != other.dtype or x.device != other.device:
        expected, got = (f"{t.dtype} of shape {tuple(shape)} on {t.device}" for t, shape in ((other, size), (x, x.shape)))
        raise ValueError(f"{op}: {name}: expected {expected}, got {got}")


def patch_size(op: str, value: Sequence[int]) -> tuple[int, int]:
    if len(value) != 2 or value[0] < 1 or value[1] < 1:
        raise ValueError(f"{op}: patch_size: expected two positive integers, got {tuple(value)}")
    return value[0], value[1]


def whole_patches(op: str, name: str, height: int, width: int, patch: tuple[int, int]) -> None:
    if height % patch[0] or width % patch[1] or height < 0 or width < 0:
        raise ValueError(f"{op}: {name}: expected height and width that are multiples of {patch}, got {height} x {width}")
