"""The int16 residual stream from real numbers and back: the bits of `mvit_kernels/reference/stream.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, wait_turn
from .pinned import clamp, rint

Tensor = torch.Tensor
BLOCK = 2048


@triton.jit
def quantize_stream_kernel(x, y, size, inverse, BLOCK: tl.constexpr):
    wait_turn()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, rint(clamp(value * inverse, -32768.0, 32767.0)).to(tl.int16), mask=inside)


@triton.jit
def dequantize_stream_kernel(q, y, size, scale, BLOCK: tl.constexpr):
    wait_turn()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    tl.store(y + at, tl.load(q + at, mask=inside, other=0).to(tl.float32) * scale, mask=inside)


# --- what launches them ---


def quantize_stream(x: Tensor, scale: float, y: Tensor) -> None:
    """y int16 of dense x in the same order of memory."""
    launch(quantize_stream_kernel, blocks(x.numel(), BLOCK), x, y, x.numel(), 1.0 / scale, BLOCK=BLOCK, num_warps=4)


def dequantize_stream(q: Tensor, scale: float, y: Tensor) -> None:
    """y float32 of dense q in the same order of memory."""
    launch(dequantize_stream_kernel, blocks(q.numel(), BLOCK), q, y, q.numel(), scale, BLOCK=BLOCK, num_warps=4)
