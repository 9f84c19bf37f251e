"""Argument checks. Every message names the op, the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mvit_kernels.messages import shown
from mvit_kernels.reference import ACTIVATIONS

from . import triton_support

# --- in the public functions, before the dispatcher sees the call ---


def is_tensor(op: str, name: str, x: object) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{op}: {name}: expected a tensor, got {type(x).__name__}")


def all_tensors(op: str, **arguments: object) -> None:
    for name, x in arguments.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{op}: {name}: expected a tensor, got {type(x).__name__}")


def tensors(op: str, **arguments: object) -> None:
    """Each is a tensor, or None where that is allowed: schema and size tell the rest."""
    for name, x in arguments.items():
        if x is not None and not isinstance(x, torch.Tensor):
            raise TypeError(f"{op}: {name}: expected a tensor, got {type(x).__name__}")


def backend(op: str, name: object) -> None:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"{op}: backend: expected a name or None, got {shown(name)}")


def pair(op: str, name: str, value: Any) -> None:
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int:
        return
    ints = (int, torch.SymInt)
    if not isinstance(value, Sequence) or len(value) != 2 or not all(isinstance(each, ints) for each in value):
        raise TypeError(f"{op}: {name}: expected two integers, got {shown(value)}")


def integer(op: str, name: str, value: Any) -> None:
    if not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name}: expected an integer, got {shown(value)}")


def not_negative(op: str, name: str, value: Any) -> None:
    """Numbers, and what converts to one."""
    if isinstance(value, (torch.SymFloat, torch.SymInt)):
        return
    try:
        number = None if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise TypeError(f"{op}: {name}: expected a number, got {shown(value)}")
    if not number >= 0:
        raise ValueError(f"{op}: {name}: expected one that is not negative, got {shown(value)}")


def layers(op: str, **arguments: tuple[object, type]) -> None:
    """What was prepared before, of the class of its op."""
    for name, (layer, kind) in arguments.items():
        if not isinstance(layer, kind):
            raise TypeError(f"{op}: {name}: expected a {kind.__name__}, got {type(layer).__name__}")


def layer_gives(op: str, name: str, dtype: torch.dtype, expected: torch.dtype) -> None:
    if dtype != expected:
        raise ValueError(f"{op}: {name}: expected a layer to {expected}, got one to {dtype}")


# --- in the registered implementations and their fakes ---


def tensor(op: str, name: str, x: torch.Tensor, ndim: int, dtypes: Sequence[torch.dtype] | None = None) -> None:
    if x.layout is not torch.strided:
        raise TypeError(f"{op}: {name}: expected a dense tensor, got {x.layout}")
    if x.ndim != ndim:
        raise ValueError(f"{op}: {name}: expected {ndim} dimensions, got shape {tuple(x.shape)}")
    if dtypes is not None and x.dtype not in dtypes:
        expected = ", ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise TypeError(f"{op}: {name}: expected dtype {expected}, got {str(x.dtype).removeprefix('torch.')}")


def image(op: str, name: str, x: torch.Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """x (B, C, H, W) has channels and pixels; it may be an empty batch."""
    tensor(op, name, x, 4, dtypes)
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: {name}: expected at least one channel and one pixel, got shape {tuple(x.shape)}")


def stride(op: str, value: int) -> None:
    if value not in (1, 2):
        raise ValueError(f"{op}: stride: expected 1 or 2, got {value}")


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


def prepared(op: str, name: str, x: torch.Tensor, dtype: torch.dtype, size: tuple[int, ...], device: torch.device) -> None:
    """x is what a kernel reads as it lies in memory."""
    if x.dtype is dtype and x.shape == size and x.is_contiguous() and x.device == device:
        return
    tensor(op, name, x, len(size), (dtype,))
    if x.shape != size:
        raise ValueError(f"{op}: {name}: expected shape {size}, got {tuple(x.shape)}")
    if x.device != device:
        raise ValueError(f"{op}: {name}: expected device {device}, got {x.device}")
    raise ValueError(f"{op}: {name}: expected contiguous memory, got strides {x.stride()}")


def like(op: str, name: str, x: torch.Tensor, other: torch.Tensor, size: Sequence[int]) -> None:
    """x is of that size, with the dtype and device of `other`."""
    if x.shape != tuple(size) or x.dtype != other.dtype or x.device != other.device:
        expected, got = (f"{t.dtype} of shape {tuple(shape)} on {t.device}" for t, shape in ((other, size), (x, x.shape)))
        raise ValueError(f"{op}: {name}: expected {expected}, got {got}")


def parameter(op: str, name: str, x: torch.Tensor, ndim: int, data: torch.Tensor, size: Sequence[int] | None = None) -> None:
    """x has that many axes (or that size), float32 or the dtype of `data`, and its device."""
    tensor(op, name, x, ndim, (torch.float32, data.dtype))
    if size is not None and x.shape != tuple(size):
        raise ValueError(f"{op}: {name}: expected shape {tuple(size)}, got {tuple(x.shape)}")
    if x.device != data.device:
        raise ValueError(f"{op}: {name}: expected device {data.device}, got {x.device}")


def matrix(op: str, name: str, x: torch.Tensor, data: torch.Tensor, size: tuple[int, int]) -> None:
    """x is a matrix of that size, or a 1x1 convolution."""
    tensor(op, name, x, 4 if x.ndim == 4 else 2, (torch.float32, data.dtype))
    if x.shape != (size if x.ndim == 2 else (*size, 1, 1)):
        raise ValueError(f"{op}: {name}: expected shape {size} or {(*size, 1, 1)}, got {tuple(x.shape)}")
    if x.device != data.device:
        raise ValueError(f"{op}: {name}: expected device {data.device}, got {x.device}")


def moments(op: str, x: torch.Tensor, data: torch.Tensor, groups: int | None = None) -> None:
    """x (G, 2) holds mean and variance of the groups of `data`; or (G, pieces, 3) their parts, where Triton's kernels made them."""
    apart = x.ndim == 3 and x.dtype == torch.float32 and x.shape[2] == 3 and (x.is_cuda or triton_support.interpreted())
    if not apart:
        tensor(op, "moments", x, 2, (torch.float64,))
    if not (apart or x.shape[1] == 2) or x.device != data.device or groups not in (None, x.shape[0]):
        count = "G" if groups is None else groups
        raise ValueError(f"{op}: moments: expected shape ({count}, 2) on {data.device}, got {tuple(x.shape)} on {x.device}")


def whole_groups(op: str, name: str, groups: int, rows: int) -> None:
    if groups < 0 or (groups == 0 and rows > 0) or (groups > 0 and rows % groups):
        raise ValueError(f"{op}: {name}: expected a number of groups that divides {rows} rows, got {groups}")


def activation(op: str, name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"{op}: activation: expected one of {', '.join(ACTIVATIONS)}, got {shown(name)}")


def patch_size(op: str, value: Sequence[int]) -> tuple[int, int]:
    if len(value) != 2 or value[0] < 1 or value[1] < 1:
        raise ValueError(f"{op}: patch_size: expected two positive integers, got {tuple(value)}")
    return value[0], value[1]


def whole_patches(op: str, name: str, height: int, width: int, patch: tuple[int, int]) -> None:
    if height % patch[0] or width % patch[1] or height < 0 or width < 0:
        raise ValueError(f"{op}: {name}: expected height and width that are multiples of {patch}, got {height} x {width}")
