"""Products of matrices on tensor cores: of floats, with sums in float32, and what stands for bytes in those of int8."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, total):
    """total + a b: 16-bit floats exactly as they are, float32 in full (no TF32)."""
    if INTERPRETED:  # which multiplies the bits of bfloat16 as if they were integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def signed(a):
    """a - 128 of bytes, as int8."""
    return (a ^ 128).to(tl.int8, bitcast=True)
