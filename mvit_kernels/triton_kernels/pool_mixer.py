"""Pixels of a map, moved towards the mean of their 3x3 neighbourhood. Of the nine loads of a value eight hit L1.

Floor on an H100: memory, x once and y once at 3.0 TB/s."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, power_of_two, vector_of, wait_turn

Tensor = torch.Tensor


@triton.jit
def pool_mixer_kernel(
    x, scale, y, pixels, channels, height, width, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """x, y: dense in channels_last; pixels: of all images. channels come divided by VECTOR."""
    wait_turn()
    channels = channels * VECTOR
    program, across = tl.program_id(0), tl.cdiv(channels, BLOCK_C)
    p, c = (program // across) * BLOCK_P + tl.arange(0, BLOCK_P), (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = (c < channels)[None, :]
    row, column = p // width % height, p % width
    here = p.to(tl.int64)[:, None] * channels + c[None, :]
    total, count = tl.zeros((BLOCK_P, BLOCK_C), tl.float32), tl.zeros((BLOCK_P,), tl.float32)
    centre = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        in_map = (p < pixels) & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        step = tl.cast(down * width + right, tl.int64) * channels
        value = tl.load(x + here + step, mask=in_map[:, None] & known, other=0.0).to(tl.float32)
        total += value
        count += in_map.to(tl.float32)
        if tap == 4:
            centre = value
    mean = total / tl.maximum(count, 1.0)[:, None]
    factor = tl.load(scale + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    result = centre + factor * (mean - centre)
    tl.store(y + here, result.to(y.dtype.element_ty), mask=(p < pixels)[:, None] & known)


# --- what launches it ---


def forward(x: Tensor, scale: Tensor, y: Tensor) -> None:
    """y of x (B, C, H, W), both dense in channels_last; scale (C,) contiguous, of any float dtype."""
    if y.numel() == 0:
        return
    batch, channels, height, width = x.shape
    pixels, vector = batch * height * width, vector_of(channels)
    block_c = power_of_two(channels, 16, 64)
    block_p = power_of_two(pixels, 1, 1024 // block_c)
    launch(
        pool_mixer_kernel, blocks(pixels, block_p) * blocks(channels, block_c),
        x, scale, y, pixels, channels // vector, height, width, VECTOR=vector, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
