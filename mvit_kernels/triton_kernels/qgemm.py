"""Products and, for `qconv2d.py`, convolutions of bytes with zero-points: one kernel, an implicit product with the rows that output pixels
see.

Triton's products take int8, so a - 128 stands for a byte a, and 128 sum_k w comes back at the end:

    sum_k a[m,k] w[n,k]  =  sum_k (a[m,k] - 128) w[n,k]  +  128 sum_k w[n,k]

All int32 additions are modulo 2^32: only what they end with must fit. csrc/INTEGERS.md explains zero-points, borders and the epilogue.

**Six bits.** A block of 128 values of k is three planes of 32 bytes: the lower six bits of plane i are the values 32 i .. 32 i + 31, and
the two upper bits of the three, put together, the values 96 .. 127. Each value is kept in the upper six bits of a byte, four times as
large and with its sign where a byte has it, so that a mask or a shift unpacks it; the sum is divided by four, exactly, at its end."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .dynamic_relu import larger, slopes
from .launch import blocks, launch, power_of_two, wait_turn
from .pinned import Finish, epilogue, floats_to_byte
from .products import signed

Tensor = torch.Tensor
ALIGNED = 16  # bytes: the widest copy into shared memory
SIX_BIT_BLOCK = 128  # values of k, in 96 bytes

# --- weights ---


class Weight(NamedTuple):
    """An int8 matrix as the kernel reads it."""

    data: Tensor  # (N, taps, pitch) int8, or (N, pitch) uint8 of six bits
    column_sum: Tensor  # (N,) int32
    columns: int
    depths: tuple[int, int]  # channels of both inputs
    taps: int
    bits: int


def arrange(weight: Tensor, bits: int = 8, taps: int = 1, second_channels: int = 0) -> Weight:
    """weight (N, taps (C + C2)) int8 with columns in the order (tap, c), on its device. Zeros fill the channels of each input up to whole
    copies. Six bits are kept where there is one tap and one input; elsewhere weights are the smaller part of what is read."""
    columns, both = weight.shape[0], weight.shape[1] // taps
    depths = both - second_channels, second_channels
    column_sum = weight.sum(1, dtype=torch.int32)
    if bits == 6 and taps == 1 and second_channels == 0:
        return Weight(_planes(weight), column_sum, columns, depths, 1, 6)
    parts = weight.reshape(columns, taps, both).split(depths, dim=2)
    data = torch.cat([F.pad(part, (0, -part.shape[2] % ALIGNED)) for part in parts], dim=2).contiguous()
    return Weight(data, column_sum, columns, depths, taps, 8)


def _planes(weight: Tensor) -> Tensor:
    """(N, K) int8 in [-32, 31] -> (N, 96 ceil(K / 128)) uint8."""
    v = F.pad(weight, (0, -weight.shape[1] % SIX_BIT_BLOCK)).unflatten(1, (-1, 4, SIX_BIT_BLOCK // 4)).view(torch.uint8) & 63
    last = v[:, :, 3]
    return torch.stack([v[:, :, i] | (last >> (2 * i) & 3) << 6 for i in range(3)], dim=2).flatten(1)


# --- kernels ---


@triton.jit
def _products(
    total, x, zero_point, weight, depth, y, x_pixel, height, width, row, column,
    inside_n, KERNEL: tl.constexpr, STRIDE: tl.constexpr, BORDER: tl.constexpr, TAP: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """total + sum over taps and channels of one input. x: addresses (m, 1) of the images; y, x_pixel: the output pixel of each row; weight:
    addresses (1, n) of the first channel, TAP bytes from tap to tap."""
    steps = tl.cdiv(depth, BLOCK_K)
    for step in range(0, KERNEL * KERNEL * steps):
        tap, k = step // steps, (step % steps) * BLOCK_K + tl.arange(0, BLOCK_K)
        known = (k < depth)[None, :]
        if KERNEL == 1:
            row_at, column_at = y * STRIDE, x_pixel * STRIDE
            at = x + (row_at * row + column_at * column)[:, None] + k[None, :]
            a = tl.load(at, mask=known, other=0)
        else:
            row_at, column_at = y * STRIDE + tap // KERNEL - KERNEL // 2, x_pixel * STRIDE + tap % KERNEL - KERNEL // 2
            in_map = ((row_at >= 0) & (row_at < height) & (column_at >= 0) & (column_at < width))[:, None]
            at = x + (row_at * row + column_at * column)[:, None] + k[None, :]
            a = tl.load(at, mask=in_map & known, other=0)
            if not BORDER:  # what is outside of the map is the zero-point, a byte
                outside = tl.load(zero_point + k, mask=k < depth, other=0).to(tl.uint8)
                a = tl.where(in_map, a, outside[None, :])
        w = tl.load(weight + tap * TAP + k[:, None], mask=(k < depth)[:, None] & inside_n, other=0)
        total = tl.dot(signed(a), w, total, out_dtype=tl.int32)
    return total


@triton.jit
def _six_bit_products(total, a, weight, depth, inside_n):
    """total + four times the sum; a: addresses (m, 1) of rows, weight: addresses (1, n) of columns."""
    within = tl.arange(0, 32)
    for block in range(0, tl.cdiv(depth, 128)):
        at = weight + block * 96 + within[:, None]
        plane0 = tl.load(at, mask=inside_n, other=0)
        plane1 = tl.load(at + 32, mask=inside_n, other=0)
        plane2 = tl.load(at + 64, mask=inside_n, other=0)
        k = block * 128 + within
        rows = a + k[None, :]
        part = signed(tl.load(rows, mask=(k < depth)[None, :], other=128))
        total = tl.dot(part, (plane0 << 2).to(tl.int8, bitcast=True), total, out_dtype=tl.int32)
        part = signed(tl.load(rows + 32, mask=(k + 32 < depth)[None, :], other=128))
        total = tl.dot(part, (plane1 << 2).to(tl.int8, bitcast=True), total, out_dtype=tl.int32)
        part = signed(tl.load(rows + 64, mask=(k + 64 < depth)[None, :], other=128))
        total = tl.dot(part, (plane2 << 2).to(tl.int8, bitcast=True), total, out_dtype=tl.int32)
        last = ((plane0 >> 4) & 12) | ((plane1 >> 2) & 48) | (plane2 & 192)
        part = signed(tl.load(rows + 96, mask=(k + 96 < depth)[None, :], other=128))
        total = tl.dot(part, last.to(tl.int8, bitcast=True), total, out_dtype=tl.int32)
    return total


@triton.jit
def qgemm_kernel(
    x, second, weight, column_sum, channels, channels_stride, table, segments, residual, residual_scale, residual_zero_point, u, row_scale,
    row_zero_point, zero_point, border, border_stride, y, rows, columns, depth, second_depth, height, width, out_height, out_width,
    x_image, x_row, x_column, second_image, second_row, second_column, residual_stride, pitch,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, TAP: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, BORDER: tl.constexpr,
    BITS: tl.constexpr, ROW_ZERO_POINT: tl.constexpr, ROW_SCALE: tl.constexpr,
    OUT: tl.constexpr, PLAIN: tl.constexpr, ACTIVATION: tl.constexpr, TABLE: tl.constexpr, RESIDUAL: tl.constexpr,
    DYNAMIC: tl.constexpr, FAR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (rows, columns): a row is an output pixel of x (B, H, W, C) and second, KERNEL x KERNEL taps around it. DYNAMIC: a dynamic ReLU of
    u (B, 2 columns) stands between floats and bytes."""
    wait_turn()
    across = tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    m = (program // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (program % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows beyond the last repeat it, so that their loads need no mask.
    pixel = tl.minimum(m, rows - 1)
    image, y_at, x_at = pixel // (out_height * out_width), pixel // out_width % out_height, pixel % out_width
    if FAR:
        y_at, x_at = y_at.to(tl.int64), x_at.to(tl.int64)
    inside_n = (n < columns)[None, :]
    image = image.to(tl.int64)
    w = weight + n.to(tl.int64)[None, :] * pitch
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    if BITS == 6:
        at = image * x_image + y_at * STRIDE * x_row + x_at * STRIDE * x_column
        total = _six_bit_products(total, x + at[:, None], w, depth, inside_n) >> 2
    else:
        total = _products(
            total, x + (image * x_image)[:, None], zero_point, w, depth, y_at, x_at, height, width, x_row, x_column, inside_n,
            KERNEL, STRIDE, BORDER, TAP, BLOCK_K,
        )  # fmt: skip
        if SECOND:
            total = _products(
                total, second + (image * second_image)[:, None], zero_point + depth, w + FIRST, second_depth, y_at, x_at, height, width,
                second_row, second_column, inside_n, KERNEL, STRIDE, BORDER, TAP, BLOCK_K,
            )  # fmt: skip

    known = n < columns
    sum_of_weights = tl.load(column_sum + n, mask=known, other=0)
    total += (sum_of_weights * 128)[None, :]
    if BORDER:
        vertical = tl.where(y_at == 0, 1, 0) + tl.where(y_at * STRIDE + 1 >= height, 2, 0)
        horizontal = tl.where(x_at == 0, 1, 0) + tl.where(x_at * STRIDE + 1 >= width, 2, 0)
        at = (vertical * 4 + horizontal)[:, None] * border_stride + n[None, :]
        total += tl.load(border + at, mask=inside_n, other=0)
    else:
        total += tl.load(channels + n, mask=known, other=0)[None, :]
    if ROW_ZERO_POINT:
        total -= tl.load(row_zero_point + pixel)[:, None] * sum_of_weights[None, :]
    scale_of_rows = tl.load(row_scale + pixel) if ROW_SCALE else 0.0
    inside = (m < rows)[:, None] & inside_n
    wide = pixel.to(tl.int64)[:, None]
    residual += wide * residual_stride + n[None, :]
    result = epilogue(
        total, n, columns, channels, channels_stride, table, segments, residual, inside, scale_of_rows, residual_scale,
        residual_zero_point, OUT, PLAIN, ACTIVATION, TABLE, RESIDUAL, ROW_SCALE,
    )  # fmt: skip
    if DYNAMIC:
        a, b = slopes(u + image[:, None] * (2 * columns), n[None, :], columns, inside)
        result = floats_to_byte(larger(a, b, result), n, columns, channels, channels_stride)
    tl.store(y + wide * columns + n[None, :], result.to(y.dtype.element_ty), mask=inside)


# --- what launches it ---


def qgemm(
    a: Tensor, weight: Weight, finish: Finish, y: Tensor, row_scale: Tensor | None = None, row_zero_point: Tensor | None = None
) -> None:
    """y (M, N) of a (M, K) with rows of stride 1."""
    image = a.shape[0] * a.stride(0)
    launch_product(
        a, None, weight, finish, y, (image, image, a.stride(0)), (0, 0, 0), (1, a.shape[0], 1, a.shape[0]), 1, 1, row_scale=row_scale,
        row_zero_point=row_zero_point,
    )  # fmt: skip


def launch_product(
    x: Tensor, second: Tensor | None, weight: Weight, finish: Finish, y: Tensor, strides: tuple[int, ...], second_strides: tuple[int, ...],
    size: tuple[int, ...], kernel: int, stride: int, *, row_scale: Tensor | None = None, row_zero_point: Tensor | None = None,
    zero_point: Tensor | None = None, border: Tensor | None = None,
) -> None:  # fmt: skip
    columns = weight.columns
    if y.numel() == 0:
        return
    rows, data, residual = y.numel() // columns, weight.data, finish.residual
    residual_stride = 0 if residual is None else residual.stride(0) if residual.ndim == 2 else columns
    block_m, block_n, block_k, warps, stages = tile(rows, columns, weight, finish.segments is not None)
    spare = finish.channels
    tap = data.shape[2] if data.ndim == 3 else 0
    launch(
        qgemm_kernel, blocks(rows, block_m) * blocks(columns, block_n),
        x, x if second is None else second, data, weight.column_sum, *finish.arguments(),
        *(spare if each is None else each for each in (row_scale, row_zero_point, zero_point, border)),
        0 if border is None else border.stride(0), y, rows, columns, *weight.depths, *size, *strides, *second_strides, residual_stride,
        data.stride(0), KERNEL=kernel, STRIDE=stride, TAP=tap, FIRST=weight.depths[0] + -weight.depths[0] % ALIGNED,
        SECOND=second is not None, BORDER=border is not None, BITS=weight.bits, ROW_ZERO_POINT=row_zero_point is not None,
        ROW_SCALE=row_scale is not None, **finish.settings(), FAR=_far(strides, second_strides, size), BLOCK_M=block_m, BLOCK_N=block_n,
        BLOCK_K=block_k, num_warps=warps, num_stages=stages,
    )  # fmt: skip


def _far(strides: tuple[int, ...], second_strides: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether offsets inside an image need 64 bits."""
    height, width = size[:2]
    return any(each[1] * (height + 1) + each[2] * (width + 1) >= 2**31 for each in (strides, second_strides))


def tile(rows: int, columns: int, weight: Weight, polynomial: bool) -> tuple[int, int, int, int, int]:
    """(rows, columns and depth of a tile, warps, stages of the pipeline). polynomial: results are those of an activation by segments."""
    depth = max(weight.depths)
    block_k = min(128, power_of_two(depth, 32))
    while block_k > 32 and -depth % block_k >= max(block_k // 2, 1):  # no half of it beyond the last
        block_k //= 2
    # At most 32 sums a thread: the epilogue needs several registers for each.
    block_n = 64 if columns > 32 and rows >= 512 else 32
    block_m = 128 if rows >= 8192 else 64 if rows >= 512 else power_of_two(rows, 16, 32)
    # A polynomial needs addresses of its coefficients, too: of 32 sums a thread Triton 3.6 spills some. Twice the warps have half the
    # registers each, so that twice as many run. Not of six bits, which each warp unpacks for itself.
    of_16 = polynomial and weight.bits == 8 and block_m * block_n == 64 * 64
    return block_m, block_n, block_k, 8 if block_m == 128 or of_16 else 4, 3
