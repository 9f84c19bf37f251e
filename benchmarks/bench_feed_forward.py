"""feed_forward on the maps of the attention blocks of MobileViTv2, channels_last, beside plain torch as the reference models run it."""

from __future__ import annotations

import functools

import pytest
import torch
from layers import compare_layer

from mvit_kernels import ops, reference

HIDDEN = 2  # times d, in every MobileViTv2


@pytest.mark.parametrize("batch", [1, 8])
def test_forward(in_turn, native, block, batch):
    d, hidden = block.d, HIDDEN * block.d
    weights = [torch.randn(size) / d**0.5 for size in ((d,), (d,), (hidden, d, 1, 1), (hidden,), (d, hidden, 1, 1), (d,))]
    operations = batch * block.side**2 * 4 * d * hidden
    op = functools.partial(ops.feed_forward, backend="cpu")
    compare_layer(in_turn, f"{block} batch {batch}", op, reference.feed_forward, weights, (batch, d, block.side), operations)
