"""The attention half of a MobileViTv2 layer on channels_last maps, in the form of `reference.separable_attention_block_reduced`: no K
tensor, no normalised copy, no unfolded copy. With xc = x - mean and r = 1 / sigma of an image, gamma and beta inside the weights:

1. moments of pieces of each image (moments.py);
2. `mixed` = r sum_n softmax_n(r w_q xc) xc of every phase, in one pass over x;
3. context = W_k mixed + b_k, one vector a phase;
4. y = x + W_o (relu(r W_v xc + b_v) context) + b_o: both products of a tile of pixels in one program, v and what comes of it stay there.

x is centred before it is rounded to 16 bits for the tensor cores, so a large mean costs no accuracy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .launch import blocks, far, launch, power_of_two
from .moments import combine_moments, parts_or_moments
from .phases import group_start, phases_of, pixel_offsets
from .products import dot

Tensor = torch.Tensor


class Weights(NamedTuple):
    """With the norm's gamma and beta inside; contiguous. The two large products have the dtype of x, the rest is float32."""

    query: Tensor  # (d,)
    key: Tensor  # (d, d), as all matrices (out, in)
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor
    out: Tensor
    out_bias: Tensor


@triton.jit
def mixed_kernel(
    x, query, parts, mixed, dim, groups, across, length, columns, x_image, x_row, x_column, x_row_step, x_column_step,
    pieces, eps, PIECES: tl.constexpr, FAR: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """mixed (B, groups, d) of whole phases, with a running maximum and sum."""
    program = tl.program_id(0)
    group, image = program % groups, program // groups
    mean, inverse = combine_moments(parts, image, pieces, eps, PIECES)
    x += image.to(tl.int64) * x_image + group_start(group, across, x_row, x_column)
    c = tl.arange(0, BLOCK_C)
    w = tl.load(query + c, mask=c < dim, other=0.0) * inverse
    largest, total = float("-inf"), 0.0
    result = tl.zeros((BLOCK_C,), tl.float32)
    for begin in range(0, length, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        at = pixel_offsets(t, columns, x_row_step, x_column_step, 1, FAR)
        inside = (t < length)[:, None] & (c < dim)[None, :]
        centred = tl.load(x + at[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(inside, centred - mean, 0.0)
        scores = tl.where(t < length, tl.sum(centred * w[None, :], 1), float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 0))
        finite = tl.where(now == float("-inf"), 0.0, now)
        weights, shrink = tl.exp(scores - finite), tl.exp(largest - finite)
        total = total * shrink + tl.sum(weights, 0)
        result = result * shrink + tl.sum(weights[:, None] * centred, 0)
        largest = now
    tl.store(mixed + tl.cast(program, tl.int64) * dim + c, result * (inverse / total), mask=c < dim)


@triton.jit
def context_kernel(mixed, key, key_bias, context, rows, dim, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """context (rows, d) = mixed key^T + key_bias."""
    across = tl.cdiv(dim, BLOCK_N)
    m = (tl.program_id(0) // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, dim, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        row = m.to(tl.int64)[:, None] * dim + k[None, :]
        a = tl.load(mixed + row, mask=(m < rows)[:, None] & (k < dim)[None, :], other=0.0)
        w = tl.load(key + n[None, :] * dim + k[:, None], mask=(n < dim)[None, :] & (k < dim)[:, None], other=0.0)
        total = dot(a, w, total)
    total += tl.load(key_bias + n, mask=n < dim, other=0.0)[None, :]
    tl.store(context + m.to(tl.int64)[:, None] * dim + n[None, :], total, mask=(m < rows)[:, None] & (n < dim)[None, :])


@triton.jit
def value_out_kernel(
    x, parts, context, value, value_bias, out, out_bias, y, dim, groups, across, length, columns,
    x_image, x_row, x_column, x_row_step, x_column_step, y_image, y_row, y_column, y_row_step, y_column_step,
    pieces, eps, PIECES: tl.constexpr, FAR: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    per_group = tl.cdiv(length, BLOCK_T)
    program = tl.program_id(0)
    group, image = (program // per_group) % groups, (program // per_group) // groups
    mean, inverse = combine_moments(parts, image, pieces, eps, PIECES)
    t = (program % per_group) * BLOCK_T + tl.arange(0, BLOCK_T)
    at = pixel_offsets(t, columns, x_row_step, x_column_step, 1, FAR)
    x += image.to(tl.int64) * x_image + group_start(group, across, x_row, x_column)
    y += image.to(tl.int64) * y_image + group_start(group, across, y_row, y_column)
    context += (program // per_group).to(tl.int64) * dim
    known = (t < length)[:, None]

    c = tl.arange(0, BLOCK_C)
    result = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for first in range(0, dim, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        values = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
        for begin in range(0, dim, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            inside = known & (k < dim)[None, :]
            pixels = tl.load(x + at[:, None] + k[None, :], mask=inside, other=0.0).to(tl.float32)
            centred = tl.where(inside, pixels - mean, 0.0).to(x.dtype.element_ty)
            w = tl.load(value + v[None, :] * dim + k[:, None], mask=(v < dim)[None, :] & (k < dim)[:, None], other=0.0)
            values = dot(centred, w, values)
        values = values * inverse + tl.load(value_bias + v, mask=v < dim, other=0.0)[None, :]
        gate = tl.load(context + v, mask=v < dim, other=0.0)
        gated = tl.where(values < 0, 0.0, values) * gate[None, :]
        w = tl.load(out + c[None, :] * dim + v[:, None], mask=(c < dim)[None, :] & (v < dim)[:, None], other=0.0)
        result = dot(gated.to(x.dtype.element_ty), w, result)
    inside = known & (c < dim)[None, :]
    result += tl.load(out_bias + c, mask=c < dim, other=0.0)[None, :]
    result += tl.load(x + at[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
    y_at = pixel_offsets(t, columns, y_row_step, y_column_step, 1, FAR)
    tl.store(y + y_at[:, None] + c[None, :], result.to(x.dtype.element_ty), mask=inside)


# --- what launches them ---


def forward(x: Tensor, weights: Weights, moments: Tensor | None, eps: float, patch: tuple[int, int], y: Tensor) -> None:
    """y of x (B, d, H, W), both dense in channels_last; moments (B, 2) float64, mean and variance of the images of x, if they are known."""
    if x.numel() == 0:
        return
    dim, walk = x.shape[1], phases_of(x, patch, y)._replace(vector=1)
    parts, pieces, lanes = parts_or_moments(x, moments)
    rows = x.shape[0] * walk.groups
    mixed, context = (x.new_empty(rows, dim, dtype=torch.float32) for _ in range(2))
    of_image = {"PIECES": lanes, "FAR": far(x, y), "enable_fp_fusion": True}
    map_ = (dim, walk.groups, walk.across, walk.length, walk.columns)
    block_c = power_of_two(dim, 16)
    launch(
        mixed_kernel, rows,
        x, weights.query, parts, mixed, *map_, x.stride(0), *walk.steps(x), pieces, eps, BLOCK_C=block_c,
        BLOCK_T=power_of_two(walk.length, 1, 4096 // block_c), num_warps=4, **of_image,
    )  # fmt: skip
    launch(
        context_kernel, blocks(rows, 16) * blocks(dim, 32),
        mixed, weights.key, weights.key_bias, context, rows, dim, BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    tiles = _tile(walk.length, dim, x.dtype)
    launch(
        value_out_kernel, rows * blocks(walk.length, tiles["BLOCK_T"]),
        x, parts, context, weights.value, weights.value_bias, weights.out, weights.out_bias, y, *map_, x.stride(0), *walk.steps(x),
        y.stride(0), *walk.steps(y), pieces, eps, **tiles, **of_image,
    )  # fmt: skip


def _tile(length: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Sums of all channels of a tile of pixels are in registers, beside those of the values that are being made: at most 64 a thread."""
    block_c = power_of_two(dim, 16)
    if dtype == torch.float32:
        sizes = {"BLOCK_T": power_of_two(length, 16, max(16, 4096 // block_c)), "BLOCK_V": 16, "BLOCK_K": 16, "num_stages": 2}
    else:
        block_t, block_v = power_of_two(length, 16, min(64, max(32, 8192 // block_c))), min(block_c, 64)
        sizes = {"BLOCK_T": block_t, "BLOCK_V": block_v, "BLOCK_K": block_v, "num_stages": 3}
    return sizes | {"BLOCK_C": block_c, "num_warps": 8 if sizes["BLOCK_T"] * block_c > 2048 else 4}
