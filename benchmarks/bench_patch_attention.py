"""patch_attention as a MobileViT v1 block needs it: the maps inside its attention blocks at 256 x 256, four heads."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import PATCH, copy_of

from mvit_kernels import ops, reference

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=20, warmup=True)

HEADS = 4
DIMS = {"S": (144, 192, 240), "XS": (96, 120, 144), "XXS": (64, 80, 96)}
BLOCKS = [(name, d, side) for name, dims in DIMS.items() for d, side in zip(dims, (32, 16, 8), strict=True)]


@pytest.mark.parametrize(("batch", "layout"), [(1, "NCHW"), (1, "channels_last"), (8, "channels_last")])
@pytest.mark.parametrize(("name", "d", "side"), BLOCKS)
def test_forward(alone, name, d, side, batch, layout, contender):
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    qkv = torch.randn(batch, 3 * d, side, side).to(memory_format=memory_format)
    if contender == "copy":
        function = copy_of(qkv, torch.empty(batch, d, side, side))
    else:
        function = functools.partial(ops.patch_attention, qkv, HEADS, PATCH, backend=contender)
        torch.testing.assert_close(function(), reference.patch_attention(qkv.double(), HEADS, PATCH).float())
    alone(f"forward v1-{name} {batch}x{d}x{side}x{side} {layout}", contender, function)
