"""Pixels of a map of bytes, moved towards the mean of their 3x3 neighbourhood: the bits of `mvit_kernels/reference/qpool_mixer.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, far, launch, power_of_two, wait_turn
from .pinned import to_byte

Tensor = torch.Tensor


@triton.jit
def qpool_mixer_kernel(
    x, keep, move, y, pixels, channels, height, width, image, zero_point, out_zero_point, most,
    FAR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x, y: dense in channels_last; image: elements of one."""
    wait_turn()
    across = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    p, c = (program // across) * BLOCK_P + tl.arange(0, BLOCK_P), (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = (c < channels)[None, :]
    row, column = p // width % height, p % width
    x += ((p // (height * width)).to(tl.int64) * image)[:, None] + c[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    count = tl.zeros((BLOCK_P,), tl.int32)
    centre = tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    for tap in tl.static_range(9):
        above, beside = row + (tap // 3 - 1), column + (tap % 3 - 1)
        in_map = (p < pixels) & (above >= 0) & (above < height) & (beside >= 0) & (beside < width)
        if FAR:
            above = above.to(tl.int64)
        at = x + ((above * width + beside) * channels)[:, None]
        byte = tl.load(at, mask=in_map[:, None] & known, other=0).to(tl.int32)
        total += byte
        count += in_map.to(tl.int32)
        if tap == 4:
            centre = byte
    inverse = tl.div_rn(tl.full((BLOCK_P,), 1.0, tl.float32), tl.maximum(count, 1).to(tl.float32))
    mean = (total - (count * zero_point)[:, None]).to(tl.float32) * inverse[:, None]
    here = (centre - zero_point).to(tl.float32)
    t = here * tl.load(keep + c, mask=c < channels, other=0.0)[None, :] + mean * tl.load(move + c, mask=c < channels, other=0.0)[None, :]
    tl.store(y + p.to(tl.int64)[:, None] * channels + c[None, :], to_byte(t, out_zero_point, most), mask=(p < pixels)[:, None] & known)


# --- what launches it ---


def qpool_mixer(x: Tensor, keep: Tensor, move: Tensor, zero_point: int, out_zero_point: int, bits: int, y: Tensor) -> None:
    """y (B, C, H, W) of x, both dense in channels_last; keep, move (C,) float32."""
    if y.numel() == 0:
        return
    batch, channels, height, width = x.shape
    pixels = batch * height * width
    block_c = power_of_two(channels, 1, 64)
    block_p = power_of_two(pixels, 1, 1024 // block_c)
    launch(
        qpool_mixer_kernel, blocks(pixels, block_p) * blocks(channels, block_c),
        x, keep, move, y, pixels, channels, height, width, channels * height * width, zero_point, out_zero_point, 2**bits - 1,
        FAR=far(x), BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
