"""`attention` on bytes, in plain torch.

Sums of products are exact integers, and every float operation is one correctly rounded operation of IEEE 754 in the order given; the
kernels repeat them (csrc/cpu/ops/qattention.h), so results are equal bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .attention import Mixtures, _apart, _together
from .qpatch_attention import ATTENTION_TABLE, STEPS, attention_factors
from .quantize import single

Tensor = torch.Tensor
_LEAST = 2.0**-100  # of the largest weight of a query, whose inverse stays finite


class QMixtures(NamedTuple):
    """What `attention` does to scores and weights, in steps of the table of exponentials (STEPS to a factor of e); float32.

    bias (H, N, M), scores (H, H), weights (H, H), shift (H,), or None; steps: to one of the scores where these are not mixed; ratio: steps
    of the result to one of the values.
    """

    bias: Tensor | None
    scores: Tensor | None
    weights: Tensor | None
    shift: Tensor | None
    steps: float
    ratio: float


def quantized_mixtures(
    mixtures: Mixtures, q_scale: float, k_scale: float, v_scale: float, out_scale: float, scale: float
) -> QMixtures:  # fmt: skip
    """In float64 and rounded once. A shift alone comes with weights that mix nothing."""
    steps, ratio = attention_factors(q_scale, k_scale, v_scale, out_scale, scale)
    weights, shift = mixtures.weights, mixtures.shift
    if weights is None and shift is not None:
        weights = torch.eye(shift.shape[0])
    return QMixtures(
        None if mixtures.bias is None else (mixtures.bias.double() * STEPS).float(),
        None if mixtures.scores is None else (mixtures.scores.double() * (q_scale * k_scale * scale * STEPS)).float().contiguous(),
        None if weights is None else weights.float().contiguous(),
        None if shift is None else shift.float().contiguous(),
        steps,
        ratio,
    )


def qattention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, zero_points: tuple[int, int, int], mixtures: QMixtures, out_zero_point: int,
    out_bits: int = 8,
) -> Tensor:  # fmt: skip
    """(B, N, H d) uint8 of q (B, N, H c), k (B, M, H c), v (B, M, H d) uint8, head after head, whose zero-points are given.

    S = (q - z_q) (k - z_k)^T exact; l = bias + steps S, or bias + sum_g scores[h, g] S[g], term after term; e = ATTENTION_TABLE[i] of
    i = rint(min(max_m l - l, 255)). Then t = A (ratio / sum_m e) with A = e (v - z_v) exact; or, where weights are mixed, w = shift + sum_g
    weights[h, g] (e[g] (1 / sum_m e[g])), a = max(max_m |w|, 2^-100), u = rint(w (255 / a)), t = A (a (ratio / 255)) with A = u (v - z_v)
    exact. The byte is rint(t) + out_zero_point, clamped.
    """
    query, key, value = (_apart(x.double() - z, heads) for x, z in zip((q, k, v), zero_points, strict=True))  # doubles hold all sums
    scores = (query @ key.mT).float()
    start = torch.zeros_like(scores) if mixtures.bias is None else mixtures.bias.expand_as(scores)
    logits = start + single(mixtures.steps) * scores if mixtures.scores is None else _mixed(start, mixtures.scores, scores)
    below = logits.amax(-1, keepdim=True) - logits
    e = ATTENTION_TABLE.to(q.device)[below.clamp(max=255).round().to(torch.int64)].float()
    total, ratio = e.sum(-1, keepdim=True), single(mixtures.ratio)
    if mixtures.weights is None:
        t = (e.double() @ value).float() * (ratio / total)
    else:
        shift = torch.zeros_like(scores)
        if mixtures.shift is not None:
            shift = mixtures.shift[:, None, None].expand_as(scores)
        weights = _mixed(shift, mixtures.weights, e * (1.0 / total))
        most = weights.abs().amax(-1, keepdim=True).clamp_min(_LEAST)
        whole = (weights * (single(255.0) / most)).round()  # a number over a tensor would be times its inverse, rounded twice
        t = (whole.double() @ value).float() * (most * (ratio / 255.0))
    y = t.clamp(-out_zero_point, 2**out_bits - 1 - out_zero_point).round().to(torch.int64) + out_zero_point
    return _together(y.to(torch.uint8)).contiguous()


def _mixed(start: Tensor, mixture: Tensor, x: Tensor) -> Tensor:
    """start[h] + mixture[h, 0] x[0] + mixture[h, 1] x[1] + ..., from left to right."""
    total = start
    for g in range(x.shape[1]):
        total = total + mixture[:, g, None, None] * x[:, g : g + 1]
    return total
