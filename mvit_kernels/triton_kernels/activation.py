"""The activation functions of epilogues: `mvit_kernels/reference/activation.py`, in float32."""

from __future__ import annotations

import triton
import triton.language as tl

from .products import INTERPRETED


@triton.jit
def _quick_tanh(x):
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, dtype: tl.constexpr):
    """ACTIVATION none, relu, silu, gelu, relu6 or hard_swish, of what is rounded to that dtype next.

    SiLU of 16-bit floats takes the hardware's tanh, x sigmoid(x) = h + h tanh(h) with h = x / 2: three instructions, where an exponential
    and a division are a dozen, as long as the memory of a product of few channels. csrc/cuda/primitives/activation.cuh has its error."""
    if ACTIVATION == "relu":
        y = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "silu":
        if dtype == tl.float32 or INTERPRETED:
            y = x / (1.0 + tl.exp(-x))
        else:
            half = 0.5 * x
            y = half + half * _quick_tanh(half)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "relu6":
        y = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif ACTIVATION == "hard_swish":
        y = x * tl.where(x < -3, 0.0, tl.where(x > 3, 6.0, x + 3.0)) / 6.0
    else:
        tl.static_assert(ACTIVATION == "none")
        y = x
    return y
