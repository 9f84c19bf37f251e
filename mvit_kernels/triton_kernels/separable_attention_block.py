"""The attention half of a MobileViTv2 layer on channels_last maps, in the form of `reference.separable_attention_block_reduced`: no K
tensor, no normalised copy, no unfolded copy. With xc = x - mean and r = 1 / sigma of an image, gamma and beta inside the weights:

1. moments of pieces of each image (moments.py);
2. `mixed` = r sum_n softmax_n(r w_q xc) xc of every phase, in one pass over x, by as many programs a phase as keep the GPU busy: each
   leaves its largest score m_i, the sum t_i of its exp(score - m_i), and the unscaled sum v_i of the pixels weighted by these;
3. context = W_k mixed + b_k, one vector a phase, with mixed = sum_i e^(m_i - m) v_i / sum_i e^(m_i - m) t_i, m = max m_i;
4. y = x + W_o (relu(r W_v xc + b_v) context) + b_o: both products of a tile of pixels in one program, v and what comes of it stay there.

Of few pixels, each program of 4 would wait for all weights by itself, and most of a GPU for nothing: there the gated values go through
memory (L2), programs share the columns of both products, and those of the first one do 3 for their columns.

In two launches x is normalised before it is rounded to 16 bits for the tensor cores; in one, pixels are multiplied as they are. Neither way
does a large mean cost accuracy that the result has: `normalised` of resident.py.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import gemm, tuning
from .launch import anew, blocks, by_warpgroups, far, launch, power_of_two, processors, registers_of, wait_turn
from .moments import collect as collect_moments
from .moments import collected, combine_moments, empty_parts, parts_or_moments
from .phases import Phases, group_start, phases_of, pixel_offsets
from .products import dot
from .resident import add_and_store, load_pixels, normal, normalised, padded, widths

Tensor = torch.Tensor


SLICE = 64  # channels of the values: what they are a multiple of


class Weights(NamedTuple):
    """With the norm's gamma and beta inside; contiguous, matrices (out, in). The two large products have the dtype of x, and zeros up to
    sizes that need no masks: values to multiples of SLICE, channels to C1 + C2. The rest is float32."""

    query: Tensor  # (d,)
    key: Tensor  # (d, d)
    key_bias: Tensor  # (d,)
    value: Tensor
    value_bias: Tensor
    value_sums: Tensor  # (d,), of the rows of `value` as it is stored
    out: Tensor
    out_bias: Tensor

    def of_out(self) -> gemm.Weight:
        dim = self.query.shape[0]
        return gemm.Weight(self.out[:dim], self.out_bias[:dim], (dim, 0), 1)


def arrange(weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, dtype: torch.dtype) -> Weights:
    """weight (1 + 2 d, d) and bias (1 + 2 d,), rows in the order q, k, v; out (d, d), for x of `dtype`."""
    dim = out.shape[0]
    query, key, value = weight.split([1, dim, dim])
    _, key_bias, value_bias = bias.split([1, dim, dim])  # the query's cancels
    beyond, outside = -dim % SLICE, sum(widths(dim)) - dim
    matrix = padded(value, dtype, 0, outside, 0, beyond)
    return Weights(
        query.float().flatten().contiguous(), key.float().contiguous(), key_bias.float().contiguous(),
        matrix, padded(value_bias, torch.float32, 0, beyond), matrix.sum(1, dtype=torch.float32),
        padded(out, dtype, 0, beyond, 0, outside), padded(out_bias, torch.float32, 0, outside),
    )  # fmt: skip


@triton.jit
def _pixels_of_turn(
    x, begin, end, c, dim, columns, row_step, column_step, FAR: tl.constexpr, SHIFT: tl.constexpr, BLOCK_T: tl.constexpr
):  # fmt: skip
    """Zeros from pixel `end` on."""
    t = begin + tl.arange(0, BLOCK_T)
    at = pixel_offsets(t, columns, row_step, column_step, 1, FAR, SHIFT)
    return tl.load(x + at[:, None] + c[None, :], mask=(t < end)[:, None] & (c < dim)[None, :], other=0.0)


@triton.jit
def mixed_kernel(
    x, query, parts, mixed, spread, softmax, scored, dim, groups, across, length, columns, x_image, x_row, x_column, x_row_step,
    x_column_step, pieces, eps, splits, share, PIECES: tl.constexpr, FAR: tl.constexpr, SHIFT: tl.constexpr, SPREAD: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """mixed (B, groups, splits, d) and softmax (B, groups, splits, 2), largest score and sum, of `share` pixels of a phase. Each of BLOCK_T
    sequences of pixels has a running maximum, sum and weighted sum of its own, so that they meet once and not for every tile. With SPREAD
    also, as mixed is, the sum of pixels weighted by their scores, too, and all scores (B, groups, length)."""
    wait_turn()
    program = tl.program_id(0)
    split, group, image = program % splits, (program // splits) % groups, (program // splits) // groups
    mean, inverse = combine_moments(parts, image, pieces, eps, PIECES)
    x += image.to(tl.int64) * x_image + group_start(group, across, x_row, x_column)
    c = tl.arange(0, BLOCK_C)
    w = tl.load(query + c, mask=c < dim, other=0.0) * inverse
    largest = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    totals = tl.zeros((BLOCK_T,), tl.float32)
    results = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    if SPREAD:
        by_score = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    start, end = split * share, tl.minimum((split + 1) * share, length)
    # Pixels of the next turn are on their way while those of one are added.
    value = _pixels_of_turn(x, start, end, c, dim, columns, x_row_step, x_column_step, FAR, SHIFT, BLOCK_T)
    for begin in range(start, end, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        following = _pixels_of_turn(x, begin + BLOCK_T, end, c, dim, columns, x_row_step, x_column_step, FAR, SHIFT, BLOCK_T)
        centred = value.to(tl.float32) - mean
        scores = tl.where(t < end, tl.sum(centred * w[None, :], 1), float("-inf"))
        now = tl.maximum(largest, scores)
        finite = tl.where(now == float("-inf"), 0.0, now)
        weights, shrink = tl.exp(scores - finite), tl.exp(largest - finite)
        totals = totals * shrink + weights
        results = results * shrink[:, None] + weights[:, None] * centred
        if SPREAD:
            tl.store(scored + (program // splits).to(tl.int64) * length + t, scores, mask=t < end)
            by_score = by_score * shrink[:, None] + (weights * tl.where(t < end, scores, 0.0))[:, None] * centred
        largest, value = now, following
    most = tl.max(largest, 0)
    shrink = tl.exp(largest - tl.where(most == float("-inf"), 0.0, most))
    total = tl.sum(totals * shrink, 0)
    result = tl.sum(results * shrink[:, None], 0)
    wide = tl.cast(program, tl.int64)
    tl.store(mixed + wide * dim + c, result * inverse, mask=c < dim)
    if SPREAD:
        tl.store(spread + wide * dim + c, tl.sum(by_score * shrink[:, None], 0) * inverse, mask=c < dim)
    tl.store(softmax + wide * 2, most)
    tl.store(softmax + wide * 2 + 1, total)


@triton.jit
def context_kernel(
    mixed, spread, softmax, key, key_bias, context, whole, logarithm, rows, dim,
    SPREAD: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """context (rows, d) = mixed key^T + key_bias. With SPREAD also whole (2, rows, d), mixed and spread of all splits, and the logarithm
    (rows,) of the sum of exp(score)."""
    wait_turn()
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
    inside, at = (m < rows)[:, None] & (n < dim)[None, :], m.to(tl.int64)[:, None] * dim + n[None, :]
    tl.store(context + at, total, mask=inside)
    if SPREAD:
        of_mixed, of_spread = tl.zeros((BLOCK_M, BLOCK_N), tl.float32), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for split in tl.static_range(SPLITS):
            weight = tl.exp(tl.load(softmax + (first + split) * 2, mask=m < rows, other=0.0) - largest) / weight_of_all
            from_ = (first + split)[:, None] * dim + n[None, :]
            of_mixed += weight[:, None] * tl.load(mixed + from_, mask=inside, other=0.0)
            of_spread += weight[:, None] * tl.load(spread + from_, mask=inside, other=0.0)
        tl.store(whole + at, of_mixed, mask=inside)
        tl.store(whole + tl.cast(rows, tl.int64) * dim + at, of_spread, mask=inside)
        if tl.program_id(0) % across == 0:
            tl.store(logarithm + m, largest + tl.log(weight_of_all), mask=m < rows)


@triton.jit
def context_of(mixed, softmax, key, key_bias, row, n, dim, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Channels n of the context of a row: all that it reads is on the way at once."""
    split, k = row * SPLITS + tl.arange(0, SPLITS), tl.arange(0, BLOCK_K)
    w = tl.load(key + n[:, None] * dim + k[None, :], mask=(n < dim)[:, None] & (k < dim)[None, :], other=0.0)
    values = tl.load(mixed + split[:, None] * dim + k[None, :], mask=(k < dim)[None, :], other=0.0)
    largest, sums = tl.load(softmax + split * 2), tl.load(softmax + split * 2 + 1)
    shrink = tl.exp(largest - tl.max(largest, 0))
    weight = shrink / tl.sum(shrink * sums, 0)
    total = tl.sum(w * tl.sum(weight[:, None] * values, 0)[None, :], 1)
    return total + tl.load(key_bias + n, mask=n < dim, other=0.0)


