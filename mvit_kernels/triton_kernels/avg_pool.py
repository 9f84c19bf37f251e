"""Global average pooling of a map or of its GroupNorm. A program has all pixels of its channels; sums are float32, of distances from the
mean of the image where there is a norm: nothing cancels behind them.

Floor: memory, x once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .activation import activate
from .launch import blocks, launch, power_of_two, wait_turn
from .moments import combine_moments, parts_or_moments

Tensor = torch.Tensor


@triton.jit
def avg_pool_kernel(
    x, moments, y, channels, pixels, image, channel, pixel, count, pieces, eps,
    NORM: tl.constexpr, PIECES: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """image, channel, pixel: steps of x; count: the pixels as a float."""
    wait_turn()
    across = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    batch, c = (program // across).to(tl.int64), (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < channels
    middle, inverse = 0.0, 1.0
    if NORM:
        middle, inverse = combine_moments(moments, batch, pieces, eps, PIECES)
    x += batch * image + (c.to(tl.int64) * channel)[:, None]
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for begin in range(0, pixels, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)
        at = x + (p.to(tl.int64) * pixel)[None, :]
        inside = known[:, None] & (p < pixels)[None, :]
        value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        total += tl.where(inside, value - middle, 0.0) if NORM else value
    mean = tl.div_rn(tl.sum(total, 1), tl.zeros((BLOCK_C,), tl.float32) + count)
    mean = activate(mean * inverse, ACTIVATION, y.dtype.element_ty)
    tl.store(y + batch * channels + c, mean.to(y.dtype.element_ty), mask=known)


# --- what launches it ---


def forward(x: Tensor, channels_last: bool, moments: Tensor | None, eps: float, activation: str, y: Tensor) -> None:
    """y (B, C) contiguous of x (B, C, H, W), dense in NCHW or channels_last; moments (B, 2), or parts of them, or None for no norm."""
    batch, channels, height, width = x.shape
    known, pieces, lanes = (x, 0, 0) if moments is None else parts_or_moments(x, moments)
    pixels = height * width
    steps = (1, channels) if channels_last else (pixels, 1)
    most = 1024 if moments is None else 512  # pixels side by side; a norm needs registers too
    block_p = power_of_two(pixels, 1, 128 if channels_last else most)
    block_c = power_of_two(channels, 1, 32 if channels_last else max(4, 1024 // block_p))
    launch(
        avg_pool_kernel, batch * blocks(channels, block_c),
        x, known, y, channels, pixels, channels * pixels, *steps, float(pixels), pieces, eps, NORM=moments is not None, PIECES=lanes,
        ACTIVATION=activation, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip
