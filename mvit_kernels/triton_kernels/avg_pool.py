"""Global average pooling: the mean of each channel. A program has all pixels of its channels; sums are float32.

Floor: memory, x once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, power_of_two

Tensor = torch.Tensor


@triton.jit
def avg_pool_kernel(x, y, channels, pixels, image, channel, pixel, count, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """image, channel, pixel: steps of x; count: the pixels as a float."""
    across = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    batch, c = (program // across).to(tl.int64), (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < channels
    x += batch * image + (c.to(tl.int64) * channel)[:, None]
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for begin in range(0, pixels, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)
        at = x + (p.to(tl.int64) * pixel)[None, :]
        total += tl.load(at, mask=known[:, None] & (p < pixels)[None, :], other=0.0).to(tl.float32)
    mean = tl.div_rn(tl.sum(total, 1), tl.zeros((BLOCK_C,), tl.float32) + count)
    tl.store(y + batch * channels + c, mean.to(y.dtype.element_ty), mask=known)


# --- what launches it ---


def forward(x: Tensor, channels_last: bool, y: Tensor) -> None:
    """y (B, C) contiguous of x (B, C, H, W), dense in NCHW or channels_last."""
    batch, channels, height, width = x.shape
    pixels = height * width
    steps = (1, channels) if channels_last else (pixels, 1)
    block_p = power_of_two(pixels, 1, 128 if channels_last else 1024)
    block_c = power_of_two(channels, 1, 32 if channels_last else max(4, 1024 // block_p))
    launch(
        avg_pool_kernel, batch * blocks(channels, block_c),
        x, y, channels, pixels, channels * pixels, *steps, float(pixels), BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip
