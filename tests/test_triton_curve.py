"""The curve of a sum in the form that kernels read: every int16 number, what rounds to it, and what is beyond."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton_checks import DEVICE

from mvit_kernels import reference
from mvit_kernels.triton_kernels.launch import blocks, launch
from mvit_kernels.triton_kernels.pinned import curve, packed_curve


@triton.jit
def curve_kernel(x, table, y, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, curve(tl.load(x + at, mask=at < size), table).to(tl.uint8), mask=at < size)


@pytest.mark.parametrize(("name", "scale", "zero_point", "bits"), [
    ("silu", 0.03, 12, 8), ("gelu", 0.0005, 0, 8), ("silu", 5.0, 255, 8), ("gelu", 0.2, 30, 6),
])  # fmt: skip
def test_all_numbers(name: str, scale: float, zero_point: int, bits: int) -> None:
    whole = torch.arange(-33000, 33000).float()
    beyond = torch.tensor([float("inf"), -float("inf"), 1e30, -1e30, 131072.0, -131073.0, -0.0, 0.4999999701976776])
    x = torch.cat([whole, whole + 0.5, whole - 0.49, beyond]).to(DEVICE)
    table = reference.activation_curve(name, scale, zero_point, bits).to(DEVICE)
    y = torch.empty(x.shape, dtype=torch.uint8, device=DEVICE)
    launch(curve_kernel, blocks(x.numel(), 4096), x, packed_curve(table), y, x.numel(), BLOCK=4096)
    assert torch.equal(y, reference.apply_curve(x, table))
