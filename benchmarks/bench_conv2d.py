"""Convolution, bias and SiLU at the shapes of MobileViT-S and MobileViTv2-1.0 at 256 x 256, against PyTorch (oneDNN)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from mvit_kernels import ops, reference


class Shape(NamedTuple):
    """channels + beside -> columns, k x k, on maps of side x side."""

    channels: int
    beside: int
    columns: int
    kernel: int
    stride: int
    side: int

    def __str__(self) -> str:
        beside = f"+{self.beside}" if self.beside else ""
        return f"{self.kernel}x{self.kernel} {self.channels}{beside}->{self.columns} s{self.stride} at {self.side}"


SHAPES = [
    Shape(3, 0, 16, 3, 2, 256),
    Shape(3, 0, 32, 3, 2, 256),
    *(Shape(channels, 0, channels, 3, 1, side) for channels, side in ((96, 32), (128, 16), (160, 8))),
    *(Shape(channels, channels, channels, 3, 1, side) for channels, side in ((96, 32), (128, 16), (160, 8))),
    *(Shape(channels, 0, 2 * channels, 1, 1, side) for channels, side in ((32, 128), (64, 128), (128, 64), (256, 32))),
]


def by_torch(x, second, weight, bias, stride):
    x = x if second is None else torch.cat([x, second], dim=1)
    return F.silu(F.conv2d(x, weight, bias, stride, weight.shape[2] // 2), inplace=True)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(in_turn, batch, shape):
    x, second = (
        torch.randn(batch, channels, shape.side, shape.side).to(memory_format=torch.channels_last)
        for channels in (shape.channels, shape.beside)
    )
    image = x.contiguous() if shape.channels == 3 else x  # as it comes from a decoder; PyTorch gets it in its faster format
    beside = second if shape.beside else None
    weight = torch.randn(shape.columns, shape.channels + shape.beside, shape.kernel, shape.kernel) / shape.kernel
    weight, bias = (weight / (shape.channels + shape.beside) ** 0.5).to(memory_format=torch.channels_last), torch.randn(shape.columns)
    contenders = {
        "cpu": functools.partial(ops.conv2d, image, weight, bias, second=beside, stride=shape.stride, activation="silu", backend="cpu"),
        "torch": functools.partial(by_torch, x, beside, weight, bias, shape.stride),
    }
    expected = reference.conv2d(x, weight, bias, beside, None, shape.stride, "silu")
    for function in contenders.values():
        torch.testing.assert_close(function(), expected, rtol=1e-4, atol=1e-4)
    in_turn(f"{shape} batch {batch}", contenders, 30, 4)
