"""Bilinear resizing of a map of bytes: the bits of `mvit_kernels/reference/qresize.py`. Coordinates are float64, computed once a pixel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .pinned import rint, rint_double
from .resize import between, run

Tensor = torch.Tensor


@triton.jit
def _taps(i, size, step, CORNERS: tl.constexpr):
    """`between`, with the weight of second in 2^-11."""
    first, second, share = between(i, size, step, CORNERS)
    return first, second, rint_double(share * 2048.0).to(tl.int32)


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
    run(qresize_kernel, x, align_corners, y)
