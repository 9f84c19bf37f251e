"""Bilinear resizing with an activation: `mvit_kernels/reference/resize.py`. Coordinates are float64, computed once a pixel, sums float32.

Floor: memory, x and y once; GELU of 16-bit floats takes about as long."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .activation import activate
from .launch import blocks, far, launch, power_of_two, wait_turn
from .pinned import double, double_bits

Tensor = torch.Tensor


@triton.jit
def between(i, size, step, CORNERS: tl.constexpr):
    """(first, second, what it takes of second, float64) of outputs i along an axis, which lie between inputs first and second; step: inputs
    to an output, by `double_bits`."""
    at = i.to(tl.float64)
    at = at * double(step) if CORNERS else tl.maximum((at + 0.5) * double(step) - 0.5, 0.0)
    first = tl.minimum(tl.floor(at), tl.cast(size - 1, tl.float64))
    share = tl.minimum(at - first, 1.0)
    first = first.to(tl.int32)
    return first, tl.minimum(first + 1, size - 1), share


@triton.jit
def corners(
    x, y, pixels, channels, height, width, out_height, out_width, image, down, across,
    CORNERS: tl.constexpr, FAR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A block of pixels of y and of channels: where their four inputs lie in x, from the upper left to the lower right, what is taken of
    the lower and of the right ones (`between`), where results go, and which there are.

    x, y: dense in channels_last; image: elements of one of x; down, across: inputs to an output."""
    along = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    p, c = (program // along) * BLOCK_P + tl.arange(0, BLOCK_P), (program % along) * BLOCK_C + tl.arange(0, BLOCK_C)
    top, bottom, below = between(p // out_width % out_height, height, down, CORNERS)
    left, right, beside = between(p % out_width, width, across, CORNERS)
    if FAR:
        top, bottom, left, right = top.to(tl.int64), bottom.to(tl.int64), left.to(tl.int64), right.to(tl.int64)
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    x += ((p // (out_height * out_width)).to(tl.int64) * image)[:, None] + c[None, :]
    return (
        x + ((top * width + left) * channels)[:, None], x + ((top * width + right) * channels)[:, None],
        x + ((bottom * width + left) * channels)[:, None], x + ((bottom * width + right) * channels)[:, None],
        below, beside, y + p.to(tl.int64)[:, None] * channels + c[None, :], inside,
    )  # fmt: skip


@triton.jit
def resize_kernel(
    x, y, pixels, channels, height, width, out_height, out_width, image, down, across,
    CORNERS: tl.constexpr, ACTIVATION: tl.constexpr, FAR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    wait_turn()
    x00, x01, x10, x11, below, beside, to, inside = corners(
        x, y, pixels, channels, height, width, out_height, out_width, image, down, across, CORNERS, FAR, BLOCK_P, BLOCK_C
    )
    total = tl.load(x00, mask=inside, other=0.0).to(tl.float32) * ((1 - below) * (1 - beside)).to(tl.float32)[:, None]
    total += tl.load(x01, mask=inside, other=0.0).to(tl.float32) * ((1 - below) * beside).to(tl.float32)[:, None]
    total += tl.load(x10, mask=inside, other=0.0).to(tl.float32) * (below * (1 - beside)).to(tl.float32)[:, None]
    total += tl.load(x11, mask=inside, other=0.0).to(tl.float32) * (below * beside).to(tl.float32)[:, None]
    result = activate(total, ACTIVATION, y.dtype.element_ty)
    tl.store(to, result.to(y.dtype.element_ty), mask=inside)


# --- what launches it ---


def forward(x: Tensor, align_corners: bool, activation: str, y: Tensor) -> None:
    """y (B, C, h, w) of x (B, C, H, W), both dense in channels_last."""
    run(resize_kernel, x, align_corners, y, ACTIVATION=activation)


def run(kernel: object, x: Tensor, align_corners: bool, y: Tensor, **settings: object) -> None:
    """A kernel of these arguments and tiles, this one or that of bytes (qresize.py)."""
    if y.numel() == 0:
        return
    batch, channels, height, width = x.shape
    steps = [_step(size, out, align_corners) for size, out in zip(x.shape[2:], y.shape[2:], strict=True)]
    pixels = batch * y.shape[2] * y.shape[3]
    block_c = power_of_two(channels, 1, 64)
    block_p = power_of_two(pixels, 1, 1024 // block_c)
    launch(
        kernel, blocks(pixels, block_p) * blocks(channels, block_c),
        x, y, pixels, channels, height, width, *y.shape[2:], channels * height * width, *map(double_bits, steps), CORNERS=align_corners,
        FAR=far(x), BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4, **settings,
    )  # fmt: skip


def _step(size: int, out: int, align_corners: bool) -> float:
    """Inputs from one output to the next."""
    if align_corners:
        return (size - 1) / (out - 1) if out > 1 else 0.0
    return size / out
