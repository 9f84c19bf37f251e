"""separable_attention_block on the maps of MobileViTv2, channels_last, beside plain torch as the reference models run it."""

from __future__ import annotations

import functools

import pytest
import torch
from layers import compare_layer
from shapes import PATCH

from mvit_kernels import ops, reference


@pytest.mark.parametrize("batch", [1, 8])
def test_forward(in_turn, native, block, batch):
    d = block.d
    weights = [torch.randn(size) / d**0.5 for size in ((d,), (d,), (1 + 2 * d, d, 1, 1), (1 + 2 * d,), (d, d, 1, 1), (d,))]
    operations = batch * block.side**2 * 4 * d**2  # of 8 d^2 in the definition: see csrc/cpu/ops/separable_attention_block.h
    op = functools.partial(ops.separable_attention_block, patch_size=PATCH, backend="cpu")
    plain = reference.separable_attention_block
    compare_layer(in_turn, f"{block} batch {batch}", op, plain, weights, (batch, d, block.side), operations)