@triton.jit
def context_row_kernel(
    mixed, softmax, key, key_bias, context, dim, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """As context_kernel, a program for BLOCK_N columns of a row."""
    wait_turn()
    across = tl.cdiv(dim, BLOCK_N)
    row, n = (tl.program_id(0) // across).to(tl.int64), (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    result = context_of(mixed, softmax, key, key_bias, row, n, dim, SPLITS, BLOCK_K)
    tl.store(context + row * dim + n, result, mask=n < dim)


@triton.jit
def gated_kernel(
    x, parts, mixed, softmax, key, key_bias, value, value_bias, gated, dim, groups, across, length, columns, x_image, x_row, x_column,
    x_row_step, x_column_step, pieces, eps, PIECES: tl.constexpr, FAR: tl.constexpr, SHIFT: tl.constexpr, C1: tl.constexpr,
    C2: tl.constexpr, SPLITS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """gated = relu(r W_v xc + b_v) context, laid out as x is, in tiles of pixels of a phase and of channels; a tile finds its channels of
    the context itself, which takes less time than a launch."""
    wait_turn()
    slices, per_group = tl.cdiv(dim, BLOCK_V), tl.cdiv(length, BLOCK_T)
    program = tl.program_id(0) // slices
    v = (tl.program_id(0) % slices) * BLOCK_V + tl.arange(0, BLOCK_V)
    group, image = (program // per_group) % groups, (program // per_group) // groups
    t = (program % per_group) * BLOCK_T + tl.arange(0, BLOCK_T)
    at = pixel_offsets(tl.minimum(t, length - 1), columns, x_row_step, x_column_step, 1, FAR, SHIFT)[:, None]
    begin = image.to(tl.int64) * x_image + group_start(group, across, x_row, x_column)
    c1, into = tl.arange(0, C1), value + v[None, :] * (C1 + C2)
    w1, x1 = tl.load(into + c1[:, None]), load_pixels(x + begin, at, c1, dim)
    mean, inverse = combine_moments(parts, image, pieces, eps, PIECES)
    values = dot(normal(x1, mean, inverse, c1, dim).to(x.dtype.element_ty), w1, tl.zeros((BLOCK_T, BLOCK_V), tl.float32))
    if C2 > 0:
        c2 = C1 + tl.arange(0, C2)
        x2 = load_pixels(x + begin, at, c2, dim)
        values = dot(normal(x2, mean, inverse, c2, dim).to(x.dtype.element_ty), tl.load(into + c2[:, None]), values)
    values += tl.load(value_bias + v)[None, :]
    gate = context_of(mixed, softmax, key, key_bias, (program // per_group).to(tl.int64), v, dim, SPLITS, BLOCK_K)
    result = (tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL) * gate[None, :]).to(x.dtype.element_ty)
    tl.store(gated + begin + at + v[None, :], result, mask=(t < length)[:, None] & (v < dim)[None, :])


@triton.jit
def tile_pixels(program, groups, length, BLOCK_T: tl.constexpr, PHASES: tl.constexpr):
    """(image, group, t, inside): of a program, or with several phases in a tile, of each of its pixels. Pixels beyond the last repeat it,
    so that their loads need no mask."""
    if PHASES == 1:
        per_group = tl.cdiv(length, BLOCK_T)
        t = (program % per_group) * BLOCK_T + tl.arange(0, BLOCK_T)
        group, image, inside = (program // per_group) % groups, (program // per_group) // groups, t < length
    else:
        share: tl.constexpr = BLOCK_T // PHASES
        per_image = tl.cdiv(groups, PHASES)
        t = tl.arange(0, BLOCK_T) % share
        group, image = (program % per_image) * PHASES + tl.arange(0, BLOCK_T) // share, program // per_image
        inside = (t < length) & (group < groups)
        group = tl.minimum(group, groups - 1)
    return image, group, tl.minimum(t, length - 1), inside


@triton.jit
def value_out_kernel(
    x, parts, context, value, value_bias, value_sums, out, out_bias, y, made, dim, groups, across, length, columns,
    x_image, x_row, x_column, x_row_step, x_column_step, y_image, y_row, y_column, y_row_step, y_column_step,
    pieces, eps, PIECES: tl.constexpr, FAR: tl.constexpr, SHIFT: tl.constexpr, COLLECT: tl.constexpr, SLICE: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, PHASES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A tile of pixels of a phase, or of PHASES short ones, and slices of the values: each is gated and the depth of a second product.
    16-bit pixels are multiplied as they are: `normalised` of resident.py."""
    wait_turn()
    program = tl.program_id(0)
    image, group, t, _ = tile_pixels(program, groups, length, BLOCK_T, PHASES)
    mean, inverse = combine_moments(parts, image, pieces, eps, PIECES)
    at = (group_start(group, across, x_row, x_column) + pixel_offsets(t, columns, x_row_step, x_column_step, 1, FAR, SHIFT))[:, None]
    from_image = x + image.to(tl.int64) * x_image
    context += image.to(tl.int64) * groups * dim
    c1 = tl.arange(0, C1)
    pixels1 = tl.load(from_image + at + c1[None, :], mask=(c1 < dim)[None, :], other=0.0)
    total1 = tl.zeros((BLOCK_T, C1), tl.float32)
    if C2 > 0:
        c2 = C1 + tl.arange(0, C2)
        pixels2 = tl.load(from_image + at + c2[None, :], mask=(c2 < dim)[None, :], other=0.0)
        total2 = tl.zeros((BLOCK_T, C2), tl.float32)
    RAW: tl.constexpr = x.dtype.element_ty != tl.float32
    if not RAW:
        pixels1 = normal(pixels1, mean, inverse, c1, dim)
        if C2 > 0:
            pixels2 = normal(pixels2, mean, inverse, c2, dim)
    depth = tl.cdiv(dim, SLICE) * SLICE
    for first in range(0, dim, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        into, from_ = value + v[None, :] * (C1 + C2), out + v[:, None]
        values = dot(pixels1, tl.load(into + c1[:, None]), tl.zeros((BLOCK_T, BLOCK_V), tl.float32))
        if C2 > 0:
            values = dot(pixels2, tl.load(into + c2[:, None]), values)
        values = normalised(values, mean, inverse, value_bias + v, value_sums + v, RAW)
        if PHASES == 1:
            gate = tl.load(context + group * dim + v, mask=v < dim, other=0.0)[None, :]
        else:
            gate = tl.load(context + (group * dim)[:, None] + v[None, :], mask=(v < dim)[None, :], other=0.0)
        gated = (tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL) * gate).to(x.dtype.element_ty)
        total1 = dot(gated, tl.load(from_ + c1[None, :] * depth), total1)
        if C2 > 0:
            total2 = dot(gated, tl.load(from_ + c2[None, :] * depth), total2)
    program = anew(program)  # or pixels and their addresses stay in registers for the sum
    image, group, t, inside = tile_pixels(program, groups, length, BLOCK_T, PHASES)
    at = (group_start(group, across, x_row, x_column) + pixel_offsets(t, columns, x_row_step, x_column_step, 1, FAR, SHIFT))[:, None]
    y_at = (group_start(group, across, y_row, y_column) + pixel_offsets(t, columns, y_row_step, y_column_step, 1, FAR, SHIFT))[:, None]
    x += image.to(tl.int64) * x_image
    y += image.to(tl.int64) * y_image
    if C2 > 0:  # the fewer channels first, beside the sums of the others
        add_and_store(total2, out_bias, x, at, y, y_at, c2, dim, inside, made, program * 2 + 1, C1, COLLECT)
        add_and_store(total1, out_bias, x, at, y, y_at, c1, dim, inside, made, program * 2, 0, COLLECT)
    else:
        add_and_store(total1, out_bias, x, at, y, y_at, c1, dim, inside, made, program, 0, COLLECT)


# --- what launches them ---


def forward(
    x: Tensor, weights: Weights, moments: Tensor | None, eps: float, patch: tuple[int, int], y: Tensor, collect: bool = False
) -> Tensor:  # fmt: skip
    """y of x (B, d, H, W), both dense in channels_last; moments (B, 2) float64, mean and variance of the images of x, if they are known.
    Gives those of y with `collect`, else none of them (0, 2)."""
    no_moments = y.new_empty(0, 2, dtype=torch.float64)
    if x.numel() == 0:
        return collect_moments(y, y.shape[0]) if collect else no_moments
    dim, walk = x.shape[1], phases_of(x, patch, y, joining=False)
    parts, pieces, lanes = of_moments = parts_or_moments(x, moments)
    rows, mixed = x.shape[0] * walk.groups, mix(x, weights, walk, of_moments, eps)
    of_image = {"PIECES": lanes, "FAR": far(x, y), "SHIFT": walk.shift, "enable_fp_fusion": True}
    map_ = map_of(x, walk)
    tiles = tuning.choose(
        "separable_attention_block", x, (rows, walk.length, dim), tile(x, walk), functools.partial(candidates, x, walk)
    )  # fmt: skip
    c1, c2 = widths(dim)
    of_channels = {"C1": c1, "C2": c2}
    if tiles == tuning.IN_TWO:  # both products of 4 in a launch each
        gated = x.new_empty(x.shape[0], *x.shape[2:], dim)
        launch(
            gated_kernel, rows * blocks(walk.length, _FEW) * blocks(dim, _FEW_VALUES),
            x, parts, mixed.sums, mixed.softmax, weights.key, weights.key_bias, weights.value, weights.value_bias, gated, *map_,
            x.stride(0), *walk.steps(x), pieces, eps, SPLITS=mixed.sums.shape[1], BLOCK_T=_FEW, BLOCK_V=_FEW_VALUES,
            BLOCK_K=power_of_two(dim, 16), num_warps=4, **of_channels, **of_image,
        )  # fmt: skip
        pixels, result = (each.permute(0, 2, 3, 1).flatten(0, 2) for each in (x, y))
        return gemm.gemm(gated.flatten(0, 2), weights.of_out(), result, residual=pixels, collect=x.shape[0] if collect else 0)
    context = _context(mixed, weights)
    programs, phases = programs_of(walk, tiles["BLOCK_T"])
    made = empty_parts(x, x.shape[0], programs * (2 if c2 else 1)) if collect else parts
    launch(
        value_out_kernel, x.shape[0] * programs,
        x, parts, context, weights.value, weights.value_bias, weights.value_sums, weights.out, weights.out_bias, y, made, *map_,
        x.stride(0), *walk.steps(x), y.stride(0), *walk.steps(y), pieces, eps, COLLECT=collect, SLICE=SLICE, PHASES=phases, **of_channels,
        **tiles, **of_image,
    )  # fmt: skip
    return collected(made) if collect else no_moments


class Mixed(NamedTuple):
    """Of `splits` parts of every phase, float32."""

    sums: Tensor  # (rows, splits, d), of pixels weighted by exp(score - largest)
    spread: Tensor  # the same, weighted by their scores, too; or anything
    softmax: Tensor  # (rows, splits, 2): largest score, sum of exp(score - largest)
    scores: Tensor  # (rows, length); or anything


def map_of(x: Tensor, walk: Phases) -> tuple[int, ...]:
    return x.shape[1], walk.groups, walk.across, walk.length, walk.columns


def mix(x: Tensor, weights: Weights, walk: Phases, moments: tuple[Tensor, int, int], eps: float, spread: bool = False) -> Mixed:
    """moments: as of `parts_or_moments`."""
    parts, pieces, lanes = moments
    dim, rows, block_c = x.shape[1], x.shape[0] * walk.groups, power_of_two(x.shape[1], 16)
    # As many as are on a multiprocessor at once, about 20, have enough of memory on its way; of more programs, what each of them does once
    # is done in one warp.
    warps = 4 if rows <= 5 * processors(x) else 2 if rows <= 10 * processors(x) else 1
    block_t = power_of_two(walk.length, 1, 1024 * warps // block_c)
    splits = _splits(rows, blocks(walk.length, block_t), processors(x))
    share = blocks(blocks(walk.length, block_t), splits) * block_t
    sums, softmax = (x.new_empty(rows, splits, size, dtype=torch.float32) for size in (dim, 2))
    by_score, scores = (torch.empty_like(sums), sums.new_empty(rows, walk.length)) if spread else (sums, sums)
    launch(
        mixed_kernel, rows * splits,
        x, weights.query, parts, sums, by_score, softmax, scores, *map_of(x, walk), x.stride(0), *walk.steps(x), pieces, eps, splits, share,
        PIECES=lanes, FAR=far(x), SHIFT=walk.shift, SPREAD=spread, BLOCK_C=block_c, BLOCK_T=block_t, num_warps=warps,
        enable_fp_fusion=True,
    )  # fmt: skip
    return Mixed(sums, by_score, softmax, scores)


_FEW_ROWS = 64  # phases, of which each reads the keys by itself: from L2, in less time than it takes to begin


def _context(mixed: Mixed, weights: Weights) -> Tensor:
    """(phases of all images, d)."""
    rows, splits, dim = mixed.sums.shape
    if rows > _FEW_ROWS:
        return contexts(mixed, weights).context
    context = mixed.sums.new_empty(rows, dim)
    launch(
        context_row_kernel, rows * blocks(dim, 8),
        mixed.sums, mixed.softmax, weights.key, weights.key_bias, context, dim, SPLITS=splits, BLOCK_N=8, BLOCK_K=power_of_two(dim, 16),
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return context


class Contexts(NamedTuple):
    """Of all phases, float32."""

    context: Tensor  # (rows, d)
    whole: Tensor  # (2, rows, d): mixed, and its spread; or anything, as the next
    logarithm: Tensor  # (rows,): of the sum of exp(score)


def contexts(mixed: Mixed, weights: Weights, spread: bool = False) -> Contexts:
    rows, splits, dim = mixed.sums.shape
    context = mixed.sums.new_empty(rows, dim)
    whole, logarithm = (mixed.sums.new_empty(2, rows, dim), mixed.sums.new_empty(rows)) if spread else (context, context)
    launch(
        context_kernel, blocks(rows, 16) * blocks(dim, 32),
        *mixed[:3], weights.key, weights.key_bias, context, whole, logarithm, rows, dim, SPREAD=spread, SPLITS=splits,
        BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return Contexts(context, whole, logarithm)


_MOST_SPLITS = 8


def _splits(rows: int, tiles: int, processors: int) -> int:
    """Programs for each phase: a power of two, as every number of them is a kernel of its own."""
    wanted = min(blocks(2 * processors, rows), tiles, _MOST_SPLITS)
    return 1 << (wanted.bit_length() - 1)


_FEW, _FEW_VALUES = 16, 32  # pixels and channels of a program of which there would be few


def programs_of(walk: Phases, block_t: int) -> tuple[int, int]:
    """(programs of an image, PHASES of a tile) of so many pixels."""
    phases = min(block_t // power_of_two(walk.length), power_of_two(walk.groups))
    return (blocks(walk.groups, phases), phases) if phases > 1 else (walk.groups * blocks(walk.length, block_t), 1)


def tile(x: Tensor, walk: Phases) -> tuning.Tile:
    """As of feed_forward.py. Of few images tiles are smaller, as small as tensor cores take, until there is one for each processor; where
    there is none even so, products are in two launches."""
    images, width = x.shape[0], sum(widths(x.shape[1]))
    if x.dtype == torch.float32:  # on no tensor cores
        return _tile(16, 16, 8, 1)
    if images * walk.groups * blocks(walk.length, _FEW) < processors(x):
        return tuning.IN_TWO
    warpgroups = by_warpgroups(x)
    block_t = 64 if width <= (256 if warpgroups else 128) else 32
    if warpgroups and (width <= 128 or 192 < width <= 256) and walk.length >= 128:
        block_t = 128
    while block_t > 16 and (images * programs_of(walk, block_t)[0] < processors(x) or block_t >= 2 * walk.groups * walk.length):
        block_t //= 2
    if warpgroups and block_t == 128:
        return _tile(block_t, 32, 8, 2, 2) if 64 < width <= 128 else _tile(block_t, 64, 8, 2, 2 if width <= 64 else 0)
    if warpgroups and block_t == 64:
        if images * programs_of(walk, block_t)[0] <= 2 * processors(x):
            return _tile(block_t, 64 if width <= 128 else 32, 4, 2)
        return _tile(block_t, 32, 4, 2, 3 if width <= 192 else 0)
    return _tile(block_t, 64 if width <= 192 else 32, 8 if block_t * width > 4096 else 4, 2)


def candidates(x: Tensor, walk: Phases) -> list[tuning.Tile]:
    images, width = x.shape[0], sum(widths(x.shape[1]))
    if x.dtype == torch.float32:
        return []
    pixels = walk.groups * walk.length
    found: list[tuple[int, ...]]
    if images * pixels <= 64 * processors(x):
        found = [(16, 32, 4, 2), (16, 64, 4, 2), (32, 32, 8, 2)]
        return [tuning.IN_TWO, *(_tile(*each) for each in found if each[0] < 2 * pixels)]
    if width <= 192:
        found = [(32, 64, 8, 2), (64, 32, 8, 2, 2), (64, 32, 4, 2, 3), (128, 64, 8, 2)]
    else:
        found = [(16, 32, 4, 2), (16, 64, 8, 2), (64, 32, 4, 2)]
        found += [(64, 32, 8, 2), (128, 64, 8, 2)] if width <= 256 else [(32, 32, 4, 2)]
    found += [(64, 64, 4, 2), (128, 32, 8, 2, 2)] if width <= 128 else []
    return [_tile(*each) for each in found if each[0] < 2 * pixels]


def _tile(block_t: int, block_v: int, warps: int, stages: int, resident: int = 0) -> tuning.Tile:
    return {"BLOCK_T": block_t, "BLOCK_V": block_v, "num_warps": warps, "num_stages": stages, **registers_of(warps, resident)}
