"""Moments that stay in parts between two ops."""

from __future__ import annotations

import pytest
import torch
from triton_checks import DTYPES, randn

import mvit_kernels as mk
from mvit_kernels.ops.moments import joined, keeping_parts

ops = mk.ops


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_ops_take_parts_for_moments(dtype: torch.dtype) -> None:
    x = randn(2, 16, 6, 10, dtype=dtype, fmt="nhwc")
    weights = [randn(*size, dtype=dtype) / 4 for size in ((16,), (16,), (32, 16), (32,), (16, 32), (16,))]
    settings = {"backend": "triton"}
    y, moments = ops.feed_forward(x, *weights, collect=True, **settings)
    with keeping_parts():
        same, parts = ops.feed_forward(x, *weights, collect=True, **settings)
    assert torch.equal(y, same)
    assert (moments.shape, parts.shape[::2], parts.dtype) == ((2, 2), (2, 3), torch.float32)
    assert torch.equal(joined(parts), moments)
    rows = y.permute(0, 2, 3, 1).flatten(0, 2)
    qkv, out = [randn(33, 16, dtype=dtype) / 4, randn(33, dtype=dtype)], [randn(16, 16, dtype=dtype) / 4, randn(16, dtype=dtype)]
    for call in (
        lambda known: ops.feed_forward(y, *weights, moments=known, **settings),
        lambda known: ops.separable_attention_block(y, *weights[:2], *qkv, *out, patch_size=(2, 2), moments=known, **settings),
        lambda known: ops.gemm(rows, weights[2], moments=known, **settings),
    ):
        assert (call(parts).float() - call(moments).float()).abs().max() <= 1e-2 * call(moments).float().abs().max()
    with pytest.raises(ValueError, match=r"moments: expected shape \(2, 2\)"):
        ops.feed_forward(y, *weights, moments=parts[:1], **settings)
