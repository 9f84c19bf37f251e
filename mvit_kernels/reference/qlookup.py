"""Functions of a quantized value by a table of 256 bytes, in plain torch."""

from __future__ import annotations

import torch

from .activation import ACTIVATIONS, activate
from .quantize import single

Tensor = torch.Tensor


def qlookup(x: Tensor, table: Tensor) -> Tensor:
    return table[x.to(torch.int64)]


def exact_activation(x: Tensor, name: str) -> Tensor:
    """In the dtype of x: what `qactivate` approximates."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return activate(x, name)


def activation_table(
    name: str, in_scale: float, in_zero_point: int, out_scale: float, out_zero_point: int, bits: int = 8
) -> Tensor:  # fmt: skip
    """(256,) uint8: for each byte q the byte of name(in_scale * (q - in_zero_point)), with the exact function in float64; ties to even,
    clamped to 0 .. 2^bits - 1. Scales are rounded to float32 first, which is what they are everywhere else."""
    x = float(single(in_scale)) * (torch.arange(256, dtype=torch.float64) - in_zero_point)
    q = (exact_activation(x, name) / float(single(out_scale))).round() + out_zero_point
    return q.clamp(0, 2**bits - 1).to(torch.uint8)
