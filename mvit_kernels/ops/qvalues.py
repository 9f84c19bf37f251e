"""What the ops on bytes share: checks of one scale or zero-point that cost less than such a call, and dense memory of any rank."""

from __future__ import annotations

from typing import Any

import torch

from mvit_kernels.reference import OVERFLOW

from .library import is_channels_last
from .qchannels import FARTHEST

Tensor = torch.Tensor

SMALLEST, LARGEST = 2.0**-126, 2.0**126  # scales: their inverses are normal numbers too


def one_scale(op: str, name: str, value: Any) -> Any:
    """A number, or a tensor of one. Positive, finite and normal."""
    if type(value) is float and SMALLEST <= value <= LARGEST:
        return value
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{op}: {name}: expected a number, got {value!r}")
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(f"{op}: {name}: expected a positive finite value between 2^-126 and 2^126, got {value!r}")
    return value if isinstance(value, torch.SymFloat) else float(value)


def one_zero_point(op: str, name: str, value: Any, output: bool = False) -> Any:
    """An int32, or a tensor of one; an output's is at most 2^20 in size."""
    if type(value) is int and -FARTHEST <= value <= FARTHEST:
        return value
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point() and value.dtype != torch.bool:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name}: expected an integer, got {value!r}")
    if output and not -FARTHEST <= value <= FARTHEST:
        raise ValueError(f"{op}: {name}: expected |zero_point| <= 2^20, got {value!r}")
    if not -OVERFLOW <= value < OVERFLOW:
        raise ValueError(f"{op}: {name}: expected an int32, got {value!r}")
    return value


def dense_bytes(x: Tensor) -> tuple[Tensor, bool]:
    """(x, or a dense copy in its memory format; whether it is channels_last): 4-D tensors may be, others are contiguous."""
    if x.ndim == 4 and is_channels_last(x):
        return x.contiguous(memory_format=torch.channels_last), True
    return x.contiguous(), False


def empty_like_dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialized tensor of that dtype in what memory `dense_bytes` gives."""
    channels_last = x.ndim == 4 and is_channels_last(x)
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def in_format_of(x: Tensor, result: Tensor) -> Tensor:
    """What plain torch gave, in the memory that kernels give it."""
    channels_last = x.ndim == 4 and is_channels_last(x)
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
