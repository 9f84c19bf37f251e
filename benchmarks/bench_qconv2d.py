"""Convolution of bytes at the 3x3 shapes of MobileViT at 256 x 256, stem included, against oneDNN's int8 convolution in PyTorch.

The floor is the arithmetic of the method that needs least: with stride 1 minimal filtering, a quarter of the products at half the rate of
bytes (csrc/cpu/ops/qwinograd.h), which some of the smaller maps are too small for; with AMX always the direct sum.

Weights are at most 64 in size, beyond which oneDNN is wrong where there is no VNNI (bench_qgemm.py).
"""

from __future__ import annotations

import functools

import pytest
import torch
from bench_conv2d import Shape

from mvit_kernels import ops
from mvit_kernels.ops.backend import native as native_kernels

LOCAL = [(channels, side) for side, several in ((32, (48, 64, 96)), (16, (64, 80, 128)), (8, (80, 96, 160))) for channels in several]
SHAPES = [
    Shape(3, 0, 16, 3, 2, 256),
    Shape(3, 0, 32, 3, 2, 256),
    *(Shape(channels, 0, channels, 3, 1, side) for channels, side in LOCAL),
    *(Shape(channels, channels, channels, 3, 1, side) for channels, side in LOCAL),  # the fusion of two maps
]
SCALE, ZERO_POINT, OUT_SCALE, OUT_ZERO_POINT = 0.02, 3, 0.5, 128


def by_onednn(x, second, weight, w_scale, zeros, bias, stride):
    x = x if second is None else torch.cat([x, second], dim=1)
    return torch.ops.onednn.qconv2d_pointwise(
        x, SCALE, ZERO_POINT, weight, w_scale, zeros, bias, [stride, stride], [1, 1], [1, 1], 1, OUT_SCALE, OUT_ZERO_POINT, torch.uint8,
        "none", [], "",
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(in_turn, native, batch, shape):
    channels, beside, columns, _, stride, side = shape
    x, second = (
        torch.randint(0, 256, (batch, each, side, side), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        for each in (channels, beside)
    )
    second = second if beside else None
    weight = torch.randint(-64, 65, (columns, channels + beside, 3, 3), dtype=torch.int8)
    w_scale, bias = torch.rand(columns) * 0.01 + 0.001, torch.randn(columns)
    size = [batch, channels + beside, side, side]
    theirs = torch.ops.onednn.qconv_prepack(weight, w_scale, SCALE, ZERO_POINT, [stride, stride], [1, 1], [1, 1], 1, size)
    ours, exact = (
        ops.prepare_qconv2d(
            ops.pack_weight(weight), SCALE, ZERO_POINT, w_scale, bias, kernel_size=3, stride=stride, second_channels=beside,
            out_dtype=torch.uint8, out_scale=OUT_SCALE, out_zero_point=OUT_ZERO_POINT, backend=backend,
        )
        for backend in ("cpu", "reference")
    )  # fmt: skip
    contenders = {
        "cpu": functools.partial(ours, x, second),
        "onednn": functools.partial(by_onednn, x, second, theirs, w_scale, torch.zeros(columns, dtype=torch.int64), bias, stride),
    }
    assert torch.equal(contenders["cpu"](), exact(x, second))
    assert (contenders["onednn"]().int() - contenders["cpu"]().int()).abs().max() <= 1  # it rounds in another order
    macs = batch * (side // stride) ** 2 * columns * 9 * (channels + beside)
    filtered = stride == 1 and native_kernels.isa() != "amx"
    in_turn(f"{shape} batch {batch}", contenders, 30, 4, operations=2 * macs // (2 if filtered else 1), integer=True)
