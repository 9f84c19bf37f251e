"""Products of rows and, for `conv2d.py`, convolutions, 1x1 and 3x3: one kernel, an implicit product with the rows that output pixels see.

A program has a tile (BLOCK_M rows, BLOCK_N columns) of sums in registers while the depth passes in steps of BLOCK_K. Programs that share
their rows are neighbours, so that those come from memory once and from L2 after that; weights of these networks (at most 2 MB) stay in L2.

**Norms.** Rows are centred and scaled in float32 before they are rounded to 16 bits for the tensor cores, so a large mean costs no
accuracy. Mean and variance of a row itself (`NORM` layer) come from a pass over it that precedes the product: its second reading is from
L1 or L2. Those of a group of rows (`NORM` group) are given.

Floors on an H100 (3.0 TB/s, 700 TFLOP/s of 16-bit floats): at fewer than 2 N K / (N + K) = 230 operations a byte, which is all of
MobileViT's products but the widest, memory: rows of a, of y and of the residual once each."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from . import moments as moments_
from . import normed_gemm, tuning
from .activation import activate
from .dynamic_relu import larger, slopes
from .launch import blocks, by_warpgroups, launch, power_of_two, processors, vector_of, wait_turn
from .moments import combine_moments, write_part
from .products import dot

Tensor = torch.Tensor
ALIGNED = 16  # values: of weights, what an input begins with
MOST_PLANES = 4  # channels of an image whose taps are gathered together

# --- weights ---


class Weight(NamedTuple):
    """A matrix as the kernel reads it."""

    data: Tensor  # (N, pitch), the dtype of the rows
    bias: Tensor  # (N,) float32
    depths: tuple[int, int]  # channels of both inputs
    kernel: int


def arrange(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, second_channels: int = 0) -> Weight:
    """weight (N, C + C2) or (N, C + C2, k, k), bias (N,) or None, for rows of `dtype`. Columns of weights that read channels beside each
    other are in the order (tap, c), with zeros up to whole copies for each input; of images of few channels in the order (c, tap)."""
    columns, both = weight.shape[:2]
    kernel, depths = (weight.shape[2] if weight.ndim == 4 else 1), (both - second_channels, second_channels)
    if gathered(kernel, *depths):
        data = weight.flatten(1)
        data = F.pad(data, (0, -data.shape[1] % ALIGNED))
    else:
        parts = weight.reshape(columns, both, kernel * kernel).transpose(1, 2).split(depths, dim=2)
        data = torch.cat([F.pad(part, (0, -part.shape[2] % ALIGNED)) for part in parts], dim=2).flatten(1)
    bias = data.new_zeros(columns) if bias is None else bias
    return Weight(data.to(dtype).contiguous(), bias.float().contiguous(), depths, kernel)


def gathered(kernel: int, channels: int, second_channels: int) -> bool:
    """Whether a convolution reads its image value by value, in whatever format: of so few channels no load would be wide."""
    return kernel == 3 and channels <= MOST_PLANES and second_channels == 0


# --- the kernel ---


@triton.jit
def finish(
    total, m, inside_m, n, columns, bias, u, rows_of_group, residual, residual_row, y, parts, piece,
    ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr, RESIDUAL: tl.constexpr, COLLECT: tl.constexpr,
):  # fmt: skip
    """y rows m (those inside), columns n: act(total + bias) + residual, or with DYNAMIC the dynamic ReLU of u (groups, 2 columns), whose
    slopes come from L1; and with COLLECT the part of this tile."""
    known = n < columns
    inside = inside_m[:, None] & known[None, :]
    result = activate(total + tl.load(bias + n, mask=known, other=0.0)[None, :], ACTIVATION, y.dtype.element_ty)
    wide = m.to(tl.int64)[:, None]
    if DYNAMIC:
        of_group = (m // rows_of_group).to(tl.int64)[:, None] * (2 * columns)
        a, b = slopes(u + of_group, n[None, :], columns, inside)
        result = larger(a, b, result)
    if RESIDUAL:
        result += tl.load(residual + wide * residual_row + n[None, :], mask=inside, other=0.0).to(tl.float32)
    result = result.to(y.dtype.element_ty)
    tl.store(y + wide * columns + n[None, :], result, mask=inside)
    if COLLECT:
        count = tl.sum(tl.where(inside_m, 1.0, 0.0), 0) * tl.sum(tl.where(known, 1.0, 0.0), 0)
        write_part(parts, piece, result, inside, count)


@triton.jit
def _row_moments(a, depth, eps, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """(mean, 1 / sigma) of rows that begin at addresses a (m, 1)."""
    mean, m2 = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    for begin in range(0, depth, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        known = (k < depth)[None, :]
        value = tl.load(a + k[None, :], mask=known, other=0.0).to(tl.float32)
        n = tl.minimum(depth - begin, BLOCK_K).to(tl.float32)
        mean_here = tl.div_rn(tl.sum(value, 1), tl.zeros((BLOCK_M,), tl.float32) + n)  # as in moments.py
        distance = tl.where(known, value - mean_here[:, None], 0.0)
        before = tl.cast(begin, tl.float32)
        step = mean_here - mean
        mean += step * tl.div_rn(n, before + n)
        m2 += tl.sum(distance * distance, 1) + step * step * (before * n / (before + n))
    return mean, 1.0 / tl.sqrt(m2 / depth + eps)


@triton.jit
def _products(
    total, x, weight, depth, y_at, x_at, height, width, row, column, mean, inverse, inside_n, pitch_of_tap,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, NORM: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """total + sum over taps and channels of one input. x: addresses (m, 1) of the images; y_at, x_at: the output pixel of each row;
    weight: addresses (1, n) of the first channel, pitch_of_tap values from tap to tap."""
    steps = tl.cdiv(depth, BLOCK_K)
    for step in range(0, KERNEL * KERNEL * steps):
        tap, k = step // steps, (step % steps) * BLOCK_K + tl.arange(0, BLOCK_K)
        known = (k < depth)[None, :]
        if KERNEL == 1:
            a = tl.load(x + k[None, :], mask=known, other=0.0)
            if NORM != "none":
                a = tl.where(known, (a.to(tl.float32) - mean[:, None]) * inverse[:, None], 0.0).to(a.dtype)
        else:
            row_at, column_at = y_at * STRIDE + tap // KERNEL - KERNEL // 2, x_at * STRIDE + tap % KERNEL - KERNEL // 2
            in_map = ((row_at >= 0) & (row_at < height) & (column_at >= 0) & (column_at < width))[:, None]
            a = tl.load(x + (row_at * row + column_at * column)[:, None] + k[None, :], mask=in_map & known, other=0.0)
        w = tl.load(weight + tap * pitch_of_tap + k[:, None], mask=(k < depth)[:, None] & inside_n, other=0.0)
        total = dot(a, w, total)
    return total


@triton.jit
def gemm_kernel(
    x, second, weight, bias, moments, u, residual, y, parts, rows, columns, depth, second_depth, rows_of_group, pieces, eps,
    height, width, out_height, out_width, x_image, x_row, x_column, second_image, second_row, second_column, residual_row, pitch,
    tap, first, KERNEL: tl.constexpr, STRIDE: tl.constexpr, SECOND: tl.constexpr, NORM: tl.constexpr, PIECES: tl.constexpr,
    ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr, RESIDUAL: tl.constexpr, COLLECT: tl.constexpr, FAR: tl.constexpr,
    VECTOR: tl.constexpr, OUT_VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (rows, columns): a row is an output pixel of x (B, H, W, C) and second, KERNEL x KERNEL taps around it. Depths and strides of the
    inputs come divided by VECTOR, columns and the residual's by OUT_VECTOR: so the compiler knows how wide loads may be. PIECES: moments
    are parts, of groups that end where tiles do."""
    wait_turn()
    depth, second_depth, columns, residual_row = depth * VECTOR, second_depth * VECTOR, columns * OUT_VECTOR, residual_row * OUT_VECTOR
    x_image, x_row, x_column = x_image * VECTOR, x_row * VECTOR, x_column * VECTOR
    across = tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    m = (program // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (program % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows beyond the last repeat it, so that their loads need no mask.
    pixel = tl.minimum(m, rows - 1)
    image, y_at, x_at = pixel // (out_height * out_width), pixel // out_width % out_height, pixel % out_width
    if FAR:
        y_at, x_at = y_at.to(tl.int64), x_at.to(tl.int64)
    image = image.to(tl.int64)
    inside_n = (n < columns)[None, :]
    w = weight + n.to(tl.int64)[None, :] * pitch
    at = x + (image * x_image)[:, None]
    if KERNEL == 1:
        at += (y_at * STRIDE * x_row + x_at * STRIDE * x_column)[:, None]
    if NORM == "layer":
        mean, inverse = _row_moments(at, depth, eps, BLOCK_M, BLOCK_K)
    elif PIECES > 0:
        of_group = (program // across) * BLOCK_M // rows_of_group
        mean, inverse = combine_moments(moments, of_group, pieces, eps, PIECES)
        mean, inverse = mean + tl.zeros((BLOCK_M,), tl.float32), inverse + tl.zeros((BLOCK_M,), tl.float32)
    elif NORM == "group":
        of_group = moments + (pixel // rows_of_group) * 2
        mean = tl.load(of_group).to(tl.float32)
        inverse = (1.0 / tl.sqrt(tl.load(of_group + 1) + eps)).to(tl.float32)
    else:
        mean, inverse = 0.0, 0.0
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    total = _products(
        total, at, w, depth, y_at, x_at, height, width, x_row, x_column, mean, inverse, inside_n, tap, KERNEL, STRIDE, NORM, BLOCK_K
    )  # fmt: skip
    if SECOND:
        second_image, second_row, second_column = second_image * VECTOR, second_row * VECTOR, second_column * VECTOR
        at = second + (image * second_image)[:, None]
        if KERNEL == 1:
            at += (y_at * STRIDE * second_row + x_at * STRIDE * second_column)[:, None]
        total = _products(
            total, at, w + first, second_depth, y_at, x_at, height, width, second_row, second_column, mean, inverse, inside_n, tap,
            KERNEL, STRIDE, NORM, BLOCK_K,
        )  # fmt: skip
    finish(
        total, m, m < rows, n, columns, bias, u, rows_of_group, residual, residual_row, y, parts, program, ACTIVATION, DYNAMIC, RESIDUAL,
        COLLECT,
    )  # fmt: skip


# --- what launches it ---


def gemm(
    a: Tensor, weight: Weight, y: Tensor, *, second: Tensor | None = None, moments: Tensor | None = None, layer_norm: bool = False,
    eps: float = 0.0, activation: str = "none", residual: Tensor | None = None, collect: int = 0,
) -> Tensor:  # fmt: skip
    """y (M, N) of a (M, K) and second, with rows of stride 1, as the residual's; the moments (collect, 2) float64 of groups of its rows."""
    if y.numel() == 0:
        return moments_.collect(y, collect)
    strides, beside = ((0 if each is None else each.stride(0), 0, 0) for each in (a, second))  # a row is an image of one pixel
    groups = 1 if moments is None else moments.shape[0]
    norm = "layer" if layer_norm else "none" if moments is None else "group"
    if norm != "none" and residual is None and not collect and normed_gemm.takes(a, weight):
        moments = moments_.joined(moments)
        normed_gemm.forward(a, weight, y, layer_norm=layer_norm, moments=moments, eps=eps, activation=activation)
        return moments_.collect(y, 0)
    return launch_product(
        a, second, weight, y, strides, beside, (1, 1, 1, 1), 1, False, moments=moments, groups=groups, norm=norm, eps=eps,
        activation=activation, residual=residual, residual_row=0 if residual is None else residual.stride(0), collect=collect,
    )  # fmt: skip


def launch_product(
    x: Tensor, second: Tensor | None, weight: Weight, y: Tensor, strides: tuple[int, ...], beside: tuple[int, ...], size: tuple[int, ...],
    stride: int, is_far: bool, *, moments: Tensor | None = None, groups: int = 1, norm: str = "none", eps: float = 0.0, activation: str,
    residual: Tensor | None, residual_row: int, u: Tensor | None = None, collect: int = 0,
) -> Tensor:  # fmt: skip
    """strides: from image to image of x, row to row, pixel to pixel; beside: those of second; size: height and width of x, and of y."""
    data, columns, depths = weight.data, weight.bias.shape[0], weight.depths
    rows = y.numel() // columns
    vector, out_vector = vector_of(*depths, *strides, *beside), vector_of(columns, residual_row)
    of_moments = rows // collect if collect and rows // collect % 16 == 0 else 0
    at_end = tuple(name for name, each in (("residual", residual), ("dynamic", u)) if each is not None)
    sizes = rows, columns, *depths, weight.kernel, stride, norm, of_moments, *at_end
    guess, others = tile(rows, weight, x, of_moments, bool(at_end)), functools.partial(candidates, rows, weight, x, of_moments)
    tiles = tuning.choose("gemm", x, sizes, guess, others)
    programs = blocks(rows, tiles["BLOCK_M"]) * blocks(columns, tiles["BLOCK_N"])
    in_tiles = collect > 0 and rows // collect % tiles["BLOCK_M"] == 0
    parts = moments_.empty_parts(y, collect, programs // collect) if in_tiles else weight.bias
    padded = [each + -each % ALIGNED for each in depths]
    pieces = 0
    if moments is not None and moments.ndim == 3:
        if rows // groups % tiles["BLOCK_M"] == 0 and moments.shape[1] <= moments_.MOST_COMBINED:
            pieces = moments.shape[1]
        else:
            moments = moments_.join(moments)
    launch(
        gemm_kernel, programs,
        x, x if second is None else second, data, weight.bias, weight.bias if moments is None else moments,
        y if u is None else u, y if residual is None else residual, y, parts, rows, columns // out_vector,
        *(each // vector for each in depths), rows // groups, pieces, eps, *size, *(each // vector for each in (*strides, *beside)),
        residual_row // out_vector, data.stride(0), sum(padded), padded[0], KERNEL=weight.kernel, STRIDE=stride,
        SECOND=second is not None, NORM=norm, PIECES=power_of_two(pieces) if pieces else 0, ACTIVATION=activation, DYNAMIC=u is not None,
        RESIDUAL=residual is not None, COLLECT=in_tiles, FAR=is_far, VECTOR=vector, OUT_VECTOR=out_vector, enable_fp_fusion=True, **tiles,
    )  # fmt: skip
    return moments_.collected(parts) if in_tiles else moments_.collect(y, collect)


def tile(rows: int, weight: Weight, x: Tensor, rows_of_group: int = 0, residual: bool = False) -> tuning.Tile:
    """The largest tile that gives every multiprocessor a program: large ones read less, but half of a GPU computes nothing. Moments are
    collected in tiles that no group of rows ends in, where there are such. On sm_90 a residual beside 128 columns takes the registers of a
    second program: three of half as many fit."""
    if x.dtype == torch.float32:  # on no tensor cores: 16 sums a thread
        return _tile(power_of_two(rows, 16, 64), 32, 32, 2)
    columns, depth = weight.bias.shape[0], max(weight.depths)
    wide, block_k = power_of_two(columns, 16, 64 if residual and by_warpgroups(x) else 128), power_of_two(depth, 16, 64)
    if weight.kernel > 1 and 0 < depth % 64 <= 32:
        block_k = min(block_k, 32)  # nine times half a step of nothing
    # Of one step, more take room from other programs; of two inputs, registers.
    stages = 2 if (weight.kernel == 1 and sum(weight.depths) <= block_k) or (weight.depths[1] and block_k == 64) else 3
    for block_m, block_n in ((128, wide), (64, min(wide, 64)), (64, min(wide, 32)), (32, min(wide, 32))):
        if blocks(rows, block_m) * blocks(columns, block_n) >= processors(x) and rows_of_group % block_m == 0:
            return _tile(block_m, block_n, block_k, stages)
    return _tile(16, min(wide, 32), power_of_two(depth, 16, 128), 3)  # few programs, whose time is that of their loads: more on the way


def candidates(rows: int, weight: Weight, x: Tensor, rows_of_group: int = 0) -> list[tuning.Tile]:
    if x.dtype == torch.float32:
        return []
    columns, depth = weight.bias.shape[0], max(weight.depths)
    few = ((16, 16, 128, 3), (16, 32, 128, 4), (16, 64, 64, 3), (32, 32, 64, 3), (32, 64, 64, 4), (64, 32, 64, 4))
    many = ((128, 128, 64, 2), (128, 64, 64, 3), (64, 256, 64, 3), (64, 128, 64, 3), (64, 64, 64, 2))
    found = {
        (m, min(n, power_of_two(columns, 16)), min(k, power_of_two(depth, 16)), stages)
        for m, n, k, stages in (few if rows * columns <= 128 * 128 * processors(x) else many)
        if rows_of_group % m == 0
    }  # fmt: skip
    return [_tile(*each) for each in sorted(found)]


def _tile(block_m: int, block_n: int, block_k: int, stages: int) -> tuning.Tile:
    warps = 8 if block_m * block_n > 8192 else 4
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps, "num_stages": stages}
