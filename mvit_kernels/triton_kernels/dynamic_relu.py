"""Dynamic ReLU: the bits of `mvit_kernels/reference/dynamic_relu.py` in float32, which integers behind it need. A program has a block of
pixels of an image, and the slopes of its channels in registers.

Floor on an H100: memory, x once and y once at 3.0 TB/s.

**Behind a convolution** its kernel does that before it writes (`slopes` and `larger` in gemm.py, depthwise_conv2d.py and those of bytes).
Of 16-bit floats it saves 4 bytes a value, 1.3 ps, of bytes with floats between them 16, 5.3 ps. Tiles of products have rows of several
images, so each value loads its own two slopes, from L1: about 12 more instructions for it (SASS of sm_90), 0.4 ps of what the
multiprocessors issue. Tiles of depthwise convolutions of floats are of one image, with two slopes a channel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, power_of_two, vector_of, wait_turn

Tensor = torch.Tensor


@triton.jit
def _clip(u, known):
    """u to [-1, 1]; NaN stays."""
    value = tl.load(u, mask=known, other=0.0).to(tl.float32)
    return tl.clamp(value, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def slopes(u, c, channels, known):
    """a and b of channels c (those known), float32; u: addresses of the images."""
    return 1.0 + _clip(u + c, known), _clip(u + channels + c, known)


@triton.jit
def larger(a, b, x):
    """max(a x, b x); NaN where either is."""
    return tl.maximum(a * x, b * x, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def dynamic_relu_kernel(x, u, y, channels, pixels, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """x, y: dense in channels_last; u (B, 2 C) contiguous. channels come divided by VECTOR."""
    wait_turn()
    channels = channels * VECTOR
    program, across, along = tl.program_id(0), tl.cdiv(channels, BLOCK_C), tl.cdiv(pixels, BLOCK_P)
    c = (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = (program // across % along) * BLOCK_P + tl.arange(0, BLOCK_P)
    image = (program // across // along).to(tl.int64)
    a, b = slopes(u + image * 2 * channels, c, channels, c < channels)
    at = (image * pixels + p)[:, None] * channels + c[None, :]
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, larger(a[None, :], b[None, :], value).to(y.dtype.element_ty), mask=inside)


# --- what launches it ---


def forward(x: Tensor, u: Tensor, y: Tensor) -> None:
    """y of x (B, C, H, W), both dense in channels_last, and u (B, 2 C) contiguous."""
    if y.numel() == 0:
        return
    batch, channels, height, width = x.shape
    vector = vector_of(channels)
    block_c = power_of_two(channels, 16, 64)
    block_p = power_of_two(height * width, 1, 2048 // block_c)
    launch(
        dynamic_relu_kernel, batch * blocks(height * width, block_p) * blocks(channels, block_c),
        x, u, y, channels // vector, height * width, VECTOR=vector, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
