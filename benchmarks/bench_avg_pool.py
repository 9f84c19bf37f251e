"""avg_pool on the last maps of the networks, channels_last, beside PyTorch's mean and a copy of as many bytes."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import copy_of

from mvit_kernels import ops, reference

MAPS = [(batch, channels, side, side) for batch in (1, 8) for channels, side in ((320, 8), (512, 8), (640, 8), (448, 7), (1024, 7))]


@pytest.mark.parametrize("size", MAPS, ids=str)
def test_forward(in_turn, native, size):
    x = torch.randn(size).to(memory_format=torch.channels_last)
    contenders = {"cpu": functools.partial(ops.avg_pool, x, backend="cpu"), "torch": functools.partial(x.mean, (2, 3))}
    exact = reference.avg_pool(x.double()).float()
    for function in contenders.values():
        torch.testing.assert_close(function(), exact, rtol=1e-5, atol=1e-6)
    contenders["copy"] = copy_of(x)
    in_turn(f"{size}", contenders, 30, 40)
