"""Integer depthwise convolution, bytes in and out, at the shapes of MobileViT-S and MobileViTv2-1.0 at 256 x 256, against oneDNN's."""

from __future__ import annotations

import functools

import pytest
import torch

from mvit_kernels import ops

# channels, stride, side of the input
SHAPES = [(64, 1, 128), (128, 2, 128), (256, 1, 64), (256, 2, 64), (256, 1, 32), (512, 2, 32), (384, 1, 16), (768, 2, 16), (512, 1, 8)]
SCALE, ZERO_POINT, OUT_SCALE, OUT_ZERO_POINT = 0.02, 110, 0.1, 90


def by_onednn(x, weight, w_scale, bias, stride, activation):
    channels = x.shape[1]
    where = ([stride] * 2, [1, 1], [1, 1], channels)  # stride, padding, dilation, groups
    zero = torch.zeros(channels, dtype=torch.int32)
    packed = torch.ops.onednn.qconv_prepack(weight, w_scale, SCALE, ZERO_POINT, *where, x.shape)
    return functools.partial(
        torch.ops.onednn.qconv2d_pointwise.default, x, SCALE, ZERO_POINT, packed, w_scale, zero, bias, *where, OUT_SCALE, OUT_ZERO_POINT,
        torch.uint8, "swish" if activation == "silu" else "none", [], "",
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("channels", "stride", "side"), SHAPES)
def test_forward(in_turn, batch, channels, stride, side):
    x = torch.randint(0, 256, (batch, channels, side, side), dtype=torch.uint8).to(memory_format=torch.channels_last)
    weight = torch.randint(-127, 128, (channels, 1, 3, 3), dtype=torch.int8)
    w_scale, bias = torch.rand(channels) * 0.01 + 0.001, torch.randn(channels)
    arguments = {
        "stride": stride, "a_scale": SCALE, "a_zero_point": ZERO_POINT, "w_scale": w_scale, "bias": bias, "out_dtype": torch.uint8,
        "out_scale": OUT_SCALE, "out_zero_point": OUT_ZERO_POINT,
    }  # fmt: skip
    contenders = {}
    for activation, suffix in ((None, ""), ("silu", " with silu")):
        prepared = ops.prepare_qdepthwise_conv2d(weight, **arguments, activation=activation, backend="cpu")
        y = prepared(x)
        assert torch.equal(y, ops.qdepthwise_conv2d(x, weight, **arguments, activation=activation, backend="reference"))
        onednn = by_onednn(x, weight, w_scale, bias, stride, activation)
        assert (onednn().int() - y.int()).abs().max() <= 1  # it adds a float bias and takes other steps: a byte may be its neighbour
        contenders |= {"cpu" + suffix: functools.partial(prepared, x), "onednn" + suffix: onednn}
    in_turn(f"{channels} s{stride} at {side} batch {batch}", contenders, 30, 4)
