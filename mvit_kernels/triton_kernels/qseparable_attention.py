"""Separable self-attention on bytes, in two halves: the bits of `mvit_kernels/reference/qseparable_attention.py`.

**Context.** A program has some channels of a phase and walks its pixels twice: for the largest score, and for the sums. Exponentials are
at most 2^16 and bytes less than 2^8, so 256 products add up in 32 bits without a sign; their sums, over pixels too, are int64. All are
exact, and one launch does it.

**Gate.** A program has some pixels of a phase, whose context it reads once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, far, launch, power_of_two, wait_turn
from .phases import group_start, phase_pixels
from .pinned import clamp, double, double_bits, rint_double, to_byte

Tensor = torch.Tensor


@triton.jit
def qseparable_context_kernel(
    scores, x, table, y, length, columns, dim, ph, pw, scores_image, scores_row, scores_column, x_image, x_row, x_column,
    x_zero_point, factor, zero_point, most, BYTES: tl.constexpr, FAR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """factor: of C / S - x_zero_point, float64."""
    wait_turn()
    across = tl.cdiv(dim, BLOCK_C)
    program = tl.program_id(0)
    phase = program // across
    image, first = (phase // (ph * pw)).to(tl.int64), phase % (ph * pw)
    scores += image * scores_image + group_start(first, pw, scores_row, scores_column)
    c = (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < dim
    x += image * x_image + group_start(first, pw, x_row, x_column) + c[None, :]

    n = tl.arange(0, BLOCK_N)
    largest = tl.zeros((BLOCK_N,), tl.int32)
    for begin in range(0, length, BLOCK_N):
        at = scores + phase_pixels(begin + n, columns, ph, pw, scores_row, scores_column, FAR)
        largest = tl.maximum(largest, tl.load(at, mask=begin + n < length, other=0).to(tl.int32))
    top = tl.max(largest, 0)
    total, weighted = tl.zeros((BLOCK_N,), tl.int64), tl.zeros((BLOCK_C,), tl.int64)
    for start in range(0, length, 256 * BLOCK_N):
        part = tl.zeros((BLOCK_N, BLOCK_C), tl.uint32)
        for begin in range(start, tl.minimum(start + 256 * BLOCK_N, length), BLOCK_N):
            inside = begin + n < length
            at = scores + phase_pixels(begin + n, columns, ph, pw, scores_row, scores_column, FAR)
            score = tl.load(at, mask=inside, other=0).to(tl.int32)
            e = tl.load(table + (top - score), mask=inside, other=0)
            at = x + phase_pixels(begin + n, columns, ph, pw, x_row, x_column, FAR)[:, None]
            at = tl.max_contiguous(at, (1, 4))  # a thread has four channels, so few of the divisions in float64
            byte = tl.load(at, mask=inside[:, None] & known[None, :], other=0)
            total += e
            part += e.to(tl.uint32)[:, None] * byte.to(tl.uint32)
        weighted += tl.sum(part.to(tl.int64), 0)
    t = weighted.to(tl.float64) / tl.sum(total, 0).to(tl.float64) - tl.cast(x_zero_point, tl.float64)
    t = t * double(factor)
    if BYTES:
        q = rint_double(clamp(t, -4194304.0, 4194304.0)).to(tl.int32) + zero_point
        result = tl.minimum(tl.maximum(q, 0), most).to(tl.uint8)
    else:
        result = t.to(tl.float32)
    tl.store(y + phase.to(tl.int64) * dim + c, result, mask=known)


@triton.jit
def qseparable_gate_kernel(
    v, context, y, length, columns, dim, ph, pw, v_image, v_row, v_column, y_image, y_row, v_zero_point, ratio, zero_point, most,
    FAR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """ratio: v_scale / out_scale. y (B, H, W, d) is dense."""
    wait_turn()
    across, along = tl.cdiv(dim, BLOCK_C), tl.cdiv(length, BLOCK_N)
    program = tl.program_id(0)
    phase = program // across // along
    image, first = (phase // (ph * pw)).to(tl.int64), phase % (ph * pw)
    c = (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = (program // across % along) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (n < length)[:, None] & (c < dim)[None, :]
    k = tl.load(context + phase.to(tl.int64) * dim + c, mask=c < dim, other=0.0) * ratio
    v += image * v_image + group_start(first, pw, v_row, v_column)
    at = v + phase_pixels(n, columns, ph, pw, v_row, v_column, FAR)[:, None] + c[None, :]
    positive = tl.maximum(tl.load(at, mask=inside, other=0).to(tl.int32) - v_zero_point, 0)
    y += image * y_image + group_start(first, pw, y_row, dim)
    # Values stand beside scores, where their bytes are loaded one by one: four a thread, so that those of a warp are neighbours.
    at = tl.max_contiguous(y + phase_pixels(n, columns, ph, pw, y_row, dim, FAR)[:, None] + c[None, :], (1, 4))
    tl.store(at, to_byte(positive.to(tl.float32) * k[None, :], zero_point, most), mask=inside)


# --- what launches them ---


def qseparable_context(
    scores: Tensor, x: Tensor, table: Tensor, patch: tuple[int, int], x_scale: float, x_zero_point: int, out_scale: float | None,
    out_zero_point: int, out_bits: int, y: Tensor,
) -> None:  # fmt: skip
    """y (B, P, d) of scores (B, H, W) and x (B, H, W, d), whose channels have stride 1; table (256,) int32 contiguous."""
    if y.numel() == 0:
        return
    (_, height, width, dim), (ph, pw) = x.shape, patch
    length = height // ph * (width // pw)
    block_c = power_of_two(dim, 16, 32)
    block_n = power_of_two(length, 16, 128)
    factor = x_scale if out_scale is None else x_scale / out_scale
    launch(
        qseparable_context_kernel, y.shape[0] * y.shape[1] * blocks(dim, block_c),
        scores, x, table, y, length, width // pw, dim, ph, pw, *scores.stride(), *x.stride()[:3], x_zero_point, double_bits(factor),
        out_zero_point, 2**out_bits - 1, BYTES=out_scale is not None, FAR=far(scores, x), BLOCK_N=block_n, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


def qseparable_gate(
    v: Tensor, context: Tensor, patch: tuple[int, int], v_scale: float, v_zero_point: int, out_scale: float, out_zero_point: int,
    out_bits: int, y: Tensor,
) -> None:  # fmt: skip
    """y (B, H, W, d) contiguous of v, whose channels have stride 1, and context (B, P, d) contiguous."""
    if y.numel() == 0:
        return
    (batch, height, width, dim), (ph, pw) = v.shape, patch
    length = height // ph * (width // pw)
    block_c = power_of_two(dim, 16, 128)
    block_n = power_of_two(length, 1, 2048 // block_c)
    launch(
        qseparable_gate_kernel, batch * ph * pw * blocks(length, block_n) * blocks(dim, block_c),
        v, context, y, length, width // pw, dim, ph, pw, *v.stride()[:3], *y.stride()[:2], v_zero_point, v_scale / out_scale,
        out_zero_point, 2**out_bits - 1, FAR=far(v, y), BLOCK_N=block_n, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
