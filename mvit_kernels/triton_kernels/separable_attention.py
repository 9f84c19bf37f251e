"""Separable self-attention, y = relu(v) * sum_n softmax_n(q) k, on maps of any strides: no unfolded copy, no scores in memory.

A program has a group of pixels (see phases.py) and a block of channels. It reads q twice, of which there is one channel; k and v once, and
writes y once. Scores are divided by their sum before they meet k, so that large keys do not overflow on the way.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from . import tuning
from .launch import anew, blocks, far, launch, power_of_two, wait_turn
from .phases import Phases, group_start, phases_of, pixel_offsets

Tensor = torch.Tensor


@triton.jit
def _softmax_of_queries(
    q, length, columns, row_step, column_step,
    JOINT: tl.constexpr, VECTOR: tl.constexpr, FAR: tl.constexpr, SHIFT: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """(JOINT,) each: the largest query of every phase, and the inverse of the sum of exp(q - largest). Every place of a tile has its own
    over the turns of the loop, so that they meet once and not for every tile."""
    largest = tl.full((BLOCK_T // JOINT, JOINT), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T // JOINT, JOINT), tl.float32)
    for begin in range(0, length, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        at = pixel_offsets(t, columns, row_step, column_step, VECTOR, FAR, SHIFT)
        query = tl.load(q + at, mask=t < length, other=float("-inf")).to(tl.float32)
        query = tl.reshape(query, (BLOCK_T // JOINT, JOINT))
        now = tl.maximum(largest, query)
        finite = tl.where(now == float("-inf"), 0.0, now)
        total = total * tl.exp(largest - finite) + tl.exp(query - finite)
        largest = now
    most = tl.max(largest, 0)
    finite = tl.where(most == float("-inf"), 0.0, most)
    return finite, 1.0 / tl.sum(total * tl.exp(largest - finite[None, :]), 0)


@triton.jit
def _scores(
    q, t, at, length, largest, inverse, JOINT: tl.constexpr, BLOCK_T: tl.constexpr
):  # fmt: skip
    """(BLOCK_T / JOINT, JOINT): the softmax of pixels t; 0 beyond the last."""
    query = tl.load(q + at, mask=t < length, other=float("-inf")).to(tl.float32)
    query = tl.reshape(query, (BLOCK_T // JOINT, JOINT))
    inside = tl.reshape(t, (BLOCK_T // JOINT, JOINT)) < length
    return tl.where(inside, tl.exp(query - largest[None, :]) * inverse[None, :], 0.0)


@triton.jit
def separable_attention_fwd_kernel(
    qkv, y, dim, groups, across, length, columns,
    qkv_image, qkv_channel, qkv_row, qkv_column, qkv_row_step, qkv_column_step,
    y_image, y_channel, y_row, y_column, y_row_step, y_column_step,
    JOINT: tl.constexpr, VECTOR: tl.constexpr, FAR: tl.constexpr, SHIFT: tl.constexpr, NARROW: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """NARROW: a pixel of qkv has channels side by side, 1 + 2 d of them, so that only single numbers are aligned. Threads that could store
    eight channels of y would load eight one after the other, far from those of their neighbours; so y looks no better aligned."""
    wait_turn()
    per_group = tl.cdiv(dim, BLOCK_C)
    program = tl.program_id(0)
    group, image = (program // per_group) % groups, (program // per_group) // groups
    q = qkv + image.to(tl.int64) * qkv_image + group_start(group, across, qkv_row, qkv_column)
    y += image.to(tl.int64) * y_image + group_start(group, across, y_row, y_column)
    c = (program % per_group) * BLOCK_C + tl.arange(0, BLOCK_C)
    wide = c.to(tl.int64) if FAR else c
    k = q + qkv_channel + wide[None, :] * qkv_channel
    v = k + tl.cast(dim, tl.int64) * qkv_channel
    if NARROW:
        y_column_step = anew(y_column_step)

    largest, inverse = _softmax_of_queries(
        q, length, columns, qkv_row_step, qkv_column_step, JOINT, VECTOR, FAR, SHIFT, BLOCK_T
    )  # fmt: skip
    sums = tl.zeros((BLOCK_T // JOINT, JOINT, BLOCK_C), tl.float32)  # which meet once, and not for every tile
    for begin in range(0, length, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        at = pixel_offsets(t, columns, qkv_row_step, qkv_column_step, VECTOR, FAR, SHIFT)
        scores = _scores(q, t, at, length, largest, inverse, JOINT, BLOCK_T)
        inside = (t < length)[:, None] & (c < dim)[None, :]
        key = tl.load(k + at[:, None], mask=inside, other=0.0).to(tl.float32)
        sums += scores[:, :, None] * tl.reshape(key, (BLOCK_T // JOINT, JOINT, BLOCK_C))
    context = tl.sum(sums, 0)

    for begin in range(0, length, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        at = pixel_offsets(t, columns, qkv_row_step, qkv_column_step, VECTOR, FAR, SHIFT)
        inside = (t < length)[:, None] & (c < dim)[None, :]
        value = tl.load(v + at[:, None], mask=inside, other=0.0).to(tl.float32)
        positive = tl.reshape(tl.where(value < 0, 0.0, value), (BLOCK_T // JOINT, JOINT, BLOCK_C))
        result = tl.reshape(positive * context[None, :, :], (BLOCK_T, BLOCK_C))
        y_at = pixel_offsets(t, columns, y_row_step, y_column_step, VECTOR, FAR, SHIFT)
        tl.store(y + y_at[:, None] + wide[None, :] * y_channel, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def separable_attention_bwd_kernel(
    qkv, dy, dqkv, partial, dim, groups, across, length, columns,
    qkv_image, qkv_channel, qkv_row, qkv_column, qkv_row_step, qkv_column_step,
    dy_image, dy_channel, dy_row, dy_column, dy_row_step, dy_column_step,
    dqkv_image, dqkv_channel, dqkv_row, dqkv_column, dqkv_row_step, dqkv_column_step,
    JOINT: tl.constexpr, VECTOR: tl.constexpr, FAR: tl.constexpr, SHIFT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dv = dy context where v > 0;  dk = s dcontext with dcontext = sum_n dy relu(v);  and this block's part of ds = sum_c dcontext k, to
    `partial` (B, groups, blocks of channels, length), from which the next kernel has dq = s (ds - sum_n s ds)."""
    wait_turn()
    per_group = tl.cdiv(dim, BLOCK_C)
    program = tl.program_id(0)
    group, image = (program // per_group) % groups, (program // per_group) // groups
    q = qkv + image.to(tl.int64) * qkv_image + group_start(group, across, qkv_row, qkv_column)
    dy += image.to(tl.int64) * dy_image + group_start(group, across, dy_row, dy_column)
    dqkv += image.to(tl.int64) * dqkv_image + group_start(group, across, dqkv_row, dqkv_column)
    partial += program.to(tl.int64) * length
    c = (program % per_group) * BLOCK_C + tl.arange(0, BLOCK_C)
    wide = c.to(tl.int64) if FAR else c
    k = q + qkv_channel + wide[None, :] * qkv_channel
    v = k + tl.cast(dim, tl.int64) * qkv_channel
    dk = dqkv + dqkv_channel + wide[None, :] * dqkv_channel
    dv = dk + tl.cast(dim, tl.int64) * dqkv_channel

    largest, inverse = _softmax_of_queries(
        q, length, columns, qkv_row_step, qkv_column_step, JOINT, VECTOR, FAR, SHIFT, BLOCK_T
    )  # fmt: skip
    sums = tl.zeros((BLOCK_T // JOINT, JOINT, BLOCK_C), tl.float32)
    dsums = tl.zeros((BLOCK_T // JOINT, JOINT, BLOCK_C), tl.float32)
    for begin in range(0, length, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        at = pixel_offsets(t, columns, qkv_row_step, qkv_column_step, VECTOR, FAR, SHIFT)
        dy_at = pixel_offsets(t, columns, dy_row_step, dy_column_step, VECTOR, FAR, SHIFT)
        scores = _scores(q, t, at, length, largest, inverse, JOINT, BLOCK_T)
        inside = (t < length)[:, None] & (c < dim)[None, :]
        key = tl.load(k + at[:, None], mask=inside, other=0.0).to(tl.float32)
        value = tl.load(v + at[:, None], mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(dy + dy_at[:, None] + wide[None, :] * dy_channel, mask=inside, other=0.0).to(tl.float32)
        sums += scores[:, :, None] * tl.reshape(key, (BLOCK_T // JOINT, JOINT, BLOCK_C))
        product = grad * tl.where(value < 0, 0.0, value)
        dsums += tl.reshape(product, (BLOCK_T // JOINT, JOINT, BLOCK_C))
    context, dcontext = tl.sum(sums, 0), tl.sum(dsums, 0)

    for begin in range(0, length, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        at = pixel_offsets(t, columns, qkv_row_step, qkv_column_step, VECTOR, FAR, SHIFT)
        dy_at = pixel_offsets(t, columns, dy_row_step, dy_column_step, VECTOR, FAR, SHIFT)
        to = pixel_offsets(t, columns, dqkv_row_step, dqkv_column_step, VECTOR, FAR, SHIFT)
        scores = _scores(q, t, at, length, largest, inverse, JOINT, BLOCK_T)
        inside = (t < length)[:, None] & (c < dim)[None, :]
        key = tl.load(k + at[:, None], mask=inside, other=0.0).to(tl.float32)
        value = tl.load(v + at[:, None], mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(dy + dy_at[:, None] + wide[None, :] * dy_channel, mask=inside, other=0.0).to(tl.float32)
        dvalue = tl.reshape(grad, (BLOCK_T // JOINT, JOINT, BLOCK_C)) * context[None, :, :]
        dvalue = tl.where(value <= 0, 0.0, tl.reshape(dvalue, (BLOCK_T, BLOCK_C)))
        dkey = tl.reshape(scores[:, :, None] * dcontext[None, :, :], (BLOCK_T, BLOCK_C))
        tl.store(dv + to[:, None], dvalue.to(dqkv.dtype.element_ty), mask=inside)
        tl.store(dk + to[:, None], dkey.to(dqkv.dtype.element_ty), mask=inside)
        dscores = tl.sum(dcontext[None, :, :] * tl.reshape(key, (BLOCK_T // JOINT, JOINT, BLOCK_C)), 2)
        tl.store(partial + t, tl.reshape(dscores, (BLOCK_T,)), mask=t < length)


@triton.jit
def _sum_of_parts(partial, parts, length, t, BLOCK_T: tl.constexpr):
    total = tl.zeros((BLOCK_T,), tl.float32)
    for part in range(0, parts):
        total += tl.load(partial + tl.cast(part, tl.int64) * length + t, mask=t < length, other=0.0)
    return total


@triton.jit
def separable_attention_bwd_query_kernel(
    qkv, partial, dqkv, parts, groups, across, length, columns,
    qkv_image, qkv_row, qkv_column, qkv_row_step, qkv_column_step,
    dqkv_image, dqkv_row, dqkv_column, dqkv_row_step, dqkv_column_step,
    JOINT: tl.constexpr, VECTOR: tl.constexpr, FAR: tl.constexpr, SHIFT: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """dq = s (ds - sum_n s ds) of a group; parts of ds are added in their order, so results do not depend on how programs run."""
    wait_turn()
    program = tl.program_id(0)
    group, image = program % groups, program // groups
    q = qkv + image.to(tl.int64) * qkv_image + group_start(group, across, qkv_row, qkv_column)
    dqkv += image.to(tl.int64) * dqkv_image + group_start(group, across, dqkv_row, dqkv_column)
    partial += program.to(tl.int64) * parts * length
    largest, inverse = _softmax_of_queries(
        q, length, columns, qkv_row_step, qkv_column_step, JOINT, VECTOR, FAR, SHIFT, BLOCK_T
    )  # fmt: skip
    mean = tl.zeros((JOINT,), tl.float32)
    for begin in range(0, length, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        at = pixel_offsets(t, columns, qkv_row_step, qkv_column_step, VECTOR, FAR, SHIFT)
        scores = _scores(q, t, at, length, largest, inverse, JOINT, BLOCK_T)
        dscores = _sum_of_parts(partial, parts, length, t, BLOCK_T)
        mean += tl.sum(scores * tl.reshape(dscores, (BLOCK_T // JOINT, JOINT)), 0)
    for begin in range(0, length, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        at = pixel_offsets(t, columns, qkv_row_step, qkv_column_step, VECTOR, FAR, SHIFT)
        to = pixel_offsets(t, columns, dqkv_row_step, dqkv_column_step, VECTOR, FAR, SHIFT)
        scores = _scores(q, t, at, length, largest, inverse, JOINT, BLOCK_T)
        dscores = tl.reshape(_sum_of_parts(partial, parts, length, t, BLOCK_T), (BLOCK_T // JOINT, JOINT))
        dquery = tl.reshape(scores * (dscores - mean[None, :]), (BLOCK_T,))
        tl.store(dqkv + to, dquery.to(dqkv.dtype.element_ty), mask=t < length)


# --- what launches them ---


def forward(qkv: Tensor, y: Tensor, patch: tuple[int, int] | None) -> None:
    """y (B, d, H, W) of qkv (B, 1 + 2d, H, W)."""
    dim, walk = y.shape[1], phases_of(qkv, patch, y)
    if y.numel() == 0:
        return
    channels_last, is_far = qkv.stride(1) == 1, far(qkv, y)
    tiles = _tile(walk, dim, channels_last, 2048, 64) if channels_last else _tile(walk, dim, channels_last)
    narrow = channels_last and not is_far and 1 < walk.steps(y)[3] < 2**31
    launch(
        separable_attention_fwd_kernel, y.shape[0] * walk.groups * blocks(dim, tiles["BLOCK_C"]),
        qkv, y, dim, walk.groups, walk.across, walk.length, walk.columns, *qkv.stride()[:2], *walk.steps(qkv), *y.stride()[:2],
        *walk.steps(y), JOINT=walk.joint, VECTOR=walk.vector, FAR=is_far, SHIFT=walk.shift, NARROW=narrow, enable_fp_fusion=True, **tiles,
    )  # fmt: skip


def backward(dy: Tensor, qkv: Tensor, dqkv: Tensor, patch: tuple[int, int] | None) -> None:
    """dqkv, of the size of qkv; dy (B, d, H, W)."""
    dim, walk = dy.shape[1], phases_of(qkv, patch, dy, dqkv)
    if qkv.numel() == 0:
        return
    channels_last = qkv.stride(1) == 1
    sizes = qkv.shape[0] * walk.groups, walk.length, walk.joint, dim, "nhwc" if channels_last else "nchw"
    others = functools.partial(_candidates, walk, dim, channels_last)
    tiles = tuning.choose("separable_attention_bwd", qkv, sizes, _tile(walk, dim, channels_last, 2048), others)
    parts, groups = blocks(dim, tiles["BLOCK_C"]), qkv.shape[0] * walk.groups
    partial = qkv.new_empty(groups * parts * walk.length, dtype=torch.float32)
    settings = {"JOINT": walk.joint, "VECTOR": walk.vector, "FAR": far(qkv, dy, dqkv), "SHIFT": walk.shift, "enable_fp_fusion": True}
    launch(
        separable_attention_bwd_kernel, groups * parts,
        qkv, dy, dqkv, partial, dim, walk.groups, walk.across, walk.length, walk.columns, *qkv.stride()[:2], *walk.steps(qkv),
        *dy.stride()[:2], *walk.steps(dy), *dqkv.stride()[:2], *walk.steps(dqkv), **tiles, **settings,
    )  # fmt: skip
    launch(
        separable_attention_bwd_query_kernel, groups,
        qkv, partial, dqkv, parts, walk.groups, walk.across, walk.length, walk.columns, qkv.stride(0), *walk.steps(qkv), dqkv.stride(0),
        *walk.steps(dqkv), BLOCK_T=tiles["BLOCK_T"], num_warps=2, **settings,
    )  # fmt: skip


def _tile(walk: Phases, dim: int, channels_last: bool, elements: int = 4096, widest: int = 128) -> tuning.Tile:
    """32 elements a thread, 16 in the backward and where channels are side by side, longest where memory is contiguous."""
    longest = power_of_two(dim, 16, widest if channels_last else 32)
    block_t = power_of_two(walk.length, max(16, walk.joint), elements // longest)
    return {"BLOCK_T": block_t, "BLOCK_C": min(power_of_two(dim, 16), elements // block_t), "num_warps": 4}


def _candidates(walk: Phases, dim: int, channels_last: bool) -> list[tuning.Tile]:
    """Of the backward: of few images tiles of few channels, which are programs of their own."""
    found: tuple[tuple[int, int, int], ...]
    if channels_last:
        found = (16, 128, 2), (32, 32, 2), (32, 64, 4), (32, 128, 8), (64, 16, 2), (64, 32, 4), (64, 64, 8), (128, 16, 4)
    else:
        found = (32, 32, 4), (64, 16, 2), (64, 16, 4), (128, 16, 4), (128, 32, 8)
    longest, widest = power_of_two(walk.length, max(16, walk.joint)), power_of_two(dim, 16)
    return [{"BLOCK_T": t, "BLOCK_C": c, "num_warps": warps} for t, c, warps in found if t <= longest and c <= widest]
