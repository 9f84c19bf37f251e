"""Softmax attention of MobileViT inside pixel phases (arXiv 2110.02178, section 3.1) on bytes, in plain torch.

Sums are exact integers, and every float operation is one correctly rounded operation of IEEE 754 in the order given; the kernels repeat
them (csrc/cpu/ops/qpatch_attention.h), so results are equal bit for bit.
"""

from __future__ import annotations

import math

import torch

from .qseparable_attention import map_of, phases_of
from .quantize import single

Tensor = torch.Tensor

STEPS = 40  # of the table to a factor of e: its last value, the first below 1/2, is that of everything farther away
ATTENTION_TABLE = torch.tensor([round(255 * math.exp(-i / STEPS)) for i in range(256)], dtype=torch.uint8)


def attention_factors(q_scale: float, k_scale: float, v_scale: float, out_scale: float, scale: float) -> tuple[float, float]:
    """(f, g), both float32: steps of the table to one of the scores, and steps of the result to one of v."""
    return _single(q_scale * k_scale * scale * STEPS), _single(v_scale / out_scale)


def _single(value: float) -> float:
    """The nearest float32, in a fraction of the time that a tensor takes: Veltkamp's splitting."""
    shifted = value * (2.0**29 + 1.0)
    return shifted - (shifted - value)


def qpatch_attention(
    qkv: Tensor, heads: int, patch_size: tuple[int, int], q_zero_point: int, v_zero_point: int, f: float, g: float, out_zero_point: int,
    out_bits: int = 8,
) -> Tensor:  # fmt: skip
    """(B, H, W, d) uint8: softmax attention in each phase and head; qkv (B, H, W, 3d) uint8, channels q | k | v.

    With d[n, m] = (max_j S[n, j]) - S[n, m] of the scores S[n, m] = sum_c (q[n, c] - q_zero_point) k[m, c] (the zero-point of k cancels),
    e = ATTENTION_TABLE, A[n, c] = sum_m e[i[n, m]] (v[m, c] - v_zero_point) exact, and in float32

        i[n, m] = rint(min(float(d[n, m]) f, 255))          t = float(A[n, c]) (g / float(sum_m e[i[n, m]]))
        y[n, c] = rint(min(max(t, -z), 2^bits - 1 - z)) + z          ties to even, z = out_zero_point
    """
    batch, height, width, channels = qkv.shape
    dim = channels // 3
    if qkv.numel() == 0:
        return qkv.new_empty(batch, height, width, dim)
    # Doubles hold all sums, and multiply faster than int64.
    parts = phases_of(qkv, patch_size).unflatten(3, (3, heads, dim // heads)).permute(3, 0, 1, 4, 2, 5).double()
    q, k, v = parts[0] - q_zero_point, parts[1], parts[2] - v_zero_point
    scores = q @ k.mT
    below = scores.amax(-1, keepdim=True) - scores
    e = ATTENTION_TABLE.to(qkv.device)[(below.float() * f).clamp(max=255).round().to(torch.int64)].double()
    t = (e @ v).float() * (single(g).to(qkv.device) / e.sum(-1, keepdim=True).float())
    y = t.clamp(-out_zero_point, 2**out_bits - 1 - out_zero_point).round().to(torch.int64) + out_zero_point
    return map_of(y.permute(0, 1, 3, 2, 4).flatten(3).to(torch.uint8), height, width, patch_size)
