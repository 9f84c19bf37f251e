"""Scales and zero-points that are one number each, checked at every call: a microsecond, where tensors (`qchannels`) would take ten."""

from __future__ import annotations

from typing import Any

from .qchannels import FARTHEST, output_zero_points, scales


def scale_of(op: str, name: str, value: Any) -> float:
    """A positive finite float32, from a number or a tensor of one."""
    if type(value) is float and 1e-30 < value < 1e30:
        # Veltkamp's splitting: the nearest number of 24 bits. torch.compile knows multiplications, other ways to float32 it does not.
        shifted = value * (2.0**29 + 1.0)
        return shifted - (shifted - value)
    return float(scales(op, name, value, 1))


def zero_point_of(op: str, name: str, value: Any) -> int:
    """An integer of at most 2^20 in size, from a number or a tensor of one."""
    if type(value) is int and -FARTHEST <= value <= FARTHEST:
        return value
    return int(output_zero_points(op, name, value, 1))
