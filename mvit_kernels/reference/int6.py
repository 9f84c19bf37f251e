"""Four values of six bits in three bytes: how 6-bit weights are saved. Kernels have an order of their own (csrc/cpu/core/qweight.h)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def pack_int6(values: Tensor) -> Tensor:
    """(..., K) int8 in [-32, 31] -> (..., 3 ceil(K / 4)) uint8: a stream of bits, the least significant first.

    byte 0 = v0 | v1 << 6, byte 1 = v1 >> 2 | v2 << 4, byte 2 = v2 >> 4 | v3 << 2, with v = value & 63; zeros beyond K.
    """
    v = F.pad(values, (0, -values.shape[-1] % 4)).to(torch.uint8) & 63
    v0, v1, v2, v3 = v.unflatten(-1, (-1, 4)).unbind(-1)
    return torch.stack([v0 | v1 << 6, v1 >> 2 | v2 << 4, v2 >> 4 | v3 << 2], dim=-1).flatten(-2)


def unpack_int6(packed: Tensor, count: int) -> Tensor:
    """(..., 3 ceil(K / 4)) uint8 -> (..., K = count) int8 in [-32, 31]."""
    b0, b1, b2 = packed.unflatten(-1, (-1, 3)).unbind(-1)
    v = torch.stack([b0 & 63, b0 >> 6 | (b1 & 15) << 2, b1 >> 4 | (b2 & 3) << 4, b2 >> 2], dim=-1).flatten(-2)[..., :count]
    return ((v ^ 32).to(torch.int16) - 32).to(torch.int8)
