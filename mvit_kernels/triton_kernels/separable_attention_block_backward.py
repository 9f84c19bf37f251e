"""The gradient of the attention half of a MobileViTv2 layer on channels_last maps, in the form of
`reference.separable_attention_block_reduced_backward`, which derives it: no K tensor, no pass for the norm, five products of maps.

1. `mixed`, its spread, all scores and the context of every phase: a pass over x, as in the forward;
2. v and dg = W_o^T dy of a tile of pixels: g = relu(v) context and dv = dg context where v > 0, and over the pixels of each phase
   the sums of dg relu(v) and of dv;
3. dW_o = dy g^T and dW_v = dv xc^T, each program a part of the pixels: parts are added in their order, so results are always the same;
4. of every phase dcontext and dmixed, and what the norm's two means over an image are made of;
5. dx = dy + r (dxc - mean(dxc) - xc mean(dxc xc)) with dxc = W_v^T dv + p dmixed + ds w_q, and parts of dw_q and db_o;
6. gradients of the weights as they are given, from those of the weights with gamma and beta inside.

Floor: memory, 13 maps: x for 1; x and dy, g and dv for 2; these four again for 3; x, dy, dv and dx for 5. Parts of weights, a tile of sums
for each multiprocessor, stay in L2. Of channels whose sums fit into registers, 2 and 3 are one launch, and g never leaves it: 8 maps, of
which x, dy and dx have to be; x is read again behind the softmax of its scores, and x and dy behind the means of the norm. On an H100 (3.0
TB/s), of batch 256, 32 x 32, in 16 bits: d = 128, 8 maps: 179 us, d = 256, 13 maps: 581 us; the products of these take 61 and 245 us
at 700 TFLOP/s.

Products of W_v are of pixels as they are, and what their mean adds is taken off the sums: W xc = r (W x - mean W 1), exact but for the last
bits of sums in float32. So 16-bit pixels go from memory to tensor cores through no register.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import tuning
from .launch import blocks, by_warpgroups, far, launch, power_of_two, processors, registers_of, wait_turn
from .moments import collect as collect_moments
from .moments import combine_moments, join
from .phases import Phases, group_start, phases_of, pixel_offsets
from .products import dot
from .resident import load_pixels, normal, widths
from .separable_attention_block import SLICE, Weights, contexts, map_of, mix, programs_of, tile_pixels

Tensor = torch.Tensor


@triton.jit
def _of_phase(values, row, c, dim, PHASES: tl.constexpr):
    """Channels c of vectors (rows, d): (1, c) of the phase that a tile is in, or with several in it (t, c), of that of each pixel."""
    at = row * dim + c[None, :] if PHASES == 1 else (row * dim)[:, None] + c[None, :]
    return tl.load(values + at, mask=(c < dim)[None, :], other=0.0)


@triton.jit
def _gates(values, dgated, context, row, v, dim, PHASES: tl.constexpr):
    """(dg relu(v), g, dv)."""
    gate = _of_phase(context, row, v, dim, PHASES)
    positive = tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return dgated * positive, positive * gate, tl.where(values <= 0, 0.0, dgated * gate)


@triton.jit
def _rows_of_sums(tile, image, groups, phase, PHASES: tl.constexpr):
    """(rows of sums, inside) of phases of a tile: those of the tile itself where it is of one phase."""
    if PHASES == 1:
        row, known = tile + phase, phase < 1
    else:
        of_image = (tile % tl.cdiv(groups, PHASES)) * PHASES + phase
        row, known = image * groups + of_image, (phase < PHASES) & (of_image < groups)
    return row.to(tl.int64), known


@triton.jit
def value_out_bwd_kernel(
    dy, x, moments, context, value, value_sums, value_bias, out, dvalue, sums, parts, dim, groups, across, length, columns, image_step,
    row_first, column_first, row_step, column_step, eps, tiles, share, FAR: tl.constexpr, SHIFT: tl.constexpr, SLICE: tl.constexpr,
    C: tl.constexpr, PHASES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """dvalue, laid out as x is; sums (tiles, or phases where there are several in a tile, 2, d): of dg relu(v) and of dv; parts
    (splits, 2, d, d): dW_o, and dW_v transposed, of `share` tiles. A program has a slice of the values."""
    wait_turn()
    slices, depth = tl.cdiv(dim, BLOCK_V), tl.cdiv(dim, SLICE) * SLICE
    split = tl.program_id(0) // slices
    v = (tl.program_id(0) % slices) * BLOCK_V + tl.arange(0, BLOCK_V)
    c = tl.arange(0, C)
    w, o = tl.load(value + v[None, :] * C + c[:, None]), tl.load(out + c[:, None] * depth + v[None, :])
    dout, dinto = tl.zeros((C, BLOCK_V), tl.float32), tl.zeros((C, BLOCK_V), tl.float32)
    PADDED: tl.constexpr = PHASES if PHASES > 16 else 16
    phase = tl.arange(0, PADDED)
    ones = tl.where((tl.arange(0, BLOCK_T) // (BLOCK_T // PHASES))[:, None] == phase[None, :], 1.0, 0.0).to(x.dtype.element_ty)
    beside, unit = tl.zeros((BLOCK_V, PADDED), tl.float32), 1.0
    for tile in range(split * share, tl.minimum((split + 1) * share, tiles)):
        image, group, t, inside = tile_pixels(tile, groups, length, BLOCK_T, PHASES)
        mean, inverse = combine_moments(moments, image, 0, eps, 0)
        begin = image.to(tl.int64) * image_step
        at = group_start(group, across, row_first, column_first) + pixel_offsets(t, columns, row_step, column_step, 1, FAR, SHIFT)
        at = at[:, None]
        pixels = tl.load(x + begin + at + c[None, :], mask=(c < dim)[None, :], other=0.0)
        grad = tl.load(dy + begin + at + c[None, :], mask=inside[:, None] & (c < dim)[None, :], other=0.0)
        values = dot(pixels, w, tl.zeros((BLOCK_T, BLOCK_V), tl.float32))
        dgated = dot(grad, o, tl.zeros((BLOCK_T, BLOCK_V), tl.float32))  # 0 of pixels that are not inside
        values = values * inverse + (tl.load(value_bias + v) - mean * inverse * tl.load(value_sums + v))[None, :]
        product, gated, dvalues = _gates(values, dgated, context, image.to(tl.int64) * groups + group, v, dim, PHASES)
        gated, dvalues = gated.to(x.dtype.element_ty), dvalues.to(x.dtype.element_ty)
        tl.store(dvalue + begin + at + v[None, :], dvalues, mask=inside[:, None] & (v < dim)[None, :])
        # Sums over pixels by tensor cores: over threads they take longer than all the rest.
        of_context = dot(tl.trans(product.to(x.dtype.element_ty)), ones, tl.zeros((BLOCK_V, PADDED), tl.float32))
        of_values = dot(tl.trans(dvalues), ones, tl.zeros((BLOCK_V, PADDED), tl.float32))
        first, known = _rows_of_sums(tile, image, groups, phase, PHASES)
        sums_at, known = sums + first[None, :] * 2 * dim + v[:, None], known[None, :] & (v < dim)[:, None]
        tl.store(sums_at, of_context, mask=known)
        tl.store(sums_at + dim, of_values, mask=known)
        shrink, unit = unit / inverse, inverse
        dout = dot(tl.trans(grad), gated, dout)
        dinto = dot(tl.trans(pixels), dvalues, dinto * shrink)
        beside = beside * shrink + mean * of_values
    of_mean = tl.sum(beside, 1)[None, :]
    parts += split.to(tl.int64) * 2 * dim * dim
    square = dim * dim
    at, known = c[:, None] * dim + v[None, :], (c < dim)[:, None] & (v < dim)[None, :]
    tl.store(parts + at, dout, mask=known)
    tl.store(parts + square + at, (dinto - of_mean) * unit, mask=known)


@triton.jit
def gated_bwd_kernel(
    dy, x, moments, context, value, value_sums, value_bias, out, gated, dvalue, sums, dim, groups, across, length, columns, image_step,
    row_first, column_first, row_step, column_step, eps, pitch, FAR: tl.constexpr, SHIFT: tl.constexpr, SLICE: tl.constexpr,
    PHASES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """gated and dvalue, laid out as x is, of a tile of pixels and a slice of the values; sums as of value_out_bwd_kernel."""
    wait_turn()
    slices, depth = tl.cdiv(dim, BLOCK_V), tl.cdiv(dim, SLICE) * SLICE
    tile = tl.program_id(0) // slices
    v = (tl.program_id(0) % slices) * BLOCK_V + tl.arange(0, BLOCK_V)
    image, group, t, inside = tile_pixels(tile, groups, length, BLOCK_T, PHASES)
    at = group_start(group, across, row_first, column_first) + pixel_offsets(t, columns, row_step, column_step, 1, FAR, SHIFT)
    at = (image.to(tl.int64) * image_step + at)[:, None]
    values, dgated = tl.zeros((BLOCK_T, BLOCK_V), tl.float32), tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
    for begin in range(0, dim, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        across_k, down_k = (k < dim)[None, :], (k < dim)[:, None]
        w = tl.load(value + v[None, :] * pitch + k[:, None], mask=down_k, other=0.0)
        values = dot(tl.load(x + at + k[None, :], mask=across_k, other=0.0), w, values)
        w = tl.load(out + k[:, None] * depth + v[None, :], mask=down_k, other=0.0)
        dgated = dot(tl.load(dy + at + k[None, :], mask=inside[:, None] & across_k, other=0.0), w, dgated)
    mean, inverse = combine_moments(moments, image, 0, eps, 0)
    values = values * inverse + (tl.load(value_bias + v) - mean * inverse * tl.load(value_sums + v))[None, :]
    product, gates, dvalues = _gates(values, dgated, context, image.to(tl.int64) * groups + group, v, dim, PHASES)
    known = inside[:, None] & (v < dim)[None, :]
    tl.store(gated + at + v[None, :], gates.to(x.dtype.element_ty), mask=known)
    tl.store(dvalue + at + v[None, :], dvalues.to(x.dtype.element_ty), mask=known)
    first, known = _rows_of_sums(tile, image, groups, tl.arange(0, PHASES), PHASES)
    sums_at, known = sums + first[:, None] * 2 * dim + v[None, :], known[:, None] & (v < dim)[None, :]
    SHARE: tl.constexpr = BLOCK_T // PHASES
    tl.store(sums_at, tl.sum(tl.reshape(product, (PHASES, SHARE, BLOCK_V)), 1), mask=known)
    tl.store(sums_at + dim, tl.sum(tl.reshape(dvalues, (PHASES, SHARE, BLOCK_V)), 1), mask=known)


@triton.jit
def maps_bwd_kernel(
    dy, x, moments, gated, dvalue, parts, dim, pixels, image_step, eps, tiles, share,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """parts as of value_out_bwd_kernel, of `share` tiles of pixels, which end with their image: dW_o = dy g^T and dW_v = dv xc^T."""
    wait_turn()
    across, down, per_image = tl.cdiv(dim, BLOCK_V), tl.cdiv(dim, BLOCK_C), tl.cdiv(pixels, BLOCK_T)
    program = tl.program_id(0)
    v, c = (program % across) * BLOCK_V + tl.arange(0, BLOCK_V), (program // across % down) * BLOCK_C + tl.arange(0, BLOCK_C)
    of_value, split = program // (across * down) % 2, program // (across * down * 2)
    a, b = dy, gated
    if of_value == 1:
        a, b = x, dvalue
    total = tl.zeros((BLOCK_C, BLOCK_V), tl.float32)
    for tile in range(split * share, tl.minimum((split + 1) * share, tiles)):
        image, t = tile // per_image, (tile % per_image) * BLOCK_T + tl.arange(0, BLOCK_T)
        at = image.to(tl.int64) * image_step + tl.minimum(t, pixels - 1).to(tl.int64)[:, None] * dim
        of_c = tl.load(a + at + c[None, :], mask=(c < dim)[None, :], other=0.0)
        of_v = tl.load(b + at + v[None, :], mask=(t < pixels)[:, None] & (v < dim)[None, :], other=0.0)
        mean, inverse = combine_moments(moments, image, 0, eps, 0)
        mean, inverse = tl.where(of_value == 1, mean, 0.0), tl.where(of_value == 1, inverse, 1.0)
        centred = normal(of_c.to(tl.float32), mean, inverse, c, dim)  # beyond the last pixel that one again, times 0
        total = dot(tl.trans(centred.to(x.dtype.element_ty)), of_v, total)
    parts += (split * 2 + of_value).to(tl.int64) * dim * dim
    tl.store(parts + c[:, None] * dim + v[None, :], total, mask=(c < dim)[:, None] & (v < dim)[None, :])


@triton.jit
def _over_tiles(sums, m, n, inside, along, dim, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows m and columns n of sums (rows, along, 2, d), over their tiles."""
    at = sums + m.to(tl.int64)[:, None] * along * 2 * dim + n[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in range(0, along):
        total += tl.load(at + tl.cast(tile, tl.int64) * 2 * dim, mask=inside, other=0.0)
    return total


@triton.jit
def context_bwd_kernel(
    sums, mixed, spread, context, query, key, value_sums, value_bias, dcontext, dmixed, means, rows, along, dim,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dcontext and dmixed = dcontext key, (rows, d); means (rows, blocks of columns, 2): this block's part of sum dxc and of sum xc dxc
    over a phase."""
    wait_turn()
    across = tl.cdiv(dim, BLOCK_N)
    m = (tl.program_id(0) // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    wide = m.to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    score = tl.zeros((BLOCK_M,), tl.float32)
    for begin in range(0, dim, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        inside, known = (m < rows)[:, None] & (k < dim)[None, :], (k < dim)[:, None] & (n < dim)[None, :]
        a = _over_tiles(sums, m, k, inside, along, dim, BLOCK_M, BLOCK_K)
        total = dot(a, tl.load(key + k[:, None] * dim + n[None, :], mask=known, other=0.0), total)
        q = tl.load(query + k, mask=k < dim, other=0.0)
        score += tl.sum(q[None, :] * tl.load(mixed + wide * dim + k[None, :], mask=inside, other=0.0), 1)
    inside, at = (m < rows)[:, None] & (n < dim)[None, :], wide * dim + n[None, :]
    of_context = _over_tiles(sums, m, n, inside, along, dim, BLOCK_M, BLOCK_N)
    of_values = _over_tiles(sums + dim, m, n, inside, along, dim, BLOCK_M, BLOCK_N)
    tl.store(dcontext + at, of_context, mask=inside)
    tl.store(dmixed + at, total, mask=inside)
    mean = tl.load(mixed + at, mask=inside, other=0.0)
    scattered = tl.load(spread + at, mask=inside, other=0.0) - score[:, None] * mean
    bias = tl.load(value_bias + n, mask=n < dim, other=0.0)
    along_x = tl.load(context + at, mask=inside, other=0.0) * of_context - bias[None, :] * of_values + total * (mean + scattered)
    means += (m.to(tl.int64) * across + tl.program_id(0) % across) * 2
    of_one = tl.load(value_sums + n, mask=n < dim, other=0.0)
    tl.store(means, tl.sum(total + of_one[None, :] * of_values, 1), mask=m < rows)
    tl.store(means + 1, tl.sum(along_x, 1), mask=m < rows)


@triton.jit
def _means_of_image(means, count, size, BLOCK: tl.constexpr):
    """(mean(dxc), mean(dxc xc)) of `size` values, from `count` parts."""
    first, second = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, count, BLOCK):
        part = begin + tl.arange(0, BLOCK)
        first += tl.load(means + part * 2, mask=part < count, other=0.0)
        second += tl.load(means + part * 2 + 1, mask=part < count, other=0.0)
    return tl.sum(first, 0) / size, tl.sum(second, 0) / size


@triton.jit
def mixed_bwd_kernel(
    dy, x, moments, dvalue, value, query, scores, mixed, dmixed, logarithm, means, dx, sums, dim, groups, across, length, columns,
    image_step, row_first, column_first, row_step, column_step, eps, parts_of_means, pitch, FAR: tl.constexpr, SHIFT: tl.constexpr,
    PHASES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx, and sums (programs, 2, d): this tile's part of dw_q and db_o."""
    wait_turn()
    program = tl.program_id(0)
    image, group, t, inside = tile_pixels(program, groups, length, BLOCK_T, PHASES)
    mean, inverse = combine_moments(moments, image, 0, eps, 0)
    count = groups * parts_of_means
    first, second = _means_of_image(means + image.to(tl.int64) * count * 2, count, groups * length * tl.cast(dim, tl.float32), 64)
    at = group_start(group, across, row_first, column_first) + pixel_offsets(t, columns, row_step, column_step, 1, FAR, SHIFT)
    at = (image.to(tl.int64) * image_step + at)[:, None]
    row = image.to(tl.int64) * groups + group
    along_mixed = tl.zeros((BLOCK_T,), tl.float32)
    for begin in range(0, dim, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        distance = normal(load_pixels(x, at, k, dim), mean, inverse, k, dim) - _of_phase(mixed, row, k, dim, PHASES)
        along_mixed += tl.sum(distance * _of_phase(dmixed, row, k, dim, PHASES), 1)
    weights = tl.where(inside, tl.exp(tl.load(scores + row * length + t) - tl.load(logarithm + row)), 0.0)
    dscores = weights * along_mixed
    sums += program.to(tl.int64) * 2 * dim
    for channel in range(0, dim, BLOCK_V):
        c = channel + tl.arange(0, BLOCK_V)
        known = (c < dim)[None, :]
        total = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
        for begin in range(0, dim, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            w = tl.load(value + k[:, None] * pitch + c[None, :], mask=(k < dim)[:, None] & known, other=0.0)
            total = dot(tl.load(dvalue + at + k[None, :], mask=(k < dim)[None, :], other=0.0), w, total)
        centred = normal(load_pixels(x, at, c, dim), mean, inverse, c, dim)
        grad = tl.load(dy + at + c[None, :], mask=inside[:, None] & known, other=0.0).to(tl.float32)
        q = tl.load(query + c, mask=c < dim, other=0.0)
        total += weights[:, None] * _of_phase(dmixed, row, c, dim, PHASES) + dscores[:, None] * q[None, :]
        result = grad + (total - first - centred * second) * inverse
        tl.store(dx + at + c[None, :], result.to(dx.dtype.element_ty), mask=inside[:, None] & known)
        tl.store(sums + c, tl.sum(dscores[:, None] * centred, 0), mask=c < dim)
        tl.store(sums + dim + c, tl.sum(grad, 0), mask=c < dim)


@triton.jit
def weights_bwd_kernel(
    parts, dcontext, mixed, of_phases, of_tiles, gamma, beta, qkv_w, dqkv_w, dqkv_b, dout_w, sums, splits, rows, dim,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Columns c and rows r of dW_o, dW_v or dW_k, transposed. of_phases (2, d): db_k and db_v; of_tiles (2, d): dw_q and db_o; sums
    (2 blocks of rows, 2, d): this block's part of dgamma and dbeta."""
    wait_turn()
    across, down = tl.cdiv(dim, BLOCK_C), tl.cdiv(dim, BLOCK_R)
    program = tl.program_id(0)
    kind = program // (across * down)  # 0: dW_o, 1: dW_v, 2: dW_k
    block = program // across % down
    c, r = (program % across) * BLOCK_C + tl.arange(0, BLOCK_C), block * BLOCK_R + tl.arange(0, BLOCK_R)
    inside, square = (c < dim)[:, None] & (r < dim)[None, :], dim * dim
    total = tl.zeros((BLOCK_C, BLOCK_R), tl.float32)
    if kind < 2:
        matrix = parts + kind * square + c[:, None] * dim + r[None, :]
        for begin in range(0, splits, BLOCK_S):
            split = begin + tl.arange(0, BLOCK_S)
            known = (split < splits)[:, None, None] & inside[None, :, :]
            of_splits = tl.load(matrix[None, :, :] + split.to(tl.int64)[:, None, None] * 2 * square, mask=known, other=0.0)
            total += tl.sum(of_splits, 0)
    else:
        for begin in range(0, rows, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            wide = k.to(tl.int64)[:, None] * dim
            a = tl.load(mixed + wide + c[None, :], mask=(k < rows)[:, None] & (c < dim)[None, :], other=0.0)
            b = tl.load(dcontext + wide + r[None, :], mask=(k < rows)[:, None] & (r < dim)[None, :], other=0.0)
            total = dot(tl.trans(a), b, total)
    if kind == 0:
        tl.store(dout_w + c[:, None] * dim + r[None, :], total, mask=inside)
    else:
        scale = tl.load(gamma + c, mask=c < dim, other=0.0).to(tl.float32)
        shift = tl.load(beta + c, mask=c < dim, other=0.0).to(tl.float32)
        of_key = kind == 2
        row = 1 + r + tl.where(of_key, 0, dim)
        bias = tl.load(of_phases + tl.where(of_key, 0, dim) + r, mask=r < dim, other=0.0)
        at = row[None, :] * dim + c[:, None]
        weight = tl.load(qkv_w + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dqkv_w + at, total * scale[:, None] + bias[None, :] * shift[:, None], mask=inside)
        if program % across == 0:
            tl.store(dqkv_b + row, bias, mask=r < dim)
        dscale, dshift = tl.sum(total * weight, 1), tl.sum(bias[None, :] * weight, 1)
        if program // across == 2 * down:  # the row of the query, whose bias has no gradient
            query = tl.load(of_tiles + c, mask=c < dim, other=0.0)
            dscale += query * tl.load(qkv_w + c, mask=c < dim, other=0.0).to(tl.float32)
            tl.store(dqkv_w + c, query * scale, mask=c < dim)
            tl.store(dqkv_b + c, 0.0, mask=c < 1)
        sums_at = (program // across - down) * 2 * dim + c
        tl.store(sums + sums_at, dscale, mask=c < dim)
        tl.store(sums + dim + sums_at, dshift, mask=c < dim)


# --- what launches them ---


class Gradients(NamedTuple):
    """Of all but x, float32."""

    norm_w: Tensor
    norm_b: Tensor
    qkv_w: Tensor
    qkv_b: Tensor
    out_w: Tensor
    out_b: Tensor


def backward(
    dy: Tensor, x: Tensor, weights: Weights, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, moments: Tensor | None, eps: float,
    patch: tuple[int, int], dx: Tensor,
) -> Gradients:  # fmt: skip
    """dx, and the gradients of the parameters. dy, x and dx (B, d, H, W) are dense in channels_last, norm_w, norm_b (d,) and qkv_w
    (1 + 2 d, d) contiguous. moments: of the images of x, or their parts, if they are known."""
    images, dim = x.shape[:2]
    empty = functools.partial(x.new_empty, dtype=torch.float32)
    if x.numel() == 0:
        sizes = (dim,), (dim,), (1 + 2 * dim, dim), (1 + 2 * dim,), (dim, dim), (dim,)
        return Gradients(*(x.new_zeros(size, dtype=torch.float32) for size in sizes))
    walk, (c1, c2) = phases_of(x, patch, joining=False), widths(dim)
    moments = collect_moments(x, images) if moments is None else moments
    moments = join(moments) if moments.ndim == 3 else moments.contiguous()
    mixed = mix(x, weights, walk, (moments, 0, 0), eps, spread=True)
    context, (whole, spread), logarithm = contexts(mixed, weights, spread=True)
    rows, value_sums = context.shape[0], weights.value_sums
    map_ = (*map_of(x, walk), x.stride(0), *walk.steps(x), eps)
    of_map = {"FAR": far(x), "SHIFT": walk.shift, "enable_fp_fusion": True}

    choose = functools.partial(_choose, x, walk)
    tiles = choose("value_out_bwd", tile, candidates)
    in_one, tiles = tiles != tuning.IN_TWO, tiles or choose("gated_bwd", gated_tile, gated_candidates)
    programs, phases = programs_of(walk, tiles["BLOCK_T"])
    along, slices = programs // walk.groups if phases == 1 else 1, blocks(dim, tiles["BLOCK_V"])
    dvalue, sums = torch.empty_like(x), empty(rows * along, 2, dim)
    of_values = (dy, x, moments, context, weights.value, value_sums, weights.value_bias, weights.out)
    if in_one:
        splits, share = _splits(images * programs, slices, x)
        parts = empty(splits, 2, dim, dim)
        launch(
            value_out_bwd_kernel, splits * slices,
            *of_values, dvalue, sums, parts, *map_, images * programs, share, SLICE=SLICE, C=c1, PHASES=phases, **tiles, **of_map,
        )  # fmt: skip
    else:
        gated = torch.empty_like(x)
        launch(
            gated_bwd_kernel, images * programs * slices,
            *of_values, gated, dvalue, sums, *map_, c1 + c2, SLICE=SLICE, PHASES=phases, **tiles, **of_map,
        )  # fmt: skip
        tiles, pixels = choose("maps_bwd", maps_tile, maps_candidates), x.shape[2] * x.shape[3]
        of_parts, of_images = blocks(dim, tiles["BLOCK_C"]) * blocks(dim, tiles["BLOCK_V"]) * 2, images * blocks(pixels, tiles["BLOCK_T"])
        splits, share = _splits(of_images, of_parts, x)
        parts = empty(splits, 2, dim, dim)
        launch(
            maps_bwd_kernel, splits * of_parts,
            dy, x, moments, gated, dvalue, parts, dim, pixels, x.stride(0), eps, of_images, share, enable_fp_fusion=True, **tiles,
        )  # fmt: skip

    across = blocks(dim, _COLUMNS)
    dcontext, dmixed, means = empty(rows, dim), empty(rows, dim), empty(rows, across, 2)
    launch(
        context_bwd_kernel, blocks(rows, 16) * across,
        sums, whole, spread, context, weights.query, weights.key, value_sums, weights.value_bias, dcontext, dmixed, means, rows, along, dim,
        BLOCK_M=16, BLOCK_N=_COLUMNS, BLOCK_K=32, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    tiles = choose("mixed_bwd", input_tile, input_candidates)
    programs, phases = programs_of(walk, tiles["BLOCK_T"])
    of_tiles = empty(images * programs, 2, dim)
    launch(
        mixed_bwd_kernel, images * programs,
        dy, x, moments, dvalue, weights.value, weights.query, mixed.scores, whole, dmixed, logarithm, means, dx, of_tiles, *map_, across,
        c1 + c2, PHASES=phases, **tiles, **of_map,
    )  # fmt: skip

    of_phases, of_tiles = sums.sum(0), of_tiles.sum(0)
    down = blocks(dim, _SQUARE)
    dqkv_w, dqkv_b, dout_w, of_norm = empty(1 + 2 * dim, dim), empty(1 + 2 * dim), empty(dim, dim), empty(2 * down, 2, dim)
    launch(
        weights_bwd_kernel, 3 * down**2,
        parts, dcontext, whole, of_phases, of_tiles, norm_w, norm_b, qkv_w, dqkv_w, dqkv_b, dout_w, of_norm, splits, rows, dim,
        BLOCK_C=_SQUARE, BLOCK_R=_SQUARE, BLOCK_S=8, BLOCK_K=32, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    # Each result has memory of its own.
    return Gradients(of_norm[:, 0].sum(0), of_norm[:, 1].sum(0), dqkv_w, dqkv_b, dout_w, of_tiles[1].clone())


_COLUMNS = 32  # of dmixed
_SQUARE = 16  # of gradients of weights


def _splits(tiles: int, programs: int, x: Tensor) -> tuple[int, int]:
    """(splits, tiles of each), as many as keep the GPU busy with so many programs for each of them."""
    share = blocks(tiles, max(processors(x) // programs, 1))
    return blocks(tiles, share), share


Of = Callable[[Tensor, Phases], Any]


def _choose(x: Tensor, walk: Phases, kernel: str, guess: Of, others: Of) -> tuning.Tile:
    sizes = x.shape[0] * walk.groups, walk.length, x.shape[1]
    return tuning.choose(kernel, x, sizes, guess(x, walk), functools.partial(others, x, walk))


def tile(x: Tensor, walk: Phases) -> tuning.Tile:
    """Both gradients of weights beside the values, where their sums fit into registers. Tiles are as large as eight warps take, so there
    must be pixels enough."""
    few = walk.groups * walk.length <= 64 or x.shape[0] * programs_of(walk, 128)[0] < processors(x)
    return tuning.IN_TWO if few or not _fits(x) else _tile(128, 64, 8, 1)


def _fits(x: Tensor) -> bool:
    """Of 64 or 128 channels, on tensor cores that read what they multiply from shared memory."""
    return x.dtype != torch.float32 and by_warpgroups(x) and widths(x.shape[1]) in ((64, 0), (128, 0))


def candidates(x: Tensor, walk: Phases) -> list[tuning.Tile]:
    found = ((128, 64, 8, 1), (128, 32, 8, 1), (64, 32, 8, 1)) if _fits(x) else ()
    return [tuning.IN_TWO, *_small(x, found)] if found else []


def gated_tile(x: Tensor, walk: Phases) -> tuning.Tile:
    if x.dtype == torch.float32:  # on no tensor cores
        return _tile(_pixels(x, walk, 32), 32, 4, 1, BLOCK_K=16)
    most = 128 if by_warpgroups(x) else 64
    block_t = _pixels(x, walk, most)
    return _tile(block_t, 64, 8 if block_t == most else 4, 3, BLOCK_K=64)


def gated_candidates(x: Tensor, walk: Phases) -> list[tuning.Tile]:
    found = (16, 64, 4, 3), (32, 32, 4, 3), (32, 64, 4, 3), (64, 32, 4, 3), (64, 64, 8, 3), (128, 64, 8, 2)
    return _small(x, found, BLOCK_K=64)


def maps_tile(x: Tensor, walk: Phases) -> tuning.Tile:
    pixels = x.shape[2] * x.shape[3]
    if x.dtype == torch.float32:
        return _tile(power_of_two(pixels, 16, 32), 32, 4, 1, BLOCK_C=32)
    most = power_of_two(x.shape[1], 16, 128)
    return _tile(power_of_two(pixels, 16, 64), most, 8 if most == 128 else 4, 3, BLOCK_C=most)


def maps_candidates(x: Tensor, walk: Phases) -> list[tuning.Tile]:
    widest = power_of_two(x.shape[1], 16, 128)
    found = (32, 64, 4, 3), (32, 128, 8, 3), (64, 32, 4, 3), (64, 64, 4, 3), (64, 128, 8, 2), (128, 64, 4, 2), (128, 128, 8, 2)
    return [each | {"BLOCK_C": each["BLOCK_V"]} for each in _small(x, found) if each["BLOCK_V"] <= widest]


def input_tile(x: Tensor, walk: Phases) -> tuning.Tile:
    if x.dtype == torch.float32:
        return _tile(_pixels(x, walk, 32), 32, 4, 1, BLOCK_K=16)
    block_t = _pixels(x, walk, 64)
    if block_t == 64 and by_warpgroups(x) and x.shape[0] * programs_of(walk, block_t)[0] > processors(x):
        return _tile(block_t, 32, 4, 3, BLOCK_K=64, **registers_of(4, 3))  # eight warps would be the only block of a multiprocessor
    return _tile(block_t, 64 if block_t == 64 else 32, 8 if block_t == 64 else 4, 3, BLOCK_K=64)


def input_candidates(x: Tensor, walk: Phases) -> list[tuning.Tile]:
    found = (16, 32, 4, 3), (32, 32, 4, 3), (32, 64, 4, 3), (64, 32, 4, 3), (64, 64, 8, 2), (64, 64, 8, 3), (128, 32, 8, 3)
    return [*_small(x, found, BLOCK_K=64), *_small(x, [(64, 32, 8, 3)], BLOCK_K=64, **registers_of(8, 2))]


def _small(x: Tensor, found: Sequence[tuple[int, ...]], **more: int) -> list[tuning.Tile]:
    """Tiles that are not much larger than an image."""
    return [] if x.dtype == torch.float32 else [_tile(*each, **more) for each in found if each[0] < 2 * x.shape[2] * x.shape[3]]


def _pixels(x: Tensor, walk: Phases, most: int) -> int:
    """Of a tile: fewer of small images, or where there would not be a tile for each processor."""
    while most > 16 and (x.shape[0] * programs_of(walk, most)[0] < processors(x) or most >= 2 * walk.groups * walk.length):
        most //= 2
    return most


def _tile(block_t: int, block_v: int, warps: int, stages: int, **more: int) -> tuning.Tile:
    return {"BLOCK_T": block_t, "BLOCK_V": block_v, "num_warps": warps, "num_stages": stages, **more}
