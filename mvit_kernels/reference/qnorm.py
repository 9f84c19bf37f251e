"""Norms of an int16 residual stream, from exact sums to the bytes that the next integer product reads, in plain torch.

Norms: GroupNorm with one group (Wu and He, arXiv 1803.08494) and LayerNorm (arXiv 1607.06450). Every float operation is one correctly
rounded operation of IEEE 754 in the order given; the kernels repeat them (csrc/cpu/core/qnorm.h), so results are equal bit for bit.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def stream_sums(x: Tensor, groups: int) -> Tensor:
    """(G, 2) int64: sum and sum of squares of each of `groups` groups of rows of x (M, K) int16."""
    wide = x.to(torch.int64).reshape(groups, x.numel() // groups if groups else 0)
    return torch.stack([wide.sum(1), (wide * wide).sum(1)], dim=1)


def norm_affine(weight: Tensor, bias: Tensor, out_scale: float) -> tuple[Tensor, Tensor]:
    """gain and offset of `qnorm`, (K,) float32: gamma and beta in steps of the result, rounded once."""
    return (weight.double() / out_scale).float().contiguous(), (bias.double() / out_scale).float().contiguous()


def qnorm(
    x: Tensor, sums: Tensor | None, scale: float, out_scale: float, out_zero_point: int, eps: float = 1e-5, bits: int = 8,
    gain: Tensor | None = None, offset: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(x - mean) / sqrt(variance + eps) of x (M, K) int16 in bytes of `bits`; real are scale * x and out_scale * (y - out_zero_point).

    sums (G, 2): of groups of M / G rows, which share mean and variance; None: each row has its own. In float64, a group having n values,

        mean = S1 / n,  variance = max(S2 / n - mean mean, 0),  factor = (scale / out_scale) / sqrt(variance (scale scale) + eps)

    then in float32 t = (float(x) - float(mean)) float(factor), and y = rint(min(max(t, -z), 2^bits - 1 - z)) + z, ties to even;
    where t is NaN, which takes an infinite factor, y is 0. With gain and offset (K,), t is t gain + offset, two operations, and out_scale
    is 1, as it is part of them (`norm_affine`).
    """
    rows = x.shape[0]
    groups = rows if sums is None else sums.shape[0]
    sums = stream_sums(x, groups) if sums is None else sums
    s1, s2 = sums.double().unbind(1)
    # As tensors: a division of or by a Python number may become a reciprocal and a product.
    count, ratio = torch.full_like(s1, x.numel() // groups if groups else 0), torch.full_like(s1, scale / out_scale)
    mean = s1 / count
    variance = (s2 / count - mean * mean).clamp(min=0)
    factor = ratio / (variance * (scale * scale) + eps).sqrt()
    mean, factor = (each.float().repeat_interleave(rows // groups if groups else 0)[:, None] for each in (mean, factor))
    t = (x.float() - mean) * factor
    if gain is not None and offset is not None:
        t = t * gain + offset
    t = t.nan_to_num(float(-out_zero_point)).clamp(-out_zero_point, 2**bits - 1 - out_zero_point)
    return (t.round().to(torch.int64) + out_zero_point).to(torch.uint8).contiguous()
