"""resize on maps of EfficientFormerV2 and odd maps of hybrid networks, channels_last, with GELU as there and alone, beside PyTorch's
interpolation and a copy of as many bytes."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from shapes import copy_of

from mvit_kernels import ops, reference


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize(
    ("size", "output_size"), [((1, 1024, 7, 7), (14, 14)), ((8, 1024, 7, 7), (14, 14)), ((1, 128, 31, 31), (32, 32))], ids=str
)
def test_resize(in_turn, native, size, output_size, activation):
    x = torch.randn(size).to(memory_format=torch.channels_last)
    plain = functools.partial(F.interpolate, x, size=output_size, mode="bilinear")
    contenders = {
        "cpu": functools.partial(ops.resize, x, output_size, activation=activation, backend="cpu"),
        "torch": (lambda: F.gelu(plain())) if activation else plain,
    }
    exact = reference.resize(x.double(), output_size, False, activation or "none").float()
    for function in contenders.values():
        torch.testing.assert_close(function(), exact, rtol=1e-5, atol=1e-5)
    contenders["copy"] = copy_of(exact)
    in_turn(f"{size} to {output_size} {activation or ''}", contenders, 20, 4)
