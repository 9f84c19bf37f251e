"""Checks of the arguments of quantization, the same for every op: scales, zero-points, bits, activations, tables.

A scale is a positive float32 from 2^-126 to 2^126: normal, as its inverse is. It is rounded to float32 here, before anything is computed
with it. A zero-point is any int32; that of a result, to which values of float32 are added, is at most 2^20 in size: sums are exact there.

One number is checked at every call, in less than a microsecond where it is a Python float or int. One for each channel is checked when a
layer is prepared.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch

from mvit_kernels.messages import shown
from mvit_kernels.reference import CURVE_SIZE, OVERFLOW, QACTIVATIONS

Tensor = torch.Tensor

SMALLEST, LARGEST = 2.0**-126, 2.0**126
FARTHEST = 2**20
_NUMBERS: tuple[Any, ...] = (int, float, torch.SymFloat, torch.SymInt, Real)
_INTEGERS: tuple[Any, ...] = (int, torch.SymInt, Integral)

# --- one number, or a tensor of one ---


def scale(op: str, name: str, value: Any) -> Any:
    """A float that is a float32; under torch.compile it may be a symbol."""
    if type(value) is not float or not SMALLEST <= value <= LARGEST:
        value = _number_of_scale(op, name, value)
    # Veltkamp's splitting: the nearest number of 24 bits. torch.compile knows multiplications, other ways to float32 it does not.
    shifted = value * (2.0**29 + 1.0)
    return shifted - (shifted - value)


def _number_of_scale(op: str, name: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1 and value.dtype != torch.bool:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise TypeError(f"{op}: {name}: expected a number, got {shown(value)}")
    if not SMALLEST <= value <= LARGEST:  # false of NaN too
        raise ValueError(f"{op}: {name}: expected a positive finite value between 2^-126 and 2^126, got {shown(value)}")
    return value if isinstance(value, torch.SymFloat) else float(value)


def zero_point(op: str, name: str, value: Any, near: bool = False) -> Any:
    """An int32; `near`: at most 2^20 in size, as those of results are."""
    if type(value) is int and -FARTHEST <= value <= FARTHEST:
        return value
    if isinstance(value, Tensor) and value.numel() == 1 and _is_integral(value):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, _INTEGERS):
        raise TypeError(f"{op}: {name}: expected an integer, got {shown(value)}")
    if near and not -FARTHEST <= value <= FARTHEST:
        raise ValueError(f"{op}: {name}: expected |zero_point| <= 2^20, got {shown(value)}")
    if not -OVERFLOW <= value < OVERFLOW:
        raise ValueError(f"{op}: {name}: expected an int32, got {shown(value)}")
    return value if isinstance(value, torch.SymInt) else int(value)


def bits(op: str, name: str, value: Any) -> int:
    if value not in (8, 6):
        raise ValueError(f"{op}: {name}: expected 8 or 6, got {shown(value)}")
    return int(value)


# --- one for each channel, or one for all: numbers or tensors ---


def tensor(op: str, name: str, value: Any) -> Tensor:
    """On the CPU; Python's floats as float64, whatever the default dtype is."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        x = torch.as_tensor(value, device="cpu")
        return torch.as_tensor(value, dtype=torch.float64, device="cpu") if x.is_floating_point() else x
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{op}: {name}: expected a number or a tensor, got {shown(value)}") from None


def scales(op: str, name: str, value: Any, count: int) -> Tensor:
    """(count,) float32 on the CPU."""
    x = _of_channels(op, name, value, count)
    if x.numel() == 1:
        return torch.tensor([scale(op, name, x)], dtype=torch.float32).expand(count)
    x = x.to(torch.float32)
    in_range(op, name, x)
    return x.expand(count)


def in_range(op: str, name: str, x: Tensor) -> None:
    """x holds scales of float32."""
    if not x.numel():
        return
    least, most = map(float, torch.aminmax(x))
    if not (least >= SMALLEST and most <= LARGEST):  # false of NaN too
        raise ValueError(f"{op}: {name}: expected positive finite values between 2^-126 and 2^126, got {least:g} to {most:g}")


def zero_points(op: str, name: str, value: Any, count: int, near: bool = False) -> Tensor:
    """(count,) int32 on the CPU, from (1, count) too."""
    if near and value is None:
        raise ValueError(f"{op}: {name}: expected an integer or {count} of them for these results, got None")
    x = tensor(op, name, value)
    if x.ndim == 2 and x.shape[0] == 1:
        x = x[0]
    if not _is_integral(x) or x.ndim > 1 or x.numel() not in (1, count):
        raise ValueError(f"{op}: {name}: expected an integer or {count} of them, got {x.dtype} of shape {tuple(x.shape)}")
    if x.numel():
        for end in map(int, torch.aminmax(x)):
            zero_point(op, name, end, near)
    return x.to(torch.int32).reshape(-1).expand(count)


def reals(op: str, name: str, value: Any, count: int) -> Tensor:
    """(count,) finite float32 on the CPU."""
    x = _of_channels(op, name, value, count).to(torch.float32)
    if not bool(x.isfinite().all()):
        raise ValueError(f"{op}: {name}: expected finite values, got {float(x[~x.isfinite()][0])}")
    return x.expand(count)


def _of_channels(op: str, name: str, value: Any, count: int) -> Tensor:
    x = tensor(op, name, value)
    if x.numel() not in (1, count) or x.ndim > 1:
        raise ValueError(f"{op}: {name}: expected one value or {count}, got shape {tuple(x.shape)}")
    return x.reshape(-1)


def _is_integral(x: Tensor) -> bool:
    return not x.is_floating_point() and x.dtype != torch.bool


# --- how results leave ---


def activation(op: str, name: str, known: Sequence[str] = QACTIVATIONS) -> None:
    if name not in known:
        raise ValueError(f"{op}: activation: expected one of {', '.join(known)}, got {shown(name)}")


OF_PRODUCTS = (*QACTIVATIONS, "relu6")  # which is where bytes end, so that only bytes may leave


def is_curve(value: Any) -> bool:
    """Whether it is what `reference.activation_curve` gives."""
    return isinstance(value, Tensor) and value.dtype == torch.int16 and value.shape == (CURVE_SIZE,)


def table(op: str, value: Tensor | None, out_dtype: torch.dtype) -> Tensor | None:
    """A table of 256 bytes, or a curve, for results that are bytes."""
    if value is None:
        return None
    if not is_curve(value) and (not isinstance(value, Tensor) or value.dtype != torch.uint8 or value.shape != (256,)):
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{op}: table: expected uint8 of shape (256,) or a curve, int16 of shape ({CURVE_SIZE},), got {got}")
    if out_dtype != torch.uint8:
        raise ValueError(f"{op}: table: expected None for out_dtype {out_dtype}, got a table")
    with torch.inference_mode(False):  # what is made of it is kept, which tensors of inference mode allow nobody to
        return value.detach().clone(memory_format=torch.contiguous_format)
