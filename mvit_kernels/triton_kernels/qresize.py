"""Bilinear resizing of a map of bytes: the bits of `mvit_kernels/reference/qresize.py`. Coordinates are float64, computed once a pixel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, far, launch, power_of_two
from .pinned import double, double_bits, rint, rint_double

Tensor = torch.Tensor


@triton.jit
def _taps(i, size, step, CORNERS: tl.constexpr):
    """(first, second, weight of second in 2^-11) of outputs i along an axis; step: inputs to an output, float64."""
    at = i.to(tl.float64)
    at = at * double(step) if CORNERS else tl.maximum((at + 0.5) * double(step) - 0.5, 0.0)
    first = tl.minimum(tl.floor(at), tl.cast(size - 1, tl.float64))
    weight = rint_double(tl.minimum(at - first, 1.0) * 2048.0).to(tl.int32)
    first = first.to(tl.int32)
    return first, tl.minimum(first + 1, size - 1), weight


@triton.jit
def qresize_kernel(
    x, y, pixels, channels, height, width, out_height, out_width, image, down, across,
    CORNERS: tl.constexpr, FAR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x, y: dense in channels_last; image: elements of one of x; down, across: inputs to an output, float64."""
    along = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    p, c = (program // along) * BLOCK_P + tl.arange(0, BLOCK_P), (program % along) * BLOCK_C + tl.arange(0, BLOCK_C)
    top, bottom, below = _taps(p // out_width % out_height, height, down, CORNERS)
    left, right, beside = _taps(p % out_width, width, across, CORNERS)
    if FAR:
        top, bottom, left, right = top.to(tl.int64), bottom.to(tl.int64), left.to(tl.int64), right.to(tl.int64)
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    x += ((p // (out_height * out_width)).to(tl.int64) * image)[:, None] + c[None, :]
    corner = tl.load(x + ((top * width + left) * channels)[:, None], mask=inside, other=0).to(tl.int32)
    total = corner * ((2048 - below) * (2048 - beside))[:, None]
    corner = tl.load(x + ((top * width + right) * channels)[:, None], mask=inside, other=0).to(tl.int32)
    total += corner * ((2048 - below) * beside)[:, None]
    corner = tl.load(x + ((bottom * width + left) * channels)[:, None], mask=inside, other=0).to(tl.int32)
    total += corner * (below * (2048 - beside))[:, None]
    corner = tl.load(x + ((bottom * width + right) * channels)[:, None], mask=inside, other=0).to(tl.int32)
    total += corner * (below * beside)[:, None]
    result = rint(total.to(tl.float32) * 2.384185791015625e-07).to(tl.uint8)  # 2^-22
    tl.store(y + p.to(tl.int64)[:, None] * channels + c[None, :], result, mask=inside)


# --- what launches it ---


def qresize(x: Tensor, align_corners: bool, y: Tensor) -> None:
    """y (B, C, h, w) of x (B, C, H, W), both dense in channels_last."""
    if y.numel() == 0:
        return
    batch, channels, height, width = x.shape
    steps = [_step(size, out, align_corners) for size, out in zip(x.shape[2:], y.shape[2:], strict=True)]
    pixels = batch * y.shape[2] * y.shape[3]
    block_c = power_of_two(channels, 1, 64)
    block_p = power_of_two(pixels, 1, 1024 // block_c)
    launch(
        qresize_kernel, blocks(pixels, block_p) * blocks(channels, block_c),
        x, y, pixels, channels, height, width, *y.shape[2:], channels * height * width, *map(double_bits, steps), CORNERS=align_corners,
        FAR=far(x), BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


def _step(size: int, out: int, align_corners: bool) -> float:
    """Inputs from one output to the next."""
    if align_corners:
        return (size - 1) / (out - 1) if out > 1 else 0.0
    return size / out
