"""Mean and variance of images: every program has (count, mean, M2) of a piece, and whoever needs the moments puts all pieces together.

M2 is the sum of squared distances from the mean. Pieces of n_i elements with mean_i and M2_i make

    mean = sum n_i mean_i / n        M2 = sum M2_i + sum n_i (mean_i - mean)^2

(Chan, Golub and LeVeque 1979, equation 1.5, of all pieces at once), in float64 and in an order that no scheduling changes: no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch

Tensor = torch.Tensor
PIECE = 4096  # elements
MOST_PIECES = 64  # of an image; larger images have larger pieces


@triton.jit
def moments_kernel(x, parts, size, pieces, piece_size, BLOCK: tl.constexpr):
    """parts (B, pieces, 2) float32: mean and M2 of each piece of the B images of `size` elements that x is."""
    program = tl.program_id(0)
    image, piece = program // pieces, program % pieces
    begin = piece.to(tl.int64) * piece_size
    count = tl.minimum(size - begin, piece_size)
    x += image.to(tl.int64) * size + begin
    mean, m2 = 0.0, 0.0
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < count
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        n = tl.minimum(count - start, BLOCK).to(tl.float32)
        mean_here = tl.sum(value, 0) / n
        distance = tl.where(inside, value - mean_here, 0.0)
        before = tl.cast(start, tl.float32)
        step = mean_here - mean
        mean += step * (n / (before + n))
        m2 += tl.sum(distance * distance, 0) + step * step * (before * n / (before + n))
    tl.store(parts + program * 2, mean)
    tl.store(parts + program * 2 + 1, m2)


@triton.jit
def combine_moments(parts, image, size, pieces, piece_size, eps, PIECES: tl.constexpr):
    """(mean, 1 / sqrt(variance + eps)) float32 of an image."""
    piece = tl.arange(0, PIECES)
    inside = piece < pieces
    at = parts + (image * pieces + piece) * 2
    mean_of = tl.load(at, mask=inside, other=0.0).to(tl.float64)
    m2_of = tl.load(at + 1, mask=inside, other=0.0).to(tl.float64)
    count = tl.minimum(size - piece.to(tl.int64) * piece_size, piece_size)
    count = tl.where(inside, count, 0).to(tl.float64)
    total = tl.cast(size, tl.float64)
    mean = tl.sum(count * mean_of, 0) / total
    distance = mean_of - mean
    variance = (tl.sum(m2_of, 0) + tl.sum(count * distance * distance, 0)) / total
    return mean.to(tl.float32), (1.0 / tl.sqrt(variance + eps)).to(tl.float32)


def parts_of(x: Tensor) -> tuple[Tensor, int, int, int]:
    """(parts (B, pieces, 2), elements of an image, pieces, elements of a piece) of x, whose images are dense."""
    size = x[0].numel()
    piece_size = max(PIECE, PIECE * blocks(size, PIECE * MOST_PIECES))
    pieces = blocks(size, piece_size)
    parts = x.new_empty(x.shape[0], pieces, 2, dtype=torch.float32)
    launch(moments_kernel, x.shape[0] * pieces, x, parts, size, pieces, piece_size, BLOCK=PIECE, num_warps=8, enable_fp_fusion=True)
    return parts, size, pieces, piece_size
