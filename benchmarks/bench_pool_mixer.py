"""pool_mixer on the maps of EfficientFormer l1 at 224 x 224, channels_last, beside PyTorch's pooling and a copy of as many bytes."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from shapes import copy_of

from mvit_kernels import ops, reference

MAPS = [(batch, channels, side, side) for batch in (1, 8) for channels, side in ((48, 56), (96, 28), (224, 14), (448, 7))]


def by_torch(x, scale):
    return x + scale * (F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x)


@pytest.mark.parametrize("size", MAPS, ids=str)
def test_forward(in_turn, native, size):
    x, scale = torch.randn(size).to(memory_format=torch.channels_last), torch.randn(size[1])
    contenders = {
        "cpu": functools.partial(ops.pool_mixer, x, scale, backend="cpu"),
        "torch": functools.partial(by_torch, x, scale[:, None, None]),
    }
    exact = reference.pool_mixer(x.double(), scale.double()).float()
    for function in contenders.values():
        torch.testing.assert_close(function(), exact, rtol=1e-5, atol=1e-5)
    contenders["copy"] = copy_of(x, x)
    in_turn(f"{size}", contenders, 30, 10)
