"""Softmax attention inside pixel phases on bytes: the bits of `mvit_kernels/reference/qpatch_attention.py`. It runs where the CUDA kernel
(csrc/cuda/ops/qpatch_attention.h) is not built or does not take the call.

A program has a head of a phase and a block of its queries, and walks the keys twice: for the largest score of each query, and for the
weights, which are bytes of a table. Where all keys are one block, scores are computed once. Both products are those of int8 on tensor
cores: b' = b - 128 stands for every byte b, and int32 sums get back what that leaves out:

    S[n, m] = sum_c q'[n, c] k'[m, c] + (128 - z_q) sum_c k'[m, c]
    A[n, c] = sum_m e'[n, m] v'[m, c] + 128 sum_m v'[m, c] + (128 - z_v) sum_m e[n, m]

Channels beyond those of a head and pixels beyond those of a phase are read as 128, which is 0. Tensor cores saturate where other additions
are modulo 2^32, but nothing that they add up is larger than 128 (128 + |128 - z|) for each term, which is at most the
255 max(|z|, |255 - z|) that the op holds below 2^31."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .launch import blocks, far, launch, power_of_two, processors, wait_turn
from .phases import group_start, phase_pixels
from .pinned import rint, to_byte
from .products import signed

Tensor = torch.Tensor


@triton.jit
def _scores(query, keys, inside, offset):
    """S of keys, addresses (n, c)."""
    k = signed(tl.load(keys, mask=inside, other=128))
    start = tl.sum(k.to(tl.int32), 1) * offset
    return tl.dot(query, tl.trans(k), tl.zeros((query.shape[0], k.shape[0]), tl.int32) + start[None, :], out_dtype=tl.int32)


@triton.jit
def qpatch_attention_kernel(
    qkv, table, y, heads, length, columns, ph, pw, qkv_image, qkv_row, qkv_column, y_image, y_row, y_column,
    q_offset, v_offset, f, g, zero_point, most,
    HEAD_DIM: tl.constexpr, ALIGN: tl.constexpr, WHOLE: tl.constexpr, FAR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """q_offset, v_offset: 128 less the zero-points. ALIGN: of strides of qkv. WHOLE: all keys are one block."""
    wait_turn()
    per_head = tl.cdiv(length, BLOCK_M)
    program = tl.program_id(0)
    head, phase = program // per_head % heads, program // per_head // heads
    image, first = (phase // (ph * pw)).to(tl.int64), phase % (ph * pw)
    c = tl.arange(0, BLOCK_D)
    known = (c < HEAD_DIM)[None, :]
    start = tl.multiple_of(image * qkv_image + group_start(first, pw, qkv_row, qkv_column), ALIGN)
    qkv += start + head * HEAD_DIM + c[None, :]
    keys, values = qkv + heads * HEAD_DIM, qkv + 2 * heads * HEAD_DIM

    m = (program % per_head) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (m < length)[:, None] & known
    at = qkv + tl.multiple_of(phase_pixels(m, columns, ph, pw, qkv_row, qkv_column, FAR), ALIGN)[:, None]
    query = signed(tl.load(at, mask=inside, other=128))
    end = BLOCK_N if WHOLE else length
    largest = tl.full((BLOCK_M,), -(2**31), tl.int32)
    for begin in range(0, end, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        rows = tl.multiple_of(phase_pixels(n, columns, ph, pw, qkv_row, qkv_column, FAR), ALIGN)[:, None]
        scores = _scores(query, keys + rows, (n < length)[:, None] & known, q_offset)
        largest = tl.maximum(largest, tl.max(tl.where((n < length)[None, :], scores, -(2**31)), 1))
    total = tl.zeros((BLOCK_M,), tl.int32)
    sums = tl.zeros((BLOCK_D,), tl.int32)
    result = tl.zeros((BLOCK_M, BLOCK_D), tl.int32)
    for begin in range(0, end, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        rows = tl.multiple_of(phase_pixels(n, columns, ph, pw, qkv_row, qkv_column, FAR), ALIGN)[:, None]
        in_phase = (n < length)[:, None] & known
        scores = _scores(query, keys + rows, in_phase, q_offset)
        steps = rint(tl.minimum((largest[:, None] - scores).to(tl.float32) * f, 255.0)).to(tl.int32)
        weights = tl.load(table + tl.maximum(steps, 0), mask=(n < length)[None, :], other=0)
        v = signed(tl.load(values + rows, mask=in_phase, other=128))
        total += tl.sum(weights.to(tl.int32), 1)
        sums += tl.sum(v.to(tl.int32), 0)
        result = tl.dot(signed(weights), v, result, out_dtype=tl.int32)
    result += (sums * 128)[None, :] + (total * v_offset)[:, None]
    t = result.to(tl.float32) * tl.div_rn(tl.zeros_like(total).to(tl.float32) + g, total.to(tl.float32))[:, None]
    y += image * y_image + group_start(first, pw, y_row, y_column) + head * HEAD_DIM + c[None, :]
    at = y + phase_pixels(m, columns, ph, pw, y_row, y_column, FAR)[:, None]
    tl.store(at, to_byte(t, zero_point, most), mask=inside)


# --- what launches it ---


def qpatch_attention(
    qkv: Tensor, heads: int, patch: tuple[int, int], q_zero_point: int, v_zero_point: int, f: float, g: float, table: Tensor,
    out_zero_point: int, out_bits: int, y: Tensor,
) -> None:  # fmt: skip
    """y (B, H, W, d) of qkv (B, H, W, 3d), channels of both with stride 1; table (256,) uint8."""
    if y.numel() == 0:
        return
    (batch, height, width, dim), (ph, pw) = y.shape, patch
    length, groups, depth = height // ph * (width // pw), batch * ph * pw * heads, dim // heads
    many = groups * blocks(length, 64) >= 2 * processors(y)
    block_m = power_of_two(length, 16, 64 if many else 16)
    block_n = power_of_two(length, 32, 4096 // block_m)
    launch(
        qpatch_attention_kernel, groups * blocks(length, block_m),
        qkv, table, y, heads, length, width // pw, ph, pw, *qkv.stride()[:3], *y.stride()[:3], 128 - q_zero_point, 128 - v_zero_point,
        f, g, out_zero_point, 2**out_bits - 1, HEAD_DIM=depth, ALIGN=math.gcd(16, *qkv.stride()[:3]), WHOLE=length <= block_n,
        FAR=far(qkv, y), BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=power_of_two(depth, 32), num_warps=4, num_stages=1,
    )  # fmt: skip
