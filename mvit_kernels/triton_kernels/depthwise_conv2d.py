"""Depthwise 3x3 convolution on channels_last maps: a program walks down a strip of rows with its channels in vector loads.

The three neighbours of a row are loaded once and added to all the output rows that see it: the one above, its own and the one below. Of the
three loads two hit L1, and rows are loaded again only where strips meet, once in ROWS. Where a channel has several filters, its values
are loaded once for each: no map with repeated channels exists.

Floor on an H100: memory, x once and y once at 3.0 TB/s. Per output there are 9 multiply-adds, 3 conversions and an activation, a third of
what the multiprocessors issue in that time."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from . import tuning
from .activation import activate
from .dynamic_relu import larger, slopes
from .launch import blocks, far, launch, power_of_two, processors, vector_of, wait_turn

Tensor = torch.Tensor
ALIGNED = 16  # channels that the taps have at least, and multiples of it


class Weight(NamedTuple):
    """The taps as the kernels read them, with zeros up to a multiple of ALIGNED."""

    taps: Tensor  # (9, channels) float32
    bias: Tensor  # (channels,) float32


def arrange(weight: Tensor, bias: Tensor | None) -> Weight:
    """weight (C, 1, 3, 3), bias (C,) or None."""
    beyond = -weight.shape[0] % ALIGNED
    taps = F.pad(weight.float().reshape(-1, 9).T, (0, beyond)).contiguous()
    return Weight(taps, taps.new_zeros(taps.shape[1]) if bias is None else F.pad(bias.float(), (0, beyond)).contiguous())


@triton.jit
def _row(x, row, column, known, height, width, x_row, x_column):
    """The left, middle and right neighbours, float32, that pixels with middle `column` have in a row of the map; zeros outside of it."""
    width = tl.where((row >= 0) & (row < height), width, 0)
    at = x + row * x_row + (column * x_column)[:, None]
    left = tl.load(at - x_column, mask=((column >= 1) & (column <= width))[:, None] & known, other=0.0)
    middle = tl.load(at, mask=(column < width)[:, None] & known, other=0.0)
    right = tl.load(at + x_column, mask=(column + 1 < width)[:, None] & known, other=0.0)
    return left.to(tl.float32), middle.to(tl.float32), right.to(tl.float32)


@triton.jit
def _three_taps(taps, pitch, known):
    """A row of the filter."""
    left, middle = tl.load(taps, mask=known, other=0.0), tl.load(taps + pitch, mask=known, other=0.0)
    return left[None, :], middle[None, :], tl.load(taps + 2 * pitch, mask=known, other=0.0)[None, :]


@triton.jit
def _act(x, a, b, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr, dtype: tl.constexpr):
    return larger(a, b, x) if DYNAMIC else activate(x, ACTIVATION, dtype)


@triton.jit
def depthwise_conv2d_kernel(
    x, taps, bias, u, y, channels, height, width, out_height, out_width, x_image, x_row, x_column, pitch,
    TIMES: tl.constexpr, STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr, FAR: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """channels: of y, TIMES of each of x; they and strides of x come divided by VECTOR: so the compiler knows how wide loads may be.
    DYNAMIC: a dynamic ReLU of u (B, 2 channels) instead of an activation."""
    wait_turn()
    channels, x_image, x_row, x_column = channels * VECTOR, x_image * VECTOR, x_row * VECTOR, x_column * VECTOR
    program = tl.program_id(0)
    c = (program % tl.cdiv(channels, BLOCK_C)) * BLOCK_C + tl.arange(0, BLOCK_C)
    program //= tl.cdiv(channels, BLOCK_C)
    x_at = (program % tl.cdiv(out_width, BLOCK_W)) * BLOCK_W + tl.arange(0, BLOCK_W)
    program //= tl.cdiv(out_width, BLOCK_W)
    strips = tl.cdiv(out_height, ROWS)
    top, image = (program % strips) * ROWS, (program // strips).to(tl.int64)
    known = (c < channels)[None, :]
    y += ((image * out_height + top) * out_width + x_at)[:, None] * channels + c[None, :]
    x += image * x_image + (c // TIMES)[None, :]
    row, column = top * STRIDE, x_at * STRIDE
    if FAR:
        row, column = row.to(tl.int64), column.to(tl.int64)
    w0, w1, w2 = _three_taps(taps + c, pitch, c < channels)
    w3, w4, w5 = _three_taps(taps + 3 * pitch + c, pitch, c < channels)
    w6, w7, w8 = _three_taps(taps + 6 * pitch + c, pitch, c < channels)
    start = tl.load(bias + c, mask=c < channels, other=0.0)[None, :]
    a, b = start, start
    if DYNAMIC:
        a, b = slopes(u + image * 2 * channels, c, channels, c < channels)
        a, b = a[None, :], b[None, :]

    left, middle, right = _row(x, row - 1, column, known, height, width, x_row, x_column)
    total = start + left * w0 + middle * w1 + right * w2
    if STRIDE == 1:
        left, middle, right = _row(x, row, column, known, height, width, x_row, x_column)
        total += left * w3 + middle * w4 + right * w5
        below = start + left * w0 + middle * w1 + right * w2
        for i in tl.static_range(ROWS):
            left, middle, right = _row(x, row + i + 1, column, known, height, width, x_row, x_column)
            result = _act(total + left * w6 + middle * w7 + right * w8, a, b, ACTIVATION, DYNAMIC, y.dtype.element_ty)
            inside = (x_at < tl.where(top + i < out_height, out_width, 0))[:, None] & known
            tl.store(y + tl.cast(i * out_width, tl.int64) * channels, result.to(y.dtype.element_ty), mask=inside)
            total = below + left * w3 + middle * w4 + right * w5
            below = start + left * w0 + middle * w1 + right * w2
    else:
        for i in tl.static_range(ROWS):
            left, middle, right = _row(x, row + 2 * i, column, known, height, width, x_row, x_column)
            total += left * w3 + middle * w4 + right * w5
            left, middle, right = _row(x, row + 2 * i + 1, column, known, height, width, x_row, x_column)
            result = _act(total + left * w6 + middle * w7 + right * w8, a, b, ACTIVATION, DYNAMIC, y.dtype.element_ty)
            inside = (x_at < tl.where(top + i < out_height, out_width, 0))[:, None] & known
            tl.store(y + tl.cast(i * out_width, tl.int64) * channels, result.to(y.dtype.element_ty), mask=inside)
            total = start + left * w0 + middle * w1 + right * w2


# --- what launches it ---


def forward(
    x: Tensor, weight: Weight, y: Tensor, *, stride: int = 1, activation: str = "none", u: Tensor | None = None
) -> None:  # fmt: skip
    """y (B, m C, Ho, Wo), dense in channels_last, of x (B, C, H, W), whose channels have stride 1; u (B, 2 m C) contiguous: of a dynamic
    ReLU, instead of an activation."""
    if y.numel() == 0:
        return
    images, channels, out_height, out_width = y.shape
    strides = x.stride(0), *x.stride()[2:]
    vector, times = vector_of(channels, *strides), channels // x.shape[1]
    sizes = images, channels, out_height, out_width, stride, *((times,) if times > 1 else ())
    tiles = tuning.choose("depthwise_conv2d", x, sizes, tile(y), functools.partial(candidates, y))
    programs = images * blocks(out_height, tiles["ROWS"]) * blocks(out_width, tiles["BLOCK_W"]) * blocks(channels, tiles["BLOCK_C"])
    launch(
        depthwise_conv2d_kernel, programs,
        x, weight.taps, weight.bias, y if u is None else u, y, channels // vector, *x.shape[2:], out_height, out_width,
        *(each // vector for each in strides), weight.taps.shape[1], TIMES=times, STRIDE=stride, ACTIVATION=activation,
        DYNAMIC=u is not None, FAR=far(x), VECTOR=vector, enable_fp_fusion=True, **tiles,
    )  # fmt: skip


def tile(y: Tensor) -> tuning.Tile:
    """Eight values a thread; strips as long as there are more programs than multiprocessors hold."""
    images, channels, out_height, out_width = y.shape
    block_c = power_of_two(channels, 16, 64)
    block_w = power_of_two(out_width, 1, 1024 // block_c)
    across = images * blocks(out_width, block_w) * blocks(channels, block_c)
    rows = 8
    while rows > 1 and (across * blocks(out_height, rows) < 4 * processors(y) or out_height <= rows // 2):
        rows //= 2
    return _tile(rows, block_w, block_c, 8)


def candidates(y: Tensor) -> list[tuning.Tile]:
    found = {
        (min(rows, power_of_two(y.shape[2])), power_of_two(y.shape[3], 1, elements // min(c, power_of_two(y.shape[1], 16))),
         min(c, power_of_two(y.shape[1], 16)), values)
        for rows, elements, c, values in (
            (1, 512, 64, 4), (2, 1024, 64, 8), (4, 1024, 64, 8), (4, 1024, 64, 4), (8, 1024, 128, 8), (8, 2048, 64, 8), (8, 1024, 32, 8),
            (8, 1024, 64, 4),
        )
    }  # fmt: skip
    return [_tile(*each) for each in sorted(found)]


def _tile(rows: int, block_w: int, block_c: int, values: int) -> tuning.Tile:
    return {"ROWS": rows, "BLOCK_W": block_w, "BLOCK_C": block_c, "num_warps": max(1, block_w * block_c // (32 * values))}
