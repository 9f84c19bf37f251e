"""Moments that stay in parts between two ops."""

from __future__ import annotations

import pytest
import torch
from triton_checks import DEVICE, DTYPES, randn

import mvit_kernels as mk
from mvit_kernels import reference
from mvit_kernels.ops import moments
from mvit_kernels.ops.moments import joined, keeping_parts

ops = mk.ops


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("height", [6, 8])  # images end inside of tiles of pixels, or with them
def test_ops_take_parts_for_moments(height: int, dtype: torch.dtype) -> None:
    x = randn(2, 16, height, 10, dtype=dtype, fmt="nhwc")
    weights = [randn(*size, dtype=dtype) / 4 for size in ((16,), (16,), (32, 16), (32,), (16, 32), (16,))]
    settings = {"backend": "triton"}
    y, known = ops.feed_forward(x, *weights, collect=True, **settings)
    with keeping_parts():
        same, parts = ops.feed_forward(x, *weights, collect=True, **settings)
    assert torch.equal(y, same)
    assert (known.shape, parts.shape[::2], parts.dtype) == ((2, 2), (2, 3), torch.float32)
    assert torch.equal(joined(parts), known)
    rows = y.permute(0, 2, 3, 1).flatten(0, 2)
    qkv, out = [randn(33, 16, dtype=dtype) / 4, randn(33, dtype=dtype)], [randn(16, 16, dtype=dtype) / 4, randn(16, dtype=dtype)]
    for call in (
        lambda given: ops.feed_forward(y, *weights, moments=given, **settings),
        lambda given: ops.separable_attention_block(y, *weights[:2], *qkv, *out, patch_size=(2, 2), moments=given, **settings),
        lambda given: ops.gemm(rows, weights[2], moments=given, **settings),
    ):
        assert (call(parts).float() - call(known).float()).abs().max() <= 1e-2 * call(known).float().abs().max()
    with pytest.raises(ValueError, match=r"moments: expected shape \(2, 2\)"):
        ops.feed_forward(y, *weights, moments=parts[:1], **settings)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_large_constants_in_channels_that_are_no_power_of_two(norm: str) -> None:
    """Beyond the last channel -mean / sigma would be infinite in float16, and NaN behind a product with the zeros there."""
    x = torch.full((1, 24, 2, 2), 300.0, dtype=torch.float16, device=DEVICE).contiguous(memory_format=torch.channels_last)
    weights = [randn(*size, dtype=torch.float16) / 8 for size in ((24,), (24,), (48, 24), (48,), (24, 48), (24,))]
    assert ops.feed_forward(x, *weights, norm=norm, backend="triton").isfinite().all()
    qkv, out = [randn(49, 24, dtype=torch.float16) / 8, randn(49)], [randn(24, 24, dtype=torch.float16) / 8, randn(24)]
    assert ops.separable_attention_block(x, *weights[:2], *qkv, *out, patch_size=(2, 2), backend="triton").isfinite().all()


def test_moments_of_a_part_of_the_channels(monkeypatch) -> None:
    rows = randn(24, 16, dtype=torch.float16)[:, :8]
    monkeypatch.setattr(moments, "_on_gpu", lambda _: True)
    assert torch.allclose(moments.moments_of(rows, 2), reference.moments_of(rows, 2), rtol=1e-5)
