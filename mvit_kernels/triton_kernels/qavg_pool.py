"""Global average pooling of a map of bytes: the bits of `mvit_kernels/reference/qavg_pool.py`. A program has all pixels of its channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, power_of_two, wait_turn
from .pinned import to_byte

Tensor = torch.Tensor


@triton.jit
def qavg_pool_kernel(
    x, y, channels, pixels, image, channel, pixel, offset, scale, zero_point, most,
    BYTES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """offset: the zero-point times the pixels. Sums are modulo 2^32: only what is left without the offset must fit."""
    wait_turn()
    across = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    batch, c = (program // across).to(tl.int64), (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < channels
    x += batch * image + (c.to(tl.int64) * channel)[:, None]
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.int32)
    for begin in range(0, pixels, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)
        at = x + (p.to(tl.int64) * pixel)[None, :]
        total += tl.load(at, mask=known[:, None] & (p < pixels)[None, :], other=0).to(tl.int32)
    t = (tl.sum(total, 1) - offset).to(tl.float32) * scale
    tl.store(y + batch * channels + c, to_byte(t, zero_point, most) if BYTES else t, mask=known)


# --- what launches it ---


def qavg_pool(x: Tensor, channels_last: bool, zero_point: int, scale: float, out_zero_point: int, bits: int, y: Tensor) -> None:
    """y (B, C), uint8 or float32, of x (B, C, H, W), dense in NCHW or channels_last; scale: from a sum to y."""
    batch, channels, height, width = x.shape
    pixels = height * width
    steps = (1, channels) if channels_last else (pixels, 1)
    block_p = power_of_two(pixels, 1, 128 if channels_last else 1024)
    block_c = power_of_two(channels, 1, 32 if channels_last else 4)
    launch(
        qavg_pool_kernel, batch * blocks(channels, block_c),
        x, y, channels, pixels, channels * pixels, *steps, pixels * zero_point, scale, out_zero_point, 2**bits - 1,
        BYTES=y.dtype == torch.uint8, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip
