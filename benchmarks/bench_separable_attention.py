"""separable_attention on a map and its backward, as a swapped MobileViTv2 block calls them."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import PATCH, copy_of

from mvit_kernels import ops, reference

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=20, warmup=True)


def test_forward(alone, block, layout, contender):
    qkv = block.randn(1 + 2 * block.d, layout)
    if contender == "copy":
        function = copy_of(qkv, block.randn(block.d, layout))
    else:
        function = functools.partial(ops.separable_attention, qkv, PATCH, backend=contender)
        torch.testing.assert_close(function(), reference.separable_attention(qkv.double(), PATCH).float())
    alone(f"forward {block} {layout}", contender, function)


def test_backward(alone, block, layout, contender):
    qkv, dy = block.randn(1 + 2 * block.d, layout), block.randn(block.d, layout)
    if contender == "copy":
        function = copy_of(qkv, dy, qkv)
    else:
        function = functools.partial(torch.ops.mvit_kernels.separable_attention_backward, dy, qkv, PATCH, contender)
        expected = reference.separable_attention_backward(dy.double(), qkv.double(), PATCH).float()
        torch.testing.assert_close(function(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    alone(f"backward {block} {layout}", contender, function)
