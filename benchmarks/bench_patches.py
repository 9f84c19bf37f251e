"""unfold_patches and fold_patches; each is the other's backward."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import PATCH, copy_of

from mvit_kernels import ops, reference

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=20, warmup=True)


def test_unfold(alone, block, layout, contender):
    x = block.randn(block.d, layout)
    if contender == "copy":
        function = copy_of(x, x)
    else:
        function = functools.partial(ops.unfold_patches, x, PATCH, backend=contender)
        assert torch.equal(function(), reference.unfold_patches(x, PATCH))
    alone(f"unfold {block} {layout}", contender, function)


def test_fold(alone, block, layout, contender):
    x = block.randn(block.d, layout)
    p = ops.unfold_patches(x, PATCH)
    if contender == "copy":
        function = copy_of(p, p)
    else:
        function = functools.partial(ops.fold_patches, p, (block.side, block.side), PATCH, backend=contender)
        assert torch.equal(function(), x)
    alone(f"fold {block} {layout}", contender, function)
