"""Bilinear resizing of a map of bytes: the bits of `mvit_kernels/reference/qresize.py`. Coordinates are float64, computed once a pixel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import wait_turn
from .pinned import rint, rint_double
from .resize import corners, run

Tensor = torch.Tensor


@triton.jit
def qresize_kernel(
    x, y, pixels, channels, height, width, out_height, out_width, image, down, across,
    CORNERS: tl.constexpr, FAR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Shares are rounded to 2^-11."""
    wait_turn()
    x00, x01, x10, x11, below, beside, to, inside = corners(
        x, y, pixels, channels, height, width, out_height, out_width, image, down, across, CORNERS, FAR, BLOCK_P, BLOCK_C
    )
    below, beside = rint_double(below * 2048.0).to(tl.int32), rint_double(beside * 2048.0).to(tl.int32)
    total = tl.load(x00, mask=inside, other=0).to(tl.int32) * ((2048 - below) * (2048 - beside))[:, None]
    total += tl.load(x01, mask=inside, other=0).to(tl.int32) * ((2048 - below) * beside)[:, None]
    total += tl.load(x10, mask=inside, other=0).to(tl.int32) * (below * (2048 - beside))[:, None]
    total += tl.load(x11, mask=inside, other=0).to(tl.int32) * (below * beside)[:, None]
    result = rint(total.to(tl.float32) * 2.384185791015625e-07).to(tl.uint8)  # 2^-22
    tl.store(to, result, mask=inside)


# --- what launches it ---


def qresize(x: Tensor, align_corners: bool, y: Tensor) -> None:
    """y (B, C, h, w) of x (B, C, H, W), both dense in channels_last."""
    run(qresize_kernel, x, align_corners, y)
