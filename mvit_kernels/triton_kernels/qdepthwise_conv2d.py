"""Depthwise 3x3 convolution of bytes with zero-points: a tile of output pixels and channels has its nine taps in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .dynamic_relu import larger, slopes
from .launch import blocks, far, launch, power_of_two, wait_turn
from .pinned import Finish, epilogue, floats_to_byte

Tensor = torch.Tensor


@triton.jit
def qdepthwise_conv2d_kernel(
    x, weight, zero_point, channels, channels_stride, table, segments, residual, residual_scale, residual_zero_point, u, y,
    rows, count, height, width, out_height, out_width, x_image, x_row, x_column,
    TIMES: tl.constexpr, STRIDE: tl.constexpr, OUT: tl.constexpr, PLAIN: tl.constexpr, ACTIVATION: tl.constexpr, TABLE: tl.constexpr,
    RESIDUAL: tl.constexpr, DYNAMIC: tl.constexpr, FAR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """count: channels of y, TIMES of each of x. DYNAMIC: a dynamic ReLU of u (B, 2 count) stands between floats and bytes."""
    wait_turn()
    across = tl.cdiv(count, BLOCK_C)
    program = tl.program_id(0)
    m = (program // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < count
    image, y_at, x_at = m // (out_height * out_width), m // out_width % out_height, m % out_width
    if FAR:
        y_at, x_at = y_at.to(tl.int64), x_at.to(tl.int64)
    x += (image.to(tl.int64) * x_image)[:, None] + (c // TIMES)[None, :]
    outside = tl.load(zero_point + c, mask=known, other=0)[None, :]
    total = tl.load(channels + c, mask=known, other=0)[None, :] + tl.zeros((BLOCK_M, BLOCK_C), tl.int32)
    for tap in tl.static_range(9):
        row, column = y_at * STRIDE + (tap // 3 - 1), x_at * STRIDE + (tap % 3 - 1)
        in_map = ((m < rows) & (row >= 0) & (row < height) & (column >= 0) & (column < width))[:, None]
        byte = tl.load(x + (row * x_row + column * x_column)[:, None], mask=in_map & known[None, :], other=0).to(tl.int32)
        w = tl.load(weight + c * 9 + tap, mask=known, other=0).to(tl.int32)
        total += tl.where(in_map, byte, outside) * w[None, :]
    inside = (m < rows)[:, None] & known[None, :]
    at = m.to(tl.int64)[:, None] * count + c[None, :]
    result = epilogue(
        total, c, count, channels, channels_stride, table, segments, residual + at, inside, 0.0, residual_scale, residual_zero_point,
        OUT, PLAIN, ACTIVATION, TABLE, RESIDUAL, False,
    )  # fmt: skip
    if DYNAMIC:
        a, b = slopes(u + (image.to(tl.int64) * (2 * count))[:, None], c[None, :], count, inside)
        result = floats_to_byte(larger(a, b, result), c, count, channels, channels_stride)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


# --- what launches it ---


def qdepthwise_conv2d(x: Tensor, weight: Tensor, zero_point: Tensor, stride: int, finish: Finish, y: Tensor) -> None:
    """y (B, C, Ho, Wo) of x (B, C / m, H, W), whose channels have stride 1; weight (C, 1, 3, 3) int8; y and residual dense in
    channels_last."""
    if y.numel() == 0:
        return
    count = y.shape[1]
    rows = y.numel() // count
    block_c = power_of_two(count, 16, 128)
    block_m = power_of_two(rows, 1, 2048 // block_c)
    image, _, row, column = x.stride()
    launch(
        qdepthwise_conv2d_kernel, blocks(rows, block_m) * blocks(count, block_c),
        x, weight, zero_point, *finish.arguments(), y, rows, count, *x.shape[2:], *y.shape[2:], image, row, column,
        TIMES=count // x.shape[1], STRIDE=stride, **finish.settings(), FAR=far(x), BLOCK_M=block_m, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
