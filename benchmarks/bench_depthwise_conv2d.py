"""Depthwise convolution, bias and SiLU at the shapes of MobileViT-S and MobileViTv2-1.0 at 256 x 256, and with several filters for each
channel at those of Mobile-Former 96M at 224 x 224, against PyTorch (oneDNN)."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from mvit_kernels import ops, reference

# channels, stride, side of the input
SHAPES = [(64, 1, 128), (128, 2, 128), (256, 1, 64), (256, 2, 64), (512, 2, 32), (384, 1, 16), (768, 2, 16)]


def by_torch(x, weight, bias, stride):
    return F.silu(F.conv2d(x, weight, bias, stride, 1, groups=x.shape[1]), inplace=True)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("channels", "stride", "side"), SHAPES)
def test_forward(in_turn, batch, channels, stride, side):
    x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels, 1, 3, 3).to(memory_format=torch.channels_last), torch.randn(channels)
    contenders = {
        "cpu": functools.partial(ops.depthwise_conv2d, x, weight, bias, stride=stride, activation="silu", backend="cpu"),
        "torch": functools.partial(by_torch, x, weight, bias, stride),
    }
    expected = reference.depthwise_conv2d(x, weight, bias, stride, "silu")
    for function in contenders.values():
        torch.testing.assert_close(function(), expected, rtol=1e-4, atol=1e-4)
    in_turn(f"{channels} s{stride} at {side} batch {batch}", contenders, 30, 4)


# channels of x and of y, stride, side of the input
WIDENING = [(12, 24, 1, 112), (12, 72, 2, 112), (16, 64, 1, 56), (16, 96, 2, 56), (32, 128, 1, 28), (88, 528, 2, 14)]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("channels", "columns", "stride", "side"), WIDENING)
def test_several_filters(in_turn, batch, channels, columns, stride, side):
    x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(columns, 1, 3, 3), torch.randn(columns)
    contenders = {
        "cpu": functools.partial(ops.depthwise_conv2d, x, weight, bias, stride=stride, activation="silu", backend="cpu"),
        "torch": functools.partial(by_torch, x, weight, bias, stride),
    }
    expected = reference.depthwise_conv2d(x, weight, bias, stride, "silu")
    for function in contenders.values():
        torch.testing.assert_close(function(), expected, rtol=1e-4, atol=1e-4)
    in_turn(f"{channels} to {columns} s{stride} at {side} batch {batch}", contenders, 30, 4)
