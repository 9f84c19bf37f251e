"""Convolutions of 1x1 and 3x3: products of the rows that output pixels see, by the kernel of `gemm.py`. Images of a few channels, which
come in any format and have no wide loads, have a kernel of their own, whose depth is one step."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .gemm import Weight, finish, gathered, launch_product
from .launch import blocks, far, launch, power_of_two, processors, vector_of, wait_turn
from .products import dot

Tensor = torch.Tensor


@triton.jit
def gathered_conv2d_kernel(
    x, weight, bias, residual, y, rows, columns, channels, height, width, out_height, out_width, x_image, x_channel, x_row, x_column,
    residual_row, pitch, STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, FAR: tl.constexpr,
    OUT_VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (rows, columns) of an image of a few channels in any format: its 9 C values around a pixel are one step of the depth."""
    wait_turn()
    columns, residual_row = columns * OUT_VECTOR, residual_row * OUT_VECTOR
    across = tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    m = (program // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (program % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    image, y_at, x_at = m // (out_height * out_width), m // out_width % out_height, m % out_width
    row, column = (y_at * STRIDE - 1)[:, None] + (k // 3 % 3)[None, :], (x_at * STRIDE - 1)[:, None] + (k % 3)[None, :]
    inside = (m < rows)[:, None] & (k < 9 * channels)[None, :] & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    channel = (k // 9)[None, :]
    if FAR:
        row, column, channel = row.to(tl.int64), column.to(tl.int64), channel.to(tl.int64)
    at = x + (image.to(tl.int64) * x_image)[:, None] + channel * x_channel + row * x_row + column * x_column
    a = tl.load(at, mask=inside, other=0.0)
    w = tl.load(weight + n[None, :] * pitch + k[:, None], mask=(n < columns)[None, :] & (k < pitch)[:, None], other=0.0)
    total = dot(a, w, tl.zeros((BLOCK_M, BLOCK_N), tl.float32))
    finish(total, m, m < rows, n, columns, bias, y, 1, residual, residual_row, y, y, 0, ACTIVATION, False, RESIDUAL, False)


def conv2d(
    x: Tensor, weight: Weight, y: Tensor, *, second: Tensor | None = None, stride: int = 1, activation: str = "none",
    residual: Tensor | None = None, u: Tensor | None = None,
) -> None:  # fmt: skip
    """y (B, N, Ho, Wo) of x (B, C, H, W) and second, whose channels have stride 1 (those of a `gathered` image any); y and the residual are
    dense in channels_last. u (B, 2 N) contiguous: of a dynamic ReLU, of an image that is not `gathered`."""
    if y.numel() == 0:
        return
    columns, size = y.shape[1], tuple(each for map_ in (x, y) for each in map_.shape[2:])
    row = 0 if residual is None else columns
    if gathered(weight.kernel, *weight.depths):
        _gathered(x, weight, y, stride, size, activation, residual, row)
        return
    alone = weight.kernel == 1 and stride == 1 and all(each is None or _evenly_spaced(each) for each in (x, second))
    if alone:
        size = (1, 1, 1, 1)
    launch_product(
        x, second, weight, y, _steps(x, alone), _steps(second, alone), size, stride, far(x, second), groups=y.shape[0],
        activation=activation, residual=residual, residual_row=row, u=u,
    )  # fmt: skip


def _evenly_spaced(x: Tensor) -> bool:
    """Whether the pixels of all images of x are as far from each other."""
    return x.stride(2) == x.shape[3] * x.stride(3) and x.stride(0) == x.shape[2] * x.stride(2)


def _steps(x: Tensor | None, alone: bool) -> tuple[int, int, int]:
    """From image to image, row to row and pixel to pixel. alone: each pixel is an image, whose place takes no divisions."""
    if x is None:
        return 0, 0, 0
    return (x.stride(3), 0, 0) if alone else (x.stride(0), x.stride(2), x.stride(3))


def _gathered(
    x: Tensor, weight: Weight, y: Tensor, stride: int, size: tuple[int, ...], activation: str, residual: Tensor | None, residual_row: int
) -> None:
    columns = y.shape[1]
    rows, out_vector = y.numel() // columns, vector_of(columns)
    block_n = power_of_two(columns, 16, 64)
    block_m = 128 if rows >= 128 * processors(x) else 64 if rows > 64 else 16
    launch(
        gathered_conv2d_kernel, blocks(rows, block_m) * blocks(columns, block_n),
        x, weight.data, weight.bias, y if residual is None else residual, y, rows, columns // out_vector, x.shape[1], *size, *x.stride(),
        residual_row // out_vector, weight.data.stride(0), STRIDE=stride, ACTIVATION=activation, RESIDUAL=residual is not None, FAR=far(x),
        OUT_VECTOR=out_vector, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=power_of_two(9 * x.shape[1], 16), num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
