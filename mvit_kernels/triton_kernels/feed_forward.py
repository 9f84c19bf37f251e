"""The feed-forward half of a transformer layer on channels_last maps: y = x + W_2 act(W_1 norm(x) + b_1) + b_2, gamma and beta inside W_1.

A program has a tile of pixels with all their channels, and walks over slices of the hidden channels. Each slice is a product, an activation
and the depth of a second product, in registers; the hidden map never exists. 16-bit pixels are multiplied as they are, from shared memory,
and the norm is taken of what comes out: `normalised` of resident.py.

Where there are few pixels, each program would wait for all weights by itself: there, and where channels do not fit into registers, two
launches of `gemm` take its place, whose programs share the weights' columns.

Floor on an H100: at 2 d operations a byte memory up to d = 115, tensor cores beyond; of d = 128, batch 256, 32 x 32: 45 us."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import gemm, tuning
from . import moments as moments_
from .activation import activate
from .launch import anew, blocks, by_warpgroups, launch, processors, registers_of, vector_of, wait_turn
from .moments import combine_moments
from .products import dot
from .resident import add_and_store, normal, normalised, padded, row_moments, widths

Tensor = torch.Tensor
HIDDEN = 64  # channels: of weights, what the hidden ones are a multiple of
WIDEST = 512  # channels of a pixel that are kept in registers


class Weights(NamedTuple):
    """With the norm's gamma and beta inside, and zeros up to sizes that need no masks; matrices (out, in) in the dtype of x."""

    first: Tensor
    first_bias: Tensor  # float32, as the other
    first_sums: Tensor  # float32, of the rows of `first` as it is stored
    second: Tensor
    second_bias: Tensor
    dim: int
    hidden: int

    def of_products(self) -> tuple[gemm.Weight, gemm.Weight]:
        first = gemm.Weight(self.first[: self.hidden], self.first_bias[: self.hidden], (self.dim, 0), 1)
        return first, gemm.Weight(self.second[: self.dim], self.second_bias[: self.dim], (self.hidden, 0), 1)


def arrange(first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor, dtype: torch.dtype) -> Weights:
    """first (h, d), second (d, h), for x of `dtype`."""
    hidden, dim = first.shape
    beyond, outside = -hidden % HIDDEN, sum(widths(dim)) - dim
    matrix = padded(first, dtype, 0, outside, 0, beyond)
    return Weights(
        matrix, padded(first_bias, torch.float32, 0, beyond), matrix.sum(1, dtype=torch.float32),
        padded(second, dtype, 0, beyond, 0, outside), padded(second_bias, torch.float32, 0, outside), dim, hidden,
    )  # fmt: skip


