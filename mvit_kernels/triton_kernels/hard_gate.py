"""A gate of every element by hard-sigmoid: the bits of `mvit_kernels/reference/hard_gate.py` in float32, which integers behind it need."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, wait_turn

Tensor = torch.Tensor
BLOCK = 1024


@triton.jit
def hard_gate_kernel(x, u, y, size, BLOCK: tl.constexpr):
    wait_turn()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(u + at, mask=inside, other=0.0).to(tl.float32) + 3.0
    gate = tl.where(gate < 0.0, 0.0, tl.where(gate > 6.0, 6.0, gate))  # NaN stays
    gate = tl.div_rn(gate, tl.full((BLOCK,), 6.0, tl.float32))
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, (value * gate).to(y.dtype.element_ty), mask=inside)


# --- what launches it ---


def forward(x: Tensor, u: Tensor, y: Tensor) -> None:
    """y of x and u, all contiguous and of one shape."""
    launch(hard_gate_kernel, blocks(x.numel(), BLOCK), x, u, y, x.numel(), BLOCK=BLOCK, num_warps=4)
