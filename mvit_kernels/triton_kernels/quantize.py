"""Bytes for real numbers and back, and of rows over their own ranges: the bits of `mvit_kernels/reference/quantize.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, power_of_two, wait_turn
from .pinned import clamp, rint, to_byte

Tensor = torch.Tensor
BLOCK = 2048


@triton.jit
def _channel(at, along, after, MANY: tl.constexpr):
    return (at // after) % along if MANY else at * 0


@triton.jit
def quantize_kernel(
    x, inverses, zero_points, y, size, along, after, inverse, zero_point, most,
    INVERSES: tl.constexpr, ZERO_POINTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """INVERSES, ZERO_POINTS: none, one, or many of them, one for each of `along` channels, `after` elements from channel to channel."""
    wait_turn()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if INVERSES != "none":
        inverse = tl.load(inverses + _channel(at, along, after, INVERSES == "many"), mask=inside, other=0.0)
    if ZERO_POINTS != "none":
        zero_point = tl.load(zero_points + _channel(at, along, after, ZERO_POINTS == "many"), mask=inside, other=0)
    tl.store(y + at, to_byte(value * inverse, zero_point, most), mask=inside)


@triton.jit
def quantize_image_kernel(
    x, inverses, zero_points, y, channels, pixels, inverse, zero_point, most,
    INVERSES: tl.constexpr, ZERO_POINTS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y (B, pixels, channels) of x (B, channels, pixels): what lies beside each other in one of them comes or goes together, what does not
    meets in L1. INVERSES, ZERO_POINTS: none, one, or many of them, one for each channel."""
    wait_turn()
    program, across, along = tl.program_id(0), tl.cdiv(channels, BLOCK_C), tl.cdiv(pixels, BLOCK_P)
    c = (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = (program // across % along) * BLOCK_P + tl.arange(0, BLOCK_P)
    image = (program // across // along).to(tl.int64) * channels * pixels
    known = (c < channels)[None, :]
    inside = (p < pixels)[:, None] & known
    value = tl.load(x + image + c.to(tl.int64)[None, :] * pixels + p[:, None], mask=inside, other=0.0).to(tl.float32)
    if INVERSES != "none":
        inverse = tl.load(inverses + _channel(c, channels, 1, INVERSES == "many")[None, :], mask=known, other=0.0)
    if ZERO_POINTS != "none":
        zero_point = tl.load(zero_points + _channel(c, channels, 1, ZERO_POINTS == "many")[None, :], mask=known, other=0)
    tl.store(y + image + p.to(tl.int64)[:, None] * channels + c[None, :], to_byte(value * inverse, zero_point, most), mask=inside)


@triton.jit
def dequantize_kernel(
    q, scales, zero_points, y, size, along, after, scale, zero_point,
    SCALES: tl.constexpr, ZERO_POINTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    wait_turn()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    byte = tl.load(q + at, mask=inside, other=0).to(tl.int64)
    if SCALES != "none":
        scale = tl.load(scales + _channel(at, along, after, SCALES == "many"), mask=inside, other=0.0)
    if ZERO_POINTS != "none":
        zero_point = tl.load(zero_points + _channel(at, along, after, ZERO_POINTS == "many"), mask=inside, other=0)
    tl.store(y + at, ((byte - zero_point).to(tl.float32) * scale).to(y.dtype.element_ty), mask=inside)


@triton.jit
def quantize_rows_kernel(x, q, scales, zero_points, rows, depth, x_row, step, most, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    wait_turn()
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    wide, inside_r = r.to(tl.int64)[:, None], r < rows
    low, high = tl.zeros((BLOCK_R,), tl.float32), tl.zeros((BLOCK_R,), tl.float32)
    for begin in range(0, depth, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        value = tl.load(x + wide * x_row + k[None, :], mask=inside_r[:, None] & (k < depth)[None, :], other=0.0).to(tl.float32)
        value = tl.where(value == value, value, 0.0)
        low, high = tl.minimum(low, tl.min(value, 1)), tl.maximum(high, tl.max(value, 1))
    most_float = most.to(tl.float32)
    scale = tl.maximum(high * step - low * step, 7.888609052210118e-31)  # 2^-100
    zero_point = rint(clamp(tl.div_rn(-low, scale), 0.0, most_float)).to(tl.int32)
    inverse = (1.0 / scale.to(tl.float64)).to(tl.float32)
    tl.store(scales + r, scale, mask=inside_r)
    tl.store(zero_points + r, zero_point, mask=inside_r)
    for begin in range(0, depth, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        inside = inside_r[:, None] & (k < depth)[None, :]
        value = tl.load(x + wide * x_row + k[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(q + wide * depth + k[None, :], to_byte(value * inverse[:, None], zero_point[:, None], most), mask=inside)


# --- what launches them ---


def quantize(
    x: Tensor, scales: Tensor | None, zero_points: Tensor | None, scale: float, zero_point: int, span: tuple[int, int], bits: int, y: Tensor
) -> None:
    """y of dense x. scales and zero_points: of one or of span[0] channels, span[1] elements from one to the next; None: the number."""
    inverses = _inverses(scales)
    launch(
        quantize_kernel, blocks(x.numel(), BLOCK),
        x, x if inverses is None else inverses, x if zero_points is None else zero_points, y, x.numel(), *span, 1.0 / scale, zero_point,
        2**bits - 1, INVERSES=_count(inverses), ZERO_POINTS=_count(zero_points), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def quantize_image(
    x: Tensor, scales: Tensor | None, zero_points: Tensor | None, scale: float, zero_point: int, bits: int, y: Tensor
) -> None:
    """y (B, C, H, W) dense in channels_last of x, contiguous; scales and zero_points as of `quantize`, of its channels."""
    if x.numel() == 0:
        return
    batch, channels, height, width = x.shape
    inverses, pixels = _inverses(scales), height * width
    block_c = power_of_two(channels, 1, 32)
    block_p = power_of_two(pixels, 1, 2048 // block_c)
    launch(
        quantize_image_kernel, batch * blocks(channels, block_c) * blocks(pixels, block_p),
        x, x if inverses is None else inverses, x if zero_points is None else zero_points, y, channels, pixels, 1.0 / scale, zero_point,
        2**bits - 1, INVERSES=_count(inverses), ZERO_POINTS=_count(zero_points), BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


def dequantize(
    q: Tensor, scales: Tensor | None, zero_points: Tensor | None, scale: float, zero_point: int, span: tuple[int, int], y: Tensor
) -> None:
    launch(
        dequantize_kernel, blocks(q.numel(), BLOCK),
        q, q if scales is None else scales, q if zero_points is None else zero_points, y, q.numel(), *span, scale, zero_point,
        SCALES=_count(scales), ZERO_POINTS=_count(zero_points), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def quantize_rows(x: Tensor, bits: int, q: Tensor, scale: Tensor, zero_point: Tensor) -> None:
    """Of x (M, K), whose rows have stride 1."""
    rows, depth = x.shape
    block_k = power_of_two(depth, 16, 1024)
    block_r = max(1, 2048 // block_k)
    launch(
        quantize_rows_kernel, blocks(rows, block_r),
        x, q, scale, zero_point, rows, depth, x.stride(0), 1 / (2**bits - 1), 2**bits - 1, BLOCK_R=block_r, BLOCK_K=block_k, num_warps=4,
    )  # fmt: skip


def _inverses(scales: Tensor | None) -> Tensor | None:
    return None if scales is None else (1.0 / scales.double()).float()


def _count(values: Tensor | None) -> str:
    return "none" if values is None else "one" if values.numel() == 1 else "many"
