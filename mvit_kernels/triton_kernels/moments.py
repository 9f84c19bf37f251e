"""Mean and variance of images: every program has (count, mean, M2) of a piece, and whoever needs the moments puts all pieces together.

M2 is the sum of squared distances from the mean. Pieces of n_i elements with mean_i and M2_i make

    mean = sum n_i mean_i / n        M2 = sum M2_i + sum n_i (mean_i - mean)^2

(Chan, Golub and LeVeque 1979, equation 1.5, of all pieces at once), in float64 and in an order that no scheduling changes: no atomics.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, power_of_two, wait_turn

Tensor = torch.Tensor
PIECE = 4096  # elements
MOST_PIECES = 64  # of an image; larger images have larger pieces
MOST_COMBINED = 256  # pieces that every program of another kernel puts together by itself
NUMBERS = 3  # of a piece: count, mean, M2


@triton.jit
def moments_kernel(x, parts, size, pieces, piece_size, BLOCK: tl.constexpr):
    """parts (B, pieces, 3) float32: count, mean and M2 of each piece of the B images of `size` elements that x is."""
    wait_turn()
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
        # Rounded once: a GPU's own division is off by more, also where it should give 1, and the mean may be far from 0.
        mean_here = tl.div_rn(tl.sum(value, 0), n)
        distance = tl.where(inside, value - mean_here, 0.0)
        before = tl.cast(start, tl.float32)
        step = mean_here - mean
        mean += step * tl.div_rn(n, before + n)
        m2 += tl.sum(distance * distance, 0) + step * step * (before * n / (before + n))
    at = parts + tl.cast(program, tl.int64) * 3
    tl.store(at, count.to(tl.float32))
    tl.store(at + 1, mean)
    tl.store(at + 2, m2)


@triton.jit
def write_part(parts, program, value, inside, count):
    """The part of a program that has made a whole piece: value (rows, columns) as it is in memory, `count` elements inside. Sums are of all
    elements at once: each thread adds its own before threads meet, where sums of rows would have them meet for each row."""
    value = tl.where(inside, value.to(tl.float32), 0.0)
    mean = tl.div_rn(tl.sum(value), count)  # as above
    distance = tl.where(inside, value - mean, 0.0)
    at = parts + tl.cast(program, tl.int64) * 3
    tl.store(at, count)
    tl.store(at + 1, mean)
    tl.store(at + 2, tl.sum(distance * distance))


@triton.jit
def combine_moments(parts, image, pieces, eps, PIECES: tl.constexpr):
    """(mean, 1 / sqrt(variance + eps)) float32 of an image. PIECES 0: parts are the moments (B, 2) float64."""
    if PIECES == 0:
        mean, variance = tl.load(parts + image * 2), tl.load(parts + image * 2 + 1)
    else:
        piece = tl.arange(0, PIECES)
        inside = piece < pieces
        at = parts + (image * pieces + piece) * 3
        count = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        mean_of = tl.load(at + 1, mask=inside, other=0.0).to(tl.float64)
        m2_of = tl.load(at + 2, mask=inside, other=0.0).to(tl.float64)
        total = tl.sum(count, 0)
        mean = tl.sum(count * mean_of, 0) / total
        distance = mean_of - mean
        variance = (tl.sum(m2_of, 0) + tl.sum(count * distance * distance, 0)) / total
    return mean.to(tl.float32), (1.0 / tl.sqrt(variance + eps)).to(tl.float32)


@triton.jit
def join_moments_kernel(parts, moments, pieces, BLOCK: tl.constexpr):
    """moments (B, 2) float64, mean and variance, of all pieces of an image."""
    wait_turn()
    image = tl.program_id(0)
    parts += tl.cast(image, tl.int64) * pieces * 3
    totals, sums = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, pieces, BLOCK):
        piece = begin + tl.arange(0, BLOCK)
        count = tl.load(parts + piece * 3, mask=piece < pieces, other=0.0).to(tl.float64)
        totals += count
        sums += count * tl.load(parts + piece * 3 + 1, mask=piece < pieces, other=0.0).to(tl.float64)
    total = tl.sum(totals, 0)
    mean = tl.sum(sums, 0) / total
    m2 = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, pieces, BLOCK):
        piece = begin + tl.arange(0, BLOCK)
        count = tl.load(parts + piece * 3, mask=piece < pieces, other=0.0).to(tl.float64)
        distance = tl.load(parts + piece * 3 + 1, mask=piece < pieces, other=0.0).to(tl.float64) - mean
        m2 += tl.load(parts + piece * 3 + 2, mask=piece < pieces, other=0.0).to(tl.float64) + count * distance * distance
    tl.store(moments + image * 2, mean)
    tl.store(moments + image * 2 + 1, tl.sum(m2, 0) / total)


# --- what launches them ---


def parts_of(x: Tensor, images: int | None = None) -> tuple[Tensor, int, int]:
    """(parts (B, pieces, 3), pieces of an image, PIECES of `combine_moments`) of x, whose images are dense; or of as many
    images of equal size as are said to be in it."""
    images = x.shape[0] if images is None else images
    size = x.numel() // images
    piece_size = max(PIECE, PIECE * blocks(size, PIECE * MOST_PIECES))
    pieces = blocks(size, piece_size)
    parts = x.new_empty(images, pieces, NUMBERS, dtype=torch.float32)
    launch(moments_kernel, images * pieces, x, parts, size, pieces, piece_size, BLOCK=PIECE, num_warps=8, enable_fp_fusion=True)
    return parts, pieces, power_of_two(pieces)


def parts_or_moments(x: Tensor, moments: Tensor | None) -> tuple[Tensor, int, int]:
    """What `combine_moments` takes: parts of x, unless they (B, pieces, 3) float32 or moments (B, 2) float64 are known."""
    if moments is None:
        return parts_of(x)
    if moments.ndim == 3 and moments.shape[1] > MOST_COMBINED:
        moments = join(moments)
    if moments.ndim == 3:
        return moments.contiguous(), moments.shape[1], power_of_two(moments.shape[1])
    return moments.contiguous(), 0, 0


def empty_parts(x: Tensor, images: int, pieces: int) -> Tensor:
    """For programs to write, one a piece, on the device of x."""
    return x.new_empty(images, pieces, NUMBERS, dtype=torch.float32)


def join(parts: Tensor) -> Tensor:
    """(B, 2) float64: mean and variance of images of all their parts (B, pieces, 3)."""
    images, pieces = parts.shape[:2]
    parts, moments = parts.contiguous(), parts.new_empty(images, 2, dtype=torch.float64)
    launch(join_moments_kernel, images, parts, moments, pieces, BLOCK=power_of_two(pieces, 32, 256), num_warps=1, enable_fp_fusion=True)
    return moments


def joined(moments: Tensor | None) -> Tensor | None:
    """Moments (B, 2), of moments or of parts."""
    return join(moments) if moments is not None and moments.ndim == 3 else moments


_apart: contextvars.ContextVar[bool] = contextvars.ContextVar("apart", default=False)


@contextlib.contextmanager
def keeping_parts() -> Iterator[None]:
    """Inside, ops that collect the moments of their result give parts (B, pieces, 3) float32, which ops take wherever they take moments:
    a launch less between the two."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def keeps_parts() -> bool:
    return _apart.get()


def collected(parts: Tensor) -> Tensor:
    """What an op gives whose programs wrote parts (B, pieces, 3)."""
    return parts if keeps_parts() else join(parts)


def collect(y: Tensor, images: int) -> Tensor:
    """What an op gives whose programs did not: (images, 2) float64, mean and variance of the dense images of y; NaN where they hold
    nothing."""
    if images == 0 or y.numel() == 0:
        return y.new_full((images, 2), float("nan"), dtype=torch.float64)
    return collected(parts_of(y, images)[0])
