"""patch_attention and its backward as a MobileViT v1 block needs them: the maps inside its attention blocks at 256 x 256, four heads."""

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

each_block = pytest.mark.parametrize(("name", "d", "side"), BLOCKS)


def randn(batch: int, channels: int, side: int, layout: str) -> torch.Tensor:
    x = torch.randn(batch, channels, side, side)
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" else x


@pytest.mark.parametrize(("batch", "layout"), [(1, "NCHW"), (1, "channels_last"), (8, "channels_last")])
@each_block
def test_forward(alone, name, d, side, batch, layout, contender):
    qkv = randn(batch, 3 * d, side, layout)
    if contender == "copy":
        function = copy_of(qkv, randn(batch, d, side, layout))
    else:
        function = functools.partial(ops.patch_attention, qkv, HEADS, PATCH, backend=contender)
        torch.testing.assert_close(function(), reference.patch_attention(qkv.double(), HEADS, PATCH).float())
    alone(f"forward v1-{name} {batch}x{d}x{side}x{side} {layout}", contender, function)


@each_block
def test_backward(alone, name, d, side, contender):
    """The reference is the gradient of scaled_dot_product_attention as PyTorch has it, of a forward that is not timed."""
    qkv, dy = randn(1, 3 * d, side, "channels_last"), randn(1, d, side, "channels_last")
    expected = reference.patch_attention_backward(dy.double(), qkv.double(), HEADS, PATCH).float()
    if contender == "copy":
        function = copy_of(qkv, dy, qkv)
    elif contender == "reference":
        leaf = qkv.requires_grad_()
        with torch.enable_grad():
            y = reference.patch_attention_fused(leaf, HEADS, PATCH)
        function = functools.partial(torch.autograd.grad, y, leaf, dy, retain_graph=True)
        torch.testing.assert_close(function()[0], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    else:
        function = functools.partial(torch.ops.mvit_kernels.patch_attention_backward, dy, qkv, HEADS, PATCH, None, contender)
        torch.testing.assert_close(function(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    alone(f"backward v1-{name} 1x{d}x{side}x{side} channels_last", contender, function)
