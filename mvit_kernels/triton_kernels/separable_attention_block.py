"""The attention half of a MobileViTv2 layer on channels_last maps, in the form of `reference.separable_attention_block_reduced`: no K
tensor, no normalised copy, no unfolded copy. With xc = x - mean and r = 1 / sigma of an image, gamma and beta inside the weights:

1. moments of pieces of each image (moments.py);
2. `mixed` = r sum_n softmax_n(r w_q xc) xc of every phase, in one pass over x, by as many programs a phase as keep the GPU busy: each
   leaves its largest score m_i, the sum t_i of its exp(score - m_i), and the unscaled sum v_i of the pixels weighted by these;
3. context = W_k mixed + b_k, one vector a phase, with mixed = sum_i e^(m_i - m) v_i / sum_i e^(m_i - m) t_i, m = max m_i;
4. y = x + W_o (relu(r W_v xc + b_v) context) + b_o: both products of a tile of pixels in one program, v and what comes of it stay there.

x is centred before it is rounded to 16 bits for the tensor cores, so a large mean costs no accuracy.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import tuning
from .launch import blocks, far, launch, power_of_two, processors
from .moments import collect as collect_moments
from .moments import collected, combine_moments, empty_parts, parts_or_moments, write_part
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
    x, query, parts, mixed, softmax, dim, groups, across, length, columns, x_image, x_row, x_column, x_row_step, x_column_step,
    pieces, eps, splits, share, PIECES: tl.constexpr, FAR: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """mixed (B, groups, splits, d) and softmax (B, groups, splits, 2), largest score and sum, of `share` pixels of a phase, with a running
    maximum and sum."""
    program = tl.program_id(0)
    split, group, image = program % splits, (program // splits) % groups, (program // splits) // groups
    mean, inverse = combine_moments(parts, image, pieces, eps, PIECES)
    x += image.to(tl.int64) * x_image + group_start(group, across, x_row, x_column)
    c = tl.arange(0, BLOCK_C)
    w = tl.load(query + c, mask=c < dim, other=0.0) * inverse
    largest, total = float("-inf"), 0.0
    result = tl.zeros((BLOCK_C,), tl.float32)
    end = tl.minimum((split + 1) * share, length)
    for begin in range(split * share, end, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        at = pixel_offsets(t, columns, x_row_step, x_column_step, 1, FAR)
        inside = (t < end)[:, None] & (c < dim)[None, :]
        centred = tl.load(x + at[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(inside, centred - mean, 0.0)
        scores = tl.where(t < end, tl.sum(centred * w[None, :], 1), float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 0))
        finite = tl.where(now == float("-inf"), 0.0, now)
        weights, shrink = tl.exp(scores - finite), tl.exp(largest - finite)
        total = total * shrink + tl.sum(weights, 0)
        result = result * shrink + tl.sum(weights[:, None] * centred, 0)
        largest = now
    wide = tl.cast(program, tl.int64)
    tl.store(mixed + wide * dim + c, result * inverse, mask=c < dim)
    tl.store(softmax + wide * 2, largest)
    tl.store(softmax + wide * 2 + 1, total)


@triton.jit
def context_kernel(
    mixed, softmax, key, key_bias, context, rows, dim,
    SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """context (rows, d) = mixed key^T + key_bias."""
    across = tl.cdiv(dim, BLOCK_N)
    m = (tl.program_id(0) // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = m.to(tl.int64) * SPLITS
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        largest = tl.maximum(largest, tl.load(softmax + (first + split) * 2, mask=m < rows, other=0.0))
    weight_of_all = tl.zeros((BLOCK_M,), tl.float32)
    for split in tl.static_range(SPLITS):
        shrink = tl.exp(tl.load(softmax + (first + split) * 2, mask=m < rows, other=0.0) - largest)
        weight_of_all += shrink * tl.load(softmax + (first + split) * 2 + 1, mask=m < rows, other=1.0)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, dim, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        inside = (m < rows)[:, None] & (k < dim)[None, :]
        a = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        for split in tl.static_range(SPLITS):
            weight = tl.exp(tl.load(softmax + (first + split) * 2, mask=m < rows, other=0.0) - largest) / weight_of_all
            a += weight[:, None] * tl.load(mixed + (first + split)[:, None] * dim + k[None, :], mask=inside, other=0.0)
        w = tl.load(key + n[None, :] * dim + k[:, None], mask=(n < dim)[None, :] & (k < dim)[:, None], other=0.0)
        total = dot(a, w, total)
    total += tl.load(key_bias + n, mask=n < dim, other=0.0)[None, :]
    tl.store(context + m.to(tl.int64)[:, None] * dim + n[None, :], total, mask=(m < rows)[:, None] & (n < dim)[None, :])


@triton.jit
def value_out_kernel(
    x, parts, context, value, value_bias, out, out_bias, y, made, dim, groups, across, length, columns,
    x_image, x_row, x_column, x_row_step, x_column_step, y_image, y_row, y_column, y_row_step, y_column_step,
    pieces, eps, PIECES: tl.constexpr, FAR: tl.constexpr, COLLECT: tl.constexpr,
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
    result = result.to(x.dtype.element_ty)
    tl.store(y + y_at[:, None] + c[None, :], result, mask=inside)
    if COLLECT:
        write_part(made, program, result, inside, tl.sum(tl.where(t < length, 1.0, 0.0), 0) * dim)


# --- what launches them ---


def forward(
    x: Tensor, weights: Weights, moments: Tensor | None, eps: float, patch: tuple[int, int], y: Tensor, collect: bool = False
) -> Tensor:  # fmt: skip
    """y of x (B, d, H, W), both dense in channels_last; moments (B, 2) float64, mean and variance of the images of x, if they are known.
    Gives those of y with `collect`, else none of them (0, 2)."""
    no_moments = y.new_empty(0, 2, dtype=torch.float64)
    if x.numel() == 0:
        return collect_moments(y, y.shape[0]) if collect else no_moments
    dim, walk = x.shape[1], phases_of(x, patch, y)._replace(vector=1)
    parts, pieces, lanes = parts_or_moments(x, moments)
    rows, block_c = x.shape[0] * walk.groups, power_of_two(dim, 16)
    block_t = power_of_two(walk.length, 1, 4096 // block_c)
    splits = _splits(rows, blocks(walk.length, block_t), processors(x))
    share = blocks(blocks(walk.length, block_t), splits) * block_t
    mixed, softmax = (x.new_empty(rows, splits, size, dtype=torch.float32) for size in (dim, 2))
    context = x.new_empty(rows, dim, dtype=torch.float32)
    of_image = {"PIECES": lanes, "FAR": far(x, y), "enable_fp_fusion": True}
    map_ = (dim, walk.groups, walk.across, walk.length, walk.columns)
    launch(
        mixed_kernel, rows * splits,
        x, weights.query, parts, mixed, softmax, *map_, x.stride(0), *walk.steps(x), pieces, eps, splits, share, BLOCK_C=block_c,
        BLOCK_T=block_t, num_warps=4, **of_image,
    )  # fmt: skip
    launch(
        context_kernel, blocks(rows, 16) * blocks(dim, 32),
        mixed, softmax, weights.key, weights.key_bias, context, rows, dim, SPLITS=splits, BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
    guess, candidates = _tile(walk.length, dim, x.dtype, rows, processors(x)), functools.partial(_candidates, walk.length, dim, x.dtype)
    tiles = tuning.choose("separable_attention_block", x, (rows, walk.length, dim), guess, candidates)
    per_group = blocks(walk.length, tiles["BLOCK_T"])
    made = empty_parts(x, x.shape[0], walk.groups * per_group) if collect else parts
    launch(
        value_out_kernel, rows * per_group,
        x, parts, context, weights.value, weights.value_bias, weights.out, weights.out_bias, y, made, *map_, x.stride(0), *walk.steps(x),
        y.stride(0), *walk.steps(y), pieces, eps, COLLECT=collect, **tiles, **of_image,
    )  # fmt: skip
    return collected(made) if collect else no_moments


_MOST_SPLITS = 8


def _splits(rows: int, tiles: int, processors: int) -> int:
    """Programs for each phase: a power of two, as every number of them is a kernel of its own."""
    wanted = min(blocks(2 * processors, rows), tiles, _MOST_SPLITS)
    return 1 << (wanted.bit_length() - 1)


def _tile(length: int, dim: int, dtype: torch.dtype, rows: int, processors: int) -> dict[str, Any]:
    """Sums of all channels of a tile of pixels are in registers, beside those of the values that are being made: at most 64 a thread. Of
    few images tiles are smaller, down to what tensor cores take, until there is one for each processor."""
    block_c = power_of_two(dim, 16)
    if dtype == torch.float32:
        sizes = {"BLOCK_T": power_of_two(length, 16, max(16, 4096 // block_c)), "BLOCK_V": 16, "BLOCK_K": 16, "num_stages": 2}
    else:
        block_t, block_v = power_of_two(length, 16, min(64, max(32, 8192 // block_c))), min(block_c, 64)
        while block_t > 16 and rows * blocks(length, block_t) < processors:
            block_t //= 2
        sizes = {"BLOCK_T": block_t, "BLOCK_V": block_v, "BLOCK_K": block_v, "num_stages": 3}
    return sizes | {"BLOCK_C": block_c, "num_warps": 8 if sizes["BLOCK_T"] * block_c > 2048 else 4}


def _candidates(length: int, dim: int, dtype: torch.dtype) -> list[tuning.Tile]:
    if dtype == torch.float32:
        return []
    block_c = power_of_two(dim, 16)
    found = {
        (block_t, min(block_v, block_c), warps, stages)
        for block_t, block_v, warps, stages in (
            (16, 32, 4, 3), (16, 64, 4, 3), (32, 32, 8, 3), (32, 64, 8, 2), (64, 32, 8, 3), (64, 64, 8, 2),
        )
        if block_t < 2 * length and block_t * block_c <= 128 * 128
    }  # fmt: skip
    return [
        {"BLOCK_T": t, "BLOCK_V": v, "BLOCK_K": v, "num_stages": stages, "BLOCK_C": block_c, "num_warps": warps}
        for t, v, warps, stages in sorted(found)
    ]  # fmt: skip
