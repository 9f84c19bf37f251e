"""Norms of an int16 residual stream, quantized: the bits of `mvit_kernels/reference/qnorm.py`.

Sums are exact integers, so groups fall into pieces freely. A group that fits in the registers of a program (a row of LayerNorm, a small
image) is read once, in one launch. Of a larger one, programs add up pieces, and those of a second launch add these up again, each for
itself, and normalise.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, power_of_two, wait_turn
from .pinned import double, double_bits, to_byte

Tensor = torch.Tensor
IN_REGISTERS = 16384  # values of a group
PIECE = 4096  # values
MOST_PIECES = 64  # of a group; larger groups have larger pieces


@triton.jit
def _mean_and_factor(s1, s2, count, ratio, square, eps):
    """(mean, factor) float32 of exact sums; ratio: scale / out_scale, square: scale scale, both float64."""
    n = tl.cast(count, tl.float64)
    mean = s1.to(tl.float64) / n
    variance = s2.to(tl.float64) / n - mean * mean
    factor = double(ratio) / tl.sqrt(tl.where(variance > 0.0, variance, 0.0) * double(square) + double(eps))
    return mean.to(tl.float32), factor.to(tl.float32)


@triton.jit
def _affine(t, gain, offset, channel, known, AFFINE: tl.constexpr):
    if AFFINE:
        t = t * tl.load(gain + channel, mask=known, other=0.0) + tl.load(offset + channel, mask=known, other=0.0)
    return t


@triton.jit
def qnorm_rows_kernel(
    x, gain, offset, y, rows, size, depth, x_row, ratio, square, eps, zero_point, most,
    AFFINE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Each row of `size` values is a group, of whole rows of `depth` channels."""
    wait_turn()
    r, k = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    inside, wide = (r < rows)[:, None] & (k < size)[None, :], r.to(tl.int64)[:, None]
    value = tl.load(x + wide * x_row + k[None, :], mask=inside, other=0).to(tl.int32)
    s1, s2 = tl.sum(value, 1), tl.sum((value * value).to(tl.int64), 1)
    mean, factor = _mean_and_factor(s1, s2, size, ratio, square, eps)
    t = (value.to(tl.float32) - mean[:, None]) * factor[:, None]
    t = _affine(t, gain, offset, (k % depth)[None, :], (k < size)[None, :], AFFINE)
    tl.store(y + wide * size + k[None, :], to_byte(t, zero_point, most), mask=inside)


@triton.jit
def stream_sums_kernel(x, parts, size, pieces, piece_size, BLOCK: tl.constexpr):
    """parts (G, pieces, 2) int64: sum and sum of squares of each piece of the G groups of `size` values that x is."""
    wait_turn()
    program = tl.program_id(0)
    begin = (program % pieces).to(tl.int64) * piece_size
    count = tl.minimum(size - begin, piece_size)
    x += (program // pieces).to(tl.int64) * size + begin
    s1, s2 = tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < count, other=0).to(tl.int32)
        s1 += value
        s2 += value * value
    parts += program.to(tl.int64) * 2
    tl.store(parts, tl.sum(s1, 0))
    tl.store(parts + 1, tl.sum(s2, 0))


@triton.jit
def qnorm_groups_kernel(
    x, parts, gain, offset, y, size, depth, pieces, across, ratio, square, eps, zero_point, most,
    AFFINE: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`across` programs have a group of `size` values, rows of `depth` channels, whose sums are those of its pieces."""
    wait_turn()
    program = tl.program_id(0)
    group = (program // across).to(tl.int64)
    piece = tl.arange(0, PIECES)
    part = parts + (group * pieces + piece) * 2
    s1 = tl.sum(tl.load(part, mask=piece < pieces, other=0), 0)
    s2 = tl.sum(tl.load(part + 1, mask=piece < pieces, other=0), 0)
    mean, factor = _mean_and_factor(s1, s2, size, ratio, square, eps)
    within = (program % across).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = group * size + within
    value = tl.load(x + at, mask=within < size, other=0).to(tl.float32)
    t = _affine((value - mean) * factor, gain, offset, within % depth, within < size, AFFINE)
    tl.store(y + at, to_byte(t, zero_point, most), mask=within < size)


# --- what launches them ---


def qnorm(
    x: Tensor, sums: Tensor | None, groups: int, scale: float, out_scale: float, out_zero_point: int, eps: float, bits: int,
    gain: Tensor | None, offset: Tensor | None, y: Tensor,
) -> None:  # fmt: skip
    """y of x (M, K), rows of stride 1, in groups of rows; of more than one row, or with sums (G, 2) or of pieces (G, pieces, 2), which
    every program adds up, x is contiguous. gain, offset (K,) float32, both or neither."""
    if x.numel() == 0:
        return
    size, depth = x.numel() // groups, x.shape[1]
    affine = x if gain is None else gain, x if offset is None else offset
    numbers = (*map(double_bits, (scale / out_scale, scale * scale, eps)), out_zero_point, 2**bits - 1)
    if sums is None and size <= IN_REGISTERS:
        block_k = power_of_two(size, 16)
        block_r = max(1, 2048 // block_k)
        launch(
            qnorm_rows_kernel, blocks(groups, block_r),
            x, *affine, y, groups, size, depth, x.stride(0) if groups == x.shape[0] else size, *numbers, AFFINE=gain is not None,
            BLOCK_R=block_r, BLOCK_K=block_k, num_warps=4 if block_k <= 2048 else 8 if block_k <= 8192 else 16,
        )  # fmt: skip
        return
    x = x.contiguous()
    if sums is None:
        sums = stream_sums(x, groups)
    pieces = sums.shape[1] if sums.ndim == 3 else 1
    across = blocks(size, PIECE)
    launch(
        qnorm_groups_kernel, groups * across,
        x, sums, *affine, y, size, depth, pieces, across, *numbers, AFFINE=gain is not None, PIECES=power_of_two(pieces), BLOCK=PIECE,
        num_warps=8,
    )  # fmt: skip


def stream_sums(x: Tensor, groups: int) -> Tensor:
    """(groups, pieces, 2) int64: sum and sum of squares of pieces of each group of rows of x (M, K) int16, contiguous and not empty."""
    size = x.numel() // groups
    piece_size = PIECE * blocks(size, PIECE * MOST_PIECES)
    pieces = blocks(size, piece_size)
    parts = x.new_empty(groups, pieces, 2, dtype=torch.int64)
    launch(stream_sums_kernel, groups * pieces, x, parts, size, pieces, piece_size, BLOCK=PIECE // 2, num_warps=8)
    return parts
