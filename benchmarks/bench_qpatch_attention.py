"""Softmax attention on the bytes of one projection, on the maps inside the attention blocks of MobileViT v1 at 256 x 256, four heads."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import PATCH, copy_of

from mvit_kernels import ops

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=20, warmup=True)

HEADS = 4
DIMS = {"S": (144, 192, 240), "XS": (96, 120, 144), "XXS": (64, 80, 96)}
BLOCKS = [(name, d, side) for name, dims in DIMS.items() for d, side in zip(dims, (32, 16, 8), strict=True)]
SETTINGS = {
    "q_scale": 0.03, "q_zero_point": 120, "k_scale": 0.021, "v_scale": 0.017, "v_zero_point": 101, "out_scale": 0.011, "out_zero_point": 90,
}  # fmt: skip


@pytest.mark.parametrize(("name", "d", "side"), BLOCKS)
def test_attention(alone, name, d, side, contender):
    qkv = torch.randint(0, 256, (1, side, side, 3 * d), dtype=torch.uint8)
    if contender == "copy":
        function = copy_of(torch.empty(side * side * d))  # as many bytes as q, k, v and y
    else:
        function = functools.partial(ops.qpatch_attention, qkv, HEADS, patch_size=PATCH, backend=contender, **SETTINGS)
        assert torch.equal(function(), ops.qpatch_attention(qkv, HEADS, patch_size=PATCH, backend="reference", **SETTINGS))
    alone(f"v1-{name} 1x{side}x{side}x{d}", contender, function)
