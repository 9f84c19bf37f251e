"""dynamic_relu and hard_gate at the shapes of Mobile-Former 96M at 224 x 224, channels_last, beside PyTorch and a copy of as many bytes."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from shapes import copy_of

from mvit_kernels import ops, reference

MAPS = [(batch, channels, side, side) for batch in (1, 8) for channels, side in ((72, 56), (96, 28), (256, 14), (768, 7))]
TOKENS = [(batch, 4, channels) for batch in (1, 8) for channels in (16, 128)]


def by_torch(x, u):
    a, b = u.clamp(-1, 1)[..., None, None].chunk(2, dim=1)
    return torch.maximum((1 + a) * x, b * x)


@pytest.mark.parametrize("size", MAPS, ids=str)
def test_forward(in_turn, native, size):
    x, u = torch.randn(size).to(memory_format=torch.channels_last), torch.randn(size[0], 2 * size[1])
    contenders = {
        "cpu": functools.partial(ops.dynamic_relu, x, u, backend="cpu"),
        "torch": functools.partial(by_torch, x, u),
    }
    exact = reference.dynamic_relu(x.double(), u.double()).float()
    for function in contenders.values():
        torch.testing.assert_close(function(), exact, rtol=1e-5, atol=1e-5)
    contenders["copy"] = copy_of(x, x)
    in_turn(f"{size}", contenders, 30, 10)


@pytest.mark.parametrize("size", TOKENS, ids=str)
def test_gate(in_turn, native, size):
    x, u = torch.randn(size), 4 * torch.randn(size)
    contenders = {
        "cpu": functools.partial(ops.hard_gate, x, u, backend="cpu"),
        "torch": lambda: x * F.hardsigmoid(u),
    }
    exact = reference.hard_gate(x.double(), u.double()).float()
    for function in contenders.values():
        torch.testing.assert_close(function(), exact, rtol=1e-5, atol=1e-5)
    in_turn(f"{size}", contenders, 30, 10)
