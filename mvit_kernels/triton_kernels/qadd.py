"""The sum of two maps of bytes, with an activation: the bits of `mvit_kernels/reference/qadd.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, wait_turn
from .pinned import polynomial, to_byte

Tensor = torch.Tensor
BLOCK = 2048
NEAR = 2**30  # zero-points that an int32 less a byte holds


@triton.jit
def _real(q, at, inside, scale, zero_point, FAR: tl.constexpr):
    byte = tl.load(q + at, mask=inside, other=0)
    difference = byte.to(tl.int64) - zero_point if FAR else byte.to(tl.int32) - zero_point
    return difference.to(tl.float32) * scale


@triton.jit
def qadd_kernel(
    a, b, segments, y, size, a_scale, a_zero_point, b_scale, b_zero_point, inverse, out_zero_point, most,
    ACTIVATION: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ACTIVATION: none, relu or polynomial. FAR: differences from zero-points need 64 bits."""
    wait_turn()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = _real(a, at, inside, a_scale, a_zero_point, FAR) + _real(b, at, inside, b_scale, b_zero_point, FAR)
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "polynomial":
        x = polynomial(x, segments)
    tl.store(y + at, to_byte(x * inverse, out_zero_point, most), mask=inside)


# --- what launches it ---


def qadd(
    a: Tensor, b: Tensor, a_scale: float, a_zero_point: int, b_scale: float, b_zero_point: int, out_scale: float, out_zero_point: int,
    activation: str, segments: Tensor | None, bits: int, y: Tensor,
) -> None:  # fmt: skip
    """y of a and b, all dense in one order of memory; segments (3, 32): of an activation that is neither none nor relu."""
    launch(
        qadd_kernel, blocks(a.numel(), BLOCK),
        a, b, a if segments is None else segments, y, a.numel(), a_scale, a_zero_point, b_scale, b_zero_point, 1.0 / out_scale,
        out_zero_point, 2**bits - 1, ACTIVATION=activation if segments is None else "polynomial",
        FAR=max(abs(a_zero_point), abs(b_zero_point)) > NEAR, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