@triton.jit
def feed_forward_kernel(
    x, moments, first, first_bias, first_sums, second, second_bias, y, parts, dim, hidden, pixels, pieces, eps,
    LAYER: tl.constexpr, PIECES: tl.constexpr, ACTIVATION: tl.constexpr, COLLECT: tl.constexpr, VECTOR: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """dim comes divided by VECTOR. LAYER: mean and variance of each pixel, else of its image, as `combine_moments` finds them."""
    wait_turn()
    dim = dim * VECTOR
    per_image = tl.cdiv(pixels, BLOCK_T)
    program = tl.program_id(0)
    image, begin = program // per_image, (program % per_image) * BLOCK_T
    t = begin + tl.arange(0, BLOCK_T)
    # Of a tile, offsets are small. Pixels beyond the last repeat it, so that their loads need no mask.
    first_row = (image.to(tl.int64) * pixels + begin) * dim
    rows = (tl.minimum(t, pixels - 1) - begin)[:, None] * dim
    c1 = tl.arange(0, C1)
    pixels1 = tl.load(x + first_row + rows + c1[None, :], mask=(c1 < dim)[None, :], other=0.0)
    if C2 > 0:
        c2 = C1 + tl.arange(0, C2)
        pixels2 = tl.load(x + first_row + rows + c2[None, :], mask=(c2 < dim)[None, :], other=0.0)
    else:
        c2, pixels2 = c1, pixels1
    if LAYER:
        mean, inverse = row_moments(pixels1.to(tl.float32), pixels2.to(tl.float32), c1, c2, dim, eps, C2)
    else:
        mean, inverse = combine_moments(moments, image, pieces, eps, PIECES)
    RAW: tl.constexpr = x.dtype.element_ty != tl.float32
    if not RAW:
        pixels1, pixels2 = normal(pixels1, mean, inverse, c1, dim), normal(pixels2, mean, inverse, c2, dim)
    total1 = tl.zeros((BLOCK_T, C1), tl.float32)
    if C2 > 0:
        total2 = tl.zeros((BLOCK_T, C2), tl.float32)
    for first_hidden in range(0, hidden, BLOCK_H):
        h = first_hidden + tl.arange(0, BLOCK_H)
        into, out = first + h[None, :] * (C1 + C2), second + h[:, None]
        value = dot(pixels1, tl.load(into + c1[:, None]), tl.zeros((BLOCK_T, BLOCK_H), tl.float32))
        if C2 > 0:
            value = dot(pixels2, tl.load(into + c2[:, None]), value)
        value = normalised(value, mean, inverse, first_bias + h, first_sums + h, RAW)
        value = activate(value, ACTIVATION, x.dtype.element_ty).to(x.dtype.element_ty)
        total1 = dot(value, tl.load(out + c1[None, :] * hidden), total1)
        if C2 > 0:
            total2 = dot(value, tl.load(out + c2[None, :] * hidden), total2)
    program = anew(program)  # or pixels and their addresses stay in registers for the sum
    image, begin = program // per_image, (program % per_image) * BLOCK_T
    t = begin + tl.arange(0, BLOCK_T)
    first_row = (image.to(tl.int64) * pixels + begin) * dim
    rows = (tl.minimum(t, pixels - 1) - begin)[:, None] * dim
    x += first_row
    y += first_row
    inside = t < pixels
    if C2 > 0:  # the fewer channels first, beside the sums of the others
        add_and_store(total2, second_bias, x, rows, y, rows, c2, dim, inside, parts, program * 2 + 1, C1, COLLECT)
        add_and_store(total1, second_bias, x, rows, y, rows, c1, dim, inside, parts, program * 2, 0, COLLECT)
    else:
        add_and_store(total1, second_bias, x, rows, y, rows, c1, dim, inside, parts, program, 0, COLLECT)


# --- what launches it ---


def forward(
    x: Tensor, weights: Weights, y: Tensor, *, layer_norm: bool, moments: Tensor | None = None, eps: float, activation: str, collect: bool
) -> Tensor:
    """y of x (B, d, H, W), both dense in channels_last; the moments (B, 2) float64 of images of y, (0, 2) unless they are to be collected.
    moments (B, 2) float64, of the images of x, if they are known."""
    images, (dim, pixels) = x.shape[0], (x.shape[1], x.shape[2] * x.shape[3])
    wanted = images if collect else 0
    if y.numel() == 0:
        return moments_.collect(y, wanted)
    sizes = images, pixels, dim, weights.hidden, "layer" if layer_norm else "group"
    tiles = tuning.choose("feed_forward", x, sizes, tile(images, pixels, dim, x), functools.partial(candidates, images, pixels, dim, x))
    if tiles == tuning.IN_TWO:
        return _in_two(x, weights, y, layer_norm, moments, eps, activation, wanted)
    c1, c2 = widths(dim)
    given, pieces, lanes = (weights.second_bias, 0, 0) if layer_norm else moments_.parts_or_moments(x, moments)
    programs, vector = blocks(pixels, tiles["BLOCK_T"]), vector_of(dim)
    parts = moments_.empty_parts(x, images, programs * (2 if c2 else 1)) if collect else weights.second_bias
    launch(
        feed_forward_kernel, images * programs,
        x, given, weights.first, weights.first_bias, weights.first_sums, weights.second, weights.second_bias, y, parts, dim // vector,
        weights.second.shape[1], pixels, pieces, eps, LAYER=layer_norm, PIECES=lanes, ACTIVATION=activation, COLLECT=collect,
        VECTOR=vector, C1=c1, C2=c2, enable_fp_fusion=True, **tiles,
    )  # fmt: skip
    return moments_.collected(parts) if collect else moments_.collect(y, 0)


def _in_two(
    x: Tensor, weights: Weights, y: Tensor, layer_norm: bool, moments: Tensor | None, eps: float, activation: str, collect: int
) -> Tensor:
    if not layer_norm:
        moments = moments_.collect(x, x.shape[0]) if moments is None else moments
    rows, result = (each.permute(0, 2, 3, 1).flatten(0, 2) for each in (x, y))
    first, second = weights.of_products()
    hidden = x.new_empty(rows.shape[0], weights.hidden)
    gemm.gemm(rows, first, hidden, moments=moments, layer_norm=layer_norm, eps=eps, activation=activation)
    return gemm.gemm(hidden, second, result, residual=rows, collect=collect)


def tile(images: int, pixels: int, dim: int, x: Tensor) -> tuning.Tile:
    """Sums of all channels of a tile of pixels are in registers, 64 a thread and at most 128. On sm_80 pixels are there, too; tensor cores
    of sm_90 read them from shared memory, 64 pixels of four warps at once, and eight warps for 128 read weights half as often. Where many
    tiles wait, registers are limited so that several blocks fit on a multiprocessor: one by itself waits most of the time."""
    width = sum(widths(dim))
    if width > WIDEST:
        return tuning.IN_TWO
    if x.dtype == torch.float32:  # on no tensor cores
        return _tile(16, 16, 8 if width > 128 else 4, 1)
    warpgroups = by_warpgroups(x)
    block_t = 64 if width <= (256 if warpgroups else 128) else 32
    if warpgroups and (width <= 128 or 192 < width <= 256):  # between, three blocks of four warps fit, and only one of eight
        block_t = 128
    while block_t > 16 and (images * blocks(pixels, block_t) < processors(x) or block_t >= 2 * pixels):
        block_t //= 2
    if images * blocks(pixels, block_t) < processors(x) // 4:
        return tuning.IN_TWO
    if warpgroups and block_t == 128:
        return _tile(block_t, 32, 8, 2, 2) if 96 < width <= 128 else _tile(block_t, 64, 8, 2, 2 if width <= 96 else 0)
    if warpgroups and block_t == 64:
        if images * blocks(pixels, block_t) <= 2 * processors(x):
            return _tile(block_t, 64 if width <= 144 else 32, 4, 2)
        return _tile(block_t, 32, 4, 2, 3 if width <= 192 else 0)
    return _tile(block_t, 64 if width <= 128 else 32, 8 if block_t * width > 8192 else 4, 2)


def candidates(images: int, pixels: int, dim: int, x: Tensor) -> list[tuning.Tile]:
    width = sum(widths(dim))
    if x.dtype == torch.float32 or width > WIDEST:
        return []
    found: list[tuple[int, ...]] = [(32, 32, 4, 2), (32, 32, 8, 2)]
    if images * pixels <= 64 * processors(x):
        found += [(16, 32, 4, 2), (16, 64, 4, 2)]
    else:
        found += [(64, 32, 4, 2, 3 if width <= 192 else 0), (64, 32, 8, 2, 2), (128, 64, 8, 2)] if width <= 256 else []
        found += [(64, 64, 4, 2)] if width <= 144 else []
        found += [(128, 32, 8, 2, 2)] if width <= 128 else []
    return [tuning.IN_TWO, *(_tile(*each) for each in found if each[0] < 2 * pixels)]


def _tile(block_t: int, block_h: int, warps: int, stages: int, resident: int = 0) -> tuning.Tile:
    return {"BLOCK_T": block_t, "BLOCK_H": block_h, "num_warps": warps, "num_stages": stages, **registers_of(warps, resident)}
