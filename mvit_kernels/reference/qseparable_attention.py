"""Separable self-attention (MobileViTv2, arXiv 2206.02680, equation 3) on bytes, in plain torch.

In two halves around the key projection W_k, which is linear: sum_n s_n (W_k x_n + b_k) = W_k (sum_n s_n x_n) + b_k with s = softmax_n(q).
The sums are exact integers, and every float operation is one correctly rounded operation of IEEE 754 in the order given; the kernels repeat
them (csrc/cpu/ops/qseparable_attention.h), so results are equal bit for bit.
"""

from __future__ import annotations

import math

import torch

Tensor = torch.Tensor

EXPONENT = 16


def exponential_table(scale: float) -> Tensor:
    """(256,) int32: round(2^16 exp(-scale i)), the exponentials of scores that lie i steps of `scale` below the largest."""
    return torch.tensor([round(2**EXPONENT * math.exp(-scale * i)) for i in range(256)], dtype=torch.int32)


def phases_of(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """A map (B, H, W, ...) as (B, P, N, ...): the N pixels of each phase (y mod ph) pw + x mod pw, row by row."""
    (batch, height, width), (ph, pw), rest = x.shape[:3], patch_size, x.shape[3:]
    split = x.reshape(batch, height // ph, ph, width // pw, pw, *rest)
    return split.movedim((2, 4), (1, 2)).reshape(batch, ph * pw, (height // ph) * (width // pw), *rest)


def map_of(x: Tensor, height: int, width: int, patch_size: tuple[int, int]) -> Tensor:
    """The inverse of `phases_of`."""
    (batch, _, _), (ph, pw), rest = x.shape[:3], patch_size, x.shape[3:]
    split = x.reshape(batch, ph, pw, height // ph, width // pw, *rest)
    return split.movedim((1, 2), (2, 4)).reshape(batch, height, width, *rest).contiguous()


def qseparable_context(
    scores: Tensor, x: Tensor, table: Tensor, patch_size: tuple[int, int], x_scale: float, x_zero_point: int,
    out_scale: float | None = None, out_zero_point: int = 0, out_bits: int = 8,
) -> Tensor:  # fmt: skip
    """(B, P, d): sum_n softmax_n(q) x_n of each phase; scores (B, H, W) and x (B, H, W, d) uint8, real x = x_scale (x - x_zero_point).

    With e_n = table[max q - q_n], S = sum e_n and C = sum e_n x_n exact, in float64: t = (C / S - x_zero_point) x_scale, as float32; or for
    bytes t = (C / S - x_zero_point) (x_scale / out_scale) and y = rint(min(max(t, -z), 2^bits - 1 - z)) + z, ties to even.
    """
    q = phases_of(scores, patch_size).to(torch.int64)
    e = table[q.amax(2, keepdim=True) - q].to(torch.int64) if q.numel() else q
    weighted = (e[..., None] * phases_of(x, patch_size)).sum(2)
    t = weighted.double() / e.sum(2, keepdim=True).double() - x_zero_point
    if out_scale is None:
        return (t * x_scale).float()
    return _to_byte(t * (x_scale / out_scale), out_zero_point, out_bits)


def qseparable_gate(
    v: Tensor, context: Tensor, patch_size: tuple[int, int], v_scale: float, v_zero_point: int, out_scale: float, out_zero_point: int,
    out_bits: int = 8,
) -> Tensor:  # fmt: skip
    """(B, H, W, d) uint8: relu(v) k, k the context of the pixel's phase; v (B, H, W, d) uint8, context (B, P, d) float32.

    In float32: m = k float(v_scale / out_scale), t = float(max(v - v_zero_point, 0)) m, y = rint(min(max(t, -z), 2^bits - 1 - z)) + z, ties
    to even; where t is NaN, y is 0.
    """
    m = context * torch.tensor(v_scale / out_scale, dtype=torch.float64).float()
    positive = (phases_of(v, patch_size).to(torch.int64) - v_zero_point).clamp(min=0).float()
    return map_of(_to_byte(positive * m[:, :, None], out_zero_point, out_bits), v.shape[1], v.shape[2], patch_size)


def _to_byte(t: Tensor, zero_point: int, bits: int) -> Tensor:
    t = t.nan_to_num(float(-zero_point)).clamp(-zero_point, 2**bits - 1 - zero_point)
    return (t.round().to(torch.int64) + zero_point).to(torch.uint8)
