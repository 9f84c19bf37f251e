"""Softmax attention inside pixel phases, forward and backward, on maps of any strides: no unfolded copy, no scores in memory.

A program has a head of a phase and a block of its queries (of its keys, in the second half of the backward), and walks the others in
blocks: attention with a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135). Heads of 16
to 60 channels are padded to a power of two in registers; their number comes divided by VECTOR (`vector_of`). Products are those of tensor
cores for 16-bit floats, and exact float32 ones for float32."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import tuning
from .launch import blocks, by_warpgroups, far, launch, power_of_two, vector_of, wait_turn
from .phases import phase_pixels, shift_of
from .products import dot

Tensor = torch.Tensor
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _pixels(x, n, length, columns, ph, pw, row, column, channel, c, head_dim, FAR: tl.constexpr, SHIFT: tl.constexpr):
    """(addresses, inside) of the channels c of positions n of a phase, where x is its first pixel."""
    wide_c = c.to(tl.int64) if FAR else c
    at = phase_pixels(n, columns, ph, pw, row, column, FAR, SHIFT)
    return x + at[:, None] + wide_c[None, :] * channel, (n < length)[:, None] & (c < head_dim)[None, :]


@triton.jit
def _place(program, heads, ph, pw):
    """(head, first row, first column, image) that the programs of a head of a phase work on."""
    phase = program // heads % (ph * pw)
    image = program // heads // (ph * pw)
    return program % heads, (phase // pw).to(tl.int64), (phase % pw).to(tl.int64), image.to(tl.int64)


@triton.jit
def _start(x, head, row, column, image, head_dim, x_image, x_channel, x_row, x_column):
    """The first pixel of a phase, at the first channel of a head."""
    return x + image * x_image + row * x_row + column * x_column + tl.cast(head * head_dim, tl.int64) * x_channel


@triton.jit
def _scores(query, keys, n, length, factor):
    """log2 of the unnormalised weights of keys n; -inf beyond the last."""
    scores = dot(query, tl.trans(keys), None) * factor
    return tl.where((n < length)[None, :], scores, float("-inf"))


@triton.jit
def patch_attention_fwd_kernel(
    qkv, y, heads, head_dim, length, columns, ph, pw, scale,
    qkv_image, qkv_channel, qkv_row, qkv_column, y_image, y_channel, y_row, y_column,
    FAR: tl.constexpr, SHIFT: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    wait_turn()
    head_dim = head_dim * VECTOR
    per_head = tl.cdiv(length, BLOCK_M)
    program = tl.program_id(0)
    m = (program % per_head) * BLOCK_M + tl.arange(0, BLOCK_M)
    head, row, column, image = _place(program // per_head, heads, ph, pw)
    qkv = _start(qkv, head, row, column, image, head_dim, qkv_image, qkv_channel, qkv_row, qkv_column)
    y = _start(y, head, row, column, image, head_dim, y_image, y_channel, y_row, y_column)
    c = tl.arange(0, BLOCK_D)
    part = tl.cast(heads * head_dim, tl.int64) * qkv_channel

    at, inside = _pixels(qkv, m, length, columns, ph, pw, qkv_row, qkv_column, qkv_channel, c, head_dim, FAR, SHIFT)
    query = tl.load(at, mask=inside, other=0.0)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    result = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for begin in range(0, length, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        keys_at, known = _pixels(qkv, n, length, columns, ph, pw, qkv_row, qkv_column, qkv_channel, c, head_dim, FAR, SHIFT)
        keys = tl.load(keys_at + part, mask=known, other=0.0)
        values = tl.load(keys_at + 2 * part, mask=known, other=0.0)
        scores = _scores(query, keys, n, length, scale * LOG2E)
        now = tl.maximum(largest, tl.max(scores, 1))
        finite = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(largest - finite)
        total = total * shrink + tl.sum(weights, 1)
        result = dot(weights.to(values.dtype), values, result * shrink[:, None])
        largest = now
    result = result / total[:, None]
    at, inside = _pixels(y, m, length, columns, ph, pw, y_row, y_column, y_channel, c, head_dim, FAR, SHIFT)
    tl.store(at, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def patch_attention_bwd_query_kernel(
    qkv, dy, dqkv, statistics, heads, head_dim, length, columns, ph, pw, scale,
    qkv_image, qkv_channel, qkv_row, qkv_column, dy_image, dy_channel, dy_row, dy_column, dqkv_image, dqkv_channel, dqkv_row, dqkv_column,
    FAR: tl.constexpr, SHIFT: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq = scale ds k with ds = p (dy v^T - sum_m p dy v^T); and of each query log2 of its sum and sum_m p dy v^T = dy . y, to
    `statistics` (heads of all phases and images, 2, length)."""
    wait_turn()
    head_dim = head_dim * VECTOR
    per_head = tl.cdiv(length, BLOCK_M)
    program = tl.program_id(0)
    m = (program % per_head) * BLOCK_M + tl.arange(0, BLOCK_M)
    head, row, column, image = _place(program // per_head, heads, ph, pw)
    qkv = _start(qkv, head, row, column, image, head_dim, qkv_image, qkv_channel, qkv_row, qkv_column)
    dy = _start(dy, head, row, column, image, head_dim, dy_image, dy_channel, dy_row, dy_column)
    dqkv = _start(dqkv, head, row, column, image, head_dim, dqkv_image, dqkv_channel, dqkv_row, dqkv_column)
    statistics += (program // per_head).to(tl.int64) * 2 * length
    c = tl.arange(0, BLOCK_D)
    part = tl.cast(heads * head_dim, tl.int64) * qkv_channel

    at, inside = _pixels(qkv, m, length, columns, ph, pw, qkv_row, qkv_column, qkv_channel, c, head_dim, FAR, SHIFT)
    query = tl.load(at, mask=inside, other=0.0)
    at, inside = _pixels(dy, m, length, columns, ph, pw, dy_row, dy_column, dy_channel, c, head_dim, FAR, SHIFT)
    grad = tl.load(at, mask=inside, other=0.0)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    along = tl.zeros((BLOCK_M,), tl.float32)
    for begin in range(0, length, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        at, inside = _pixels(qkv, n, length, columns, ph, pw, qkv_row, qkv_column, qkv_channel, c, head_dim, FAR, SHIFT)
        keys = tl.load(at + part, mask=inside, other=0.0)
        values = tl.load(at + 2 * part, mask=inside, other=0.0)
        scores = _scores(query, keys, n, length, scale * LOG2E)
        now = tl.maximum(largest, tl.max(scores, 1))
        finite = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(largest - finite)
        dweights = dot(grad, tl.trans(values), None)
        total = total * shrink + tl.sum(weights, 1)
        along = along * shrink + tl.sum(weights * dweights, 1)
        largest = now
    along = along / total
    logarithm = largest + tl.log2(total)
    dquery = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for begin in range(0, length, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        at, inside = _pixels(qkv, n, length, columns, ph, pw, qkv_row, qkv_column, qkv_channel, c, head_dim, FAR, SHIFT)
        keys = tl.load(at + part, mask=inside, other=0.0)
        values = tl.load(at + 2 * part, mask=inside, other=0.0)
        weights = tl.exp2(_scores(query, keys, n, length, scale * LOG2E) - logarithm[:, None])
        dscores = weights * (dot(grad, tl.trans(values), None) - along[:, None]) * scale
        dquery = dot(dscores.to(keys.dtype), keys, dquery)
    at, inside = _pixels(dqkv, m, length, columns, ph, pw, dqkv_row, dqkv_column, dqkv_channel, c, head_dim, FAR, SHIFT)
    tl.store(at, dquery.to(dqkv.dtype.element_ty), mask=inside)
    tl.store(statistics + m, logarithm, mask=m < length)
    tl.store(statistics + length + m, along, mask=m < length)


@triton.jit
def patch_attention_bwd_key_kernel(
    qkv, dy, dqkv, statistics, heads, head_dim, length, columns, ph, pw, scale,
    qkv_image, qkv_channel, qkv_row, qkv_column, dy_image, dy_channel, dy_row, dy_column, dqkv_image, dqkv_channel, dqkv_row, dqkv_column,
    FAR: tl.constexpr, SHIFT: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dk = scale ds^T q and dv = p^T dy of a block of keys, from the statistics of all queries."""
    wait_turn()
    head_dim = head_dim * VECTOR
    per_head = tl.cdiv(length, BLOCK_N)
    program = tl.program_id(0)
    n = (program % per_head) * BLOCK_N + tl.arange(0, BLOCK_N)
    head, row, column, image = _place(program // per_head, heads, ph, pw)
    qkv = _start(qkv, head, row, column, image, head_dim, qkv_image, qkv_channel, qkv_row, qkv_column)
    dy = _start(dy, head, row, column, image, head_dim, dy_image, dy_channel, dy_row, dy_column)
    dqkv = _start(dqkv, head, row, column, image, head_dim, dqkv_image, dqkv_channel, dqkv_row, dqkv_column)
    statistics += (program // per_head).to(tl.int64) * 2 * length
    c = tl.arange(0, BLOCK_D)
    part = tl.cast(heads * head_dim, tl.int64) * qkv_channel
    dpart = tl.cast(heads * head_dim, tl.int64) * dqkv_channel

    at, inside = _pixels(qkv, n, length, columns, ph, pw, qkv_row, qkv_column, qkv_channel, c, head_dim, FAR, SHIFT)
    keys = tl.load(at + part, mask=inside, other=0.0)
    values = tl.load(at + 2 * part, mask=inside, other=0.0)
    dkeys = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dvalues = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for begin in range(0, length, BLOCK_M):
        m = begin + tl.arange(0, BLOCK_M)
        at, inside = _pixels(qkv, m, length, columns, ph, pw, qkv_row, qkv_column, qkv_channel, c, head_dim, FAR, SHIFT)
        query = tl.load(at, mask=inside, other=0.0)
        at, inside = _pixels(dy, m, length, columns, ph, pw, dy_row, dy_column, dy_channel, c, head_dim, FAR, SHIFT)
        grad = tl.load(at, mask=inside, other=0.0)
        logarithm = tl.load(statistics + m, mask=m < length, other=float("inf"))  # weights beyond the last query are 0
        along = tl.load(statistics + length + m, mask=m < length, other=0.0)
        weights = tl.exp2(_scores(query, keys, n, length, scale * LOG2E) - logarithm[:, None])
        dvalues = dot(tl.trans(weights.to(grad.dtype)), grad, dvalues)
        dscores = weights * (dot(grad, tl.trans(values), None) - along[:, None]) * scale
        dkeys = dot(tl.trans(dscores.to(query.dtype)), query, dkeys)
    at, inside = _pixels(dqkv, n, length, columns, ph, pw, dqkv_row, dqkv_column, dqkv_channel, c, head_dim, FAR, SHIFT)
    tl.store(at + dpart, dkeys.to(dqkv.dtype.element_ty), mask=inside)
    tl.store(at + 2 * dpart, dvalues.to(dqkv.dtype.element_ty), mask=inside)


# --- what launches them ---


def forward(qkv: Tensor, heads: int, patch: tuple[int, int], scale: float, y: Tensor) -> None:
    """y (B, d, H, W) of qkv (B, 3d, H, W)."""
    if y.numel() == 0:
        return
    programs, sizes, settings = _sizes(y, heads, patch, most=64)
    _, head_dim, length, _ = sizes
    guess = _guess(length, y, settings)
    of_call = programs, length, head_dim * settings["VECTOR"]
    settings |= tuning.choose("patch_attention", y, of_call, guess, functools.partial(_candidates, length, y.dtype))
    launch(
        patch_attention_fwd_kernel, programs * blocks(sizes[2], settings["BLOCK_M"]),
        qkv, y, *sizes, *patch, scale, *qkv.stride(), *y.stride(), FAR=far(qkv, y), **settings,
    )  # fmt: skip


def backward(dy: Tensor, qkv: Tensor, heads: int, patch: tuple[int, int], scale: float, dqkv: Tensor) -> None:
    """dqkv, of the size of qkv; dy (B, d, H, W)."""
    if dy.numel() == 0:
        return
    programs, sizes, settings = _sizes(dy, heads, patch, most=32)
    length = sizes[2]
    statistics = qkv.new_empty(programs, 2, length, dtype=torch.float32)
    arguments = (qkv, dy, dqkv, statistics, *sizes, *patch, scale, *qkv.stride(), *dy.stride(), *dqkv.stride())
    guess = {"BLOCK_M": settings["BLOCK_M"], "BLOCK_N": settings["BLOCK_N"], "num_warps": 4, "num_stages": 1}
    settings |= {"FAR": far(qkv, dy, dqkv)}
    found = functools.partial(_backward_candidates, length, settings["BLOCK_D"], dy.dtype)
    of_call = programs, length, dy.shape[1] // heads
    of_query = settings | tuning.choose("patch_attention_bwd_query", dy, of_call, guess, found)
    launch(patch_attention_bwd_query_kernel, programs * blocks(length, of_query["BLOCK_M"]), *arguments, **of_query)
    of_key = settings | tuning.choose("patch_attention_bwd_key", dy, of_call, guess, found)
    launch(patch_attention_bwd_key_kernel, programs * blocks(length, of_key["BLOCK_N"]), *arguments, **of_key)


def _sizes(y: Tensor, heads: int, patch: tuple[int, int], most: int) -> tuple[int, tuple[int, int, int, int], dict]:
    """(heads of all phases and images; heads, channels of a head, positions of a phase, their columns; tiles)."""
    batch, dim, height, width = y.shape
    head_dim, columns = dim // heads, width // patch[1]
    length = height // patch[0] * columns
    block_d = power_of_two(head_dim, 16)
    vector = vector_of(head_dim)
    small = block_d > 64 or y.dtype == torch.float32  # whose products have no tensor cores, and need registers
    block = power_of_two(length, 16, most // 2 if small else most)
    settings = {
        "VECTOR": vector, "SHIFT": shift_of(columns), "BLOCK_M": block, "BLOCK_N": block, "BLOCK_D": block_d,
        "num_warps": 8 if y.dtype == torch.float32 else 4, "num_stages": 2, "enable_fp_fusion": True,
    }  # fmt: skip
    return batch * patch[0] * patch[1] * heads, (heads, head_dim // vector, length, columns), settings


def _guess(length: int, y: Tensor, settings: dict) -> tuning.Tile:
    """Of the forward. On sm_90 four warps have 64 queries, or as many as there are for 16 each; the next keys are not on their way while
    these are multiplied, for which more programs fit beside each other."""
    guess = {name: settings[name] for name in ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")}
    if y.dtype == torch.float32 or not by_warpgroups(y):
        return guess
    block_m = 128 if length >= 128 and settings["BLOCK_M"] == 64 else settings["BLOCK_M"]
    return guess | {"BLOCK_M": block_m, "num_warps": block_m // 16, "num_stages": 1}


def _candidates(length: int, dtype: torch.dtype) -> list[tuning.Tile]:
    """Of the forward."""
    if dtype == torch.float32:
        return []
    tiles = (16, 64, 4, 2), (32, 64, 4, 2), (64, 32, 4, 3), (64, 64, 4, 3), (64, 64, 8, 2), (64, 64, 4, 1), (64, 128, 4, 2), (128, 64, 8, 1)
    return _tiles(length, tiles)


def _backward_candidates(length: int, block_d: int, dtype: torch.dtype) -> list[tuning.Tile]:
    """Of either kernel, which walks as many pixels at once as it keeps."""
    if dtype == torch.float32 or block_d > 64:
        return []
    return _tiles(length, ((16, 16, 2, 1), (16, 16, 4, 1), (32, 32, 2, 1), (32, 32, 4, 2), (32, 32, 8, 1), (64, 64, 4, 1), (64, 64, 8, 1)))


def _tiles(length: int, tiles: Sequence[tuple[int, int, int, int]]) -> list[tuning.Tile]:
    return [
        {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}
        for m, n, warps, stages in tiles
        if max(m, n) <= power_of_two(length, 16)
    ]
