"""The int16 residual stream of a transformer, from real numbers and back, in plain torch: real = scale * q.

Every float operation is one correctly rounded operation of float32 in the order given.
"""

from __future__ import annotations

import torch

from .quantize import single

Tensor = torch.Tensor
LOW, HIGH = -(2**15), 2**15 - 1


def quantize_stream(x: Tensor, scale: float) -> Tensor:
    """q = min(max(rint(x * float32(1 / scale)), -32768), 32767), ties to even; int16.

    x of any float type, in float32; NaN becomes -32768.
    """
    inverse = single(1.0 / float(single(scale)))
    return (x.float() * inverse).nan_to_num(LOW, HIGH, LOW).clamp(LOW, HIGH).round().to(torch.int16)


def dequantize_stream(q: Tensor, scale: float) -> Tensor:
    """float(q) * scale in float32."""
    return q.float() * single(scale)
