"""The sum of two quantized maps, in plain torch."""

from __future__ import annotations

import torch

from .qgemm import qactivate
from .quantize import dequantize, quantize, single

Tensor = torch.Tensor


def qadd(
    a: Tensor, b: Tensor, a_scale: float, a_zero_point: int, b_scale: float, b_zero_point: int, out_scale: float, out_zero_point: int,
    activation: str = "none", out_bits: int = 8,
) -> Tensor:  # fmt: skip
    """quantize(qactivate(dequantize(a) + dequantize(b))): every operation in float32 and rounded once, in this order."""
    x = dequantize(a, single(a_scale), torch.tensor(a_zero_point))
    y = dequantize(b, single(b_scale), torch.tensor(b_zero_point))
    return quantize(qactivate(x + y, activation), single(out_scale), torch.tensor(out_zero_point), out_bits)
