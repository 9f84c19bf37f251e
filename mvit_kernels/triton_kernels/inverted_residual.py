"""Inverted residual on channels_last maps in two launches: the expansion, a product whose result is a hidden map in memory; and in one
kernel the depthwise convolution, its activation, the projection and the residual. Without an expansion the second is all there is.

A program has the sums of a tile of output pixels, TILE_H x TILE_W of one image, and of BLOCK_N columns. For a slice of hidden channels at a
time it makes the depthwise result from nine shifted loads, of which L1 and L2 serve all but about one ((TILE_H + 2) (TILE_W + 2) pixels for
TILE_H TILE_W), activates it, rounds it to the dtype of x, and multiplies it with the projection's slice.

Floor on an H100: memory, the hidden map written and read once at 3.0 TB/s and L2's share of the rest, beside x and y."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from . import depthwise_conv2d, gemm, tuning
from . import moments as moments_
from .activation import activate
from .gemm import finish
from .launch import blocks, far, launch, power_of_two, processors, vector_of
from .products import dot

Tensor = torch.Tensor
HIDDEN = 64  # channels: of weights, what the hidden ones are a multiple of


class Weights(NamedTuple):
    expand: gemm.Weight | None
    depthwise: depthwise_conv2d.Weight  # with zeros up to a multiple of HIDDEN channels
    reduce: gemm.Weight  # likewise


def arrange(
    expand_w: Tensor | None, expand_b: Tensor | None, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Tensor | None,
    dtype: torch.dtype,
) -> Weights:  # fmt: skip
    """expand_w (E, C, 1, 1) or None, depthwise_w (E, 1, 3, 3), reduce_w (O, E, 1, 1), for x of `dtype`."""
    columns, hidden = reduce_w.shape[:2]
    expand = None if expand_w is None else gemm.arrange(expand_w, expand_b, dtype)
    matrix = F.pad(reduce_w.flatten(1), (0, -hidden % HIDDEN)).to(dtype).contiguous()
    bias = matrix.new_zeros(columns, dtype=torch.float32) if reduce_b is None else reduce_b.float().contiguous()
    return Weights(
        expand, depthwise_conv2d.arrange(depthwise_w, depthwise_b, matrix.shape[1]), gemm.Weight(matrix, bias, (hidden, 0), 1)
    )  # fmt: skip


@triton.jit
def depthwise_reduce_kernel(
    x, taps, depthwise_bias, weight, bias, residual, y, parts, hidden, columns, height, width, out_height, out_width,
    x_image, x_row, x_column, pitch, STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, COLLECT: tl.constexpr,
    FAR: tl.constexpr, VECTOR: tl.constexpr, OUT_VECTOR: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x (B, hidden, H, W) is the expanded map. Its channels and strides come divided by VECTOR, columns by OUT_VECTOR: so the compiler
    knows how wide loads may be."""
    hidden, columns = hidden * VECTOR, columns * OUT_VECTOR
    x_image, x_row, x_column = x_image * VECTOR, x_row * VECTOR, x_column * VECTOR
    piece = tl.program_id(0)
    across, wide = tl.cdiv(columns, BLOCK_N), tl.cdiv(out_width, TILE_W)
    n = (piece % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = piece // across
    image, tile = tile // (wide * tl.cdiv(out_height, TILE_H)), tile % (wide * tl.cdiv(out_height, TILE_H))
    pixel = tl.arange(0, TILE_H * TILE_W)
    y_at, x_at = (tile // wide) * TILE_H + pixel // TILE_W, (tile % wide) * TILE_W + pixel % TILE_W
    inside_m = (y_at < out_height) & (x_at < out_width)
    row_at, column_at = y_at * STRIDE - 1, x_at * STRIDE - 1
    if FAR:
        row_at, column_at = row_at.to(tl.int64), column_at.to(tl.int64)
    x += image.to(tl.int64) * x_image
    weight += n.to(tl.int64)[None, :] * pitch
    total = tl.zeros((TILE_H * TILE_W, BLOCK_N), tl.float32)
    for begin in range(0, hidden, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        filtered = tl.zeros((TILE_H * TILE_W, BLOCK_K), tl.float32) + tl.load(depthwise_bias + k)[None, :]
        for down in range(0, 3):  # three loads on the way at a time: of nine, registers would spill
            row = row_at + down
            known_row = inside_m & (row >= 0) & (row < height)
            for right in tl.static_range(3):
                column = column_at + right
                in_map = known_row & (column >= 0) & (column < width)
                at = x + (row * x_row + column * x_column)[:, None] + k[None, :]
                value = tl.load(at, mask=in_map[:, None] & (k < hidden)[None, :], other=0.0).to(tl.float32)
                filtered += value * tl.load(taps + (down * 3 + right) * pitch + k)[None, :]
        operand = activate(filtered, ACTIVATION).to(x.dtype.element_ty)
        w = tl.load(weight + k[:, None], mask=(n < columns)[None, :], other=0.0)
        total = dot(operand, w, total)
    m = (image * out_height + y_at) * out_width + x_at
    finish(total, m, inside_m, n, columns, bias, residual, columns, y, parts, piece, "none", RESIDUAL, COLLECT)


# --- what launches them ---


def forward(
    x: Tensor, weights: Weights, y: Tensor, *, stride: int, residual: bool, activation: str, collect: bool
) -> Tensor:  # fmt: skip
    """y (B, O, Ho, Wo) of x (B, C, H, W), both dense in channels_last; the moments (B, 2) float64 of images of y, (0, 2) unless they are to
    be collected."""
    wanted = x.shape[0] if collect else 0
    if y.numel() == 0:
        return moments_.collect(y, wanted)
    expanded = x if weights.expand is None else _expanded(x, weights.expand, activation)
    hidden, (images, columns, out_height, out_width) = expanded.shape[1], y.shape
    strides, sizes = (expanded.stride(0), *expanded.stride()[2:]), (images, hidden, columns, out_height, out_width, stride)
    tiles = tuning.choose("inverted_residual", x, sizes, tile(y, x), functools.partial(candidates, y, x))
    vector, out_vector = vector_of(hidden, *strides), vector_of(columns)
    pieces = blocks(out_height, tiles["TILE_H"]) * blocks(out_width, tiles["TILE_W"]) * blocks(columns, tiles["BLOCK_N"])
    parts = moments_.empty_parts(y, images, pieces) if collect else weights.reduce.bias
    launch(
        depthwise_reduce_kernel, images * pieces,
        expanded, *weights.depthwise, weights.reduce.data, weights.reduce.bias, x if residual else y, y, parts, hidden // vector,
        columns // out_vector, *expanded.shape[2:], out_height, out_width, *(each // vector for each in strides),
        weights.reduce.data.shape[1], STRIDE=stride, ACTIVATION=activation, RESIDUAL=residual, COLLECT=collect, FAR=far(expanded),
        VECTOR=vector, OUT_VECTOR=out_vector, enable_fp_fusion=True, **tiles,
    )  # fmt: skip
    return moments_.join(parts) if collect else moments_.collect(y, 0)


def _expanded(x: Tensor, weight: gemm.Weight, activation: str) -> Tensor:
    """(B, E, H, W), dense in channels_last."""
    (images, _, height, width), rows = x.shape, x.permute(0, 2, 3, 1).flatten(0, 2)
    hidden = x.new_empty(rows.shape[0], weight.bias.shape[0])
    gemm.gemm(rows, weight, hidden, activation=activation)
    return hidden.view(images, height, width, -1).permute(0, 3, 1, 2)


def tile(y: Tensor, x: Tensor) -> tuning.Tile:
    """The largest tile that gives every multiprocessor a program; all columns up to 256, as each block of them filters by itself."""
    images, columns, height, width = y.shape
    if x.dtype == torch.float32:  # on no tensor cores
        return _tile(4, 4, 32, 32, 4)
    for tile_h, tile_w, most in ((8, 8, 256), (8, 8, 64), (4, 8, 64)):
        block_n = power_of_two(columns, 16, most)
        programs = images * blocks(height, tile_h) * blocks(width, tile_w) * blocks(columns, block_n)
        if programs >= processors(x) and tile_h * tile_w < 2 * height * width:
            return _tile(tile_h, tile_w, block_n, 32, 8 if block_n > 128 else 4)
    return _tile(4, 4, power_of_two(columns, 16, 32), 32, 2)


def candidates(y: Tensor, x: Tensor) -> list[tuning.Tile]:
    if x.dtype == torch.float32:
        return []
    few = ((4, 4, 16, 32, 2), (4, 4, 64, 32, 4), (4, 8, 32, 32, 4), (4, 8, 64, 64, 4), (8, 8, 32, 32, 4), (8, 8, 64, 64, 8))
    many = ((4, 8, 128, 32, 4), (8, 8, 128, 32, 8), (8, 8, 64, 32, 4), (8, 16, 64, 32, 8), (8, 16, 128, 32, 8), (8, 8, 256, 64, 8))
    pixels, columns = y.shape[0] * y.shape[2] * y.shape[3], power_of_two(y.shape[1], 16)
    found = {(h, w, min(n, columns), k, warps) for h, w, n, k, warps in (few if pixels <= 128 * processors(x) else many)}
    return [_tile(*each) for each in sorted(found)]


def _tile(tile_h: int, tile_w: int, block_n: int, block_k: int, warps: int) -> tuning.Tile:
    return {"TILE_H": tile_h, "TILE_W": tile_w, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps, "num_stages": 1}
