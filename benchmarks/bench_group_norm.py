"""group_norm on the maps of the attention blocks, and its backward; `reference` is PyTorch's own kernel."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import copy_of

from mvit_kernels import ops, reference

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=20, warmup=True)


def test_forward(alone, block, layout, contender):
    x, weight, bias = block.randn(block.d, layout), torch.randn(block.d), torch.randn(block.d)
    if contender == "copy":
        function = copy_of(x, x)
    else:
        function = functools.partial(ops.group_norm, x, weight, bias, backend=contender)
        torch.testing.assert_close(function(), reference.group_norm(x.double(), weight.double(), bias.double()).float())
    alone(f"forward {block} {layout}", contender, function)


def test_backward(alone, block, layout, contender):
    x, dy, weight = block.randn(block.d, layout), block.randn(block.d, layout), torch.randn(block.d)
    if contender == "copy":
        function = copy_of(x, dy, x)
    else:
        function = functools.partial(torch.ops.mvit_kernels.group_norm_backward, dy, x, weight, 1e-5, contender)
        for actual, exact in zip(function(), reference.group_norm_backward(dy.double(), x.double(), weight.double()), strict=True):
            torch.testing.assert_close(actual, exact.float(), rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
    alone(f"backward {block} {layout}", contender, function)
