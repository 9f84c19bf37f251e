"""layer_norm on the tokens of MobileViT v1 at 256 x 256, and its backward; `reference` is PyTorch's own kernels."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import copy_of

from mvit_kernels import ops, reference

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=20, warmup=True)

# (P, N, d) of stages 3, 4 and 5 of MobileViT S and XXS: a batch of B images is (B P, N, d).
TOKENS = [(4, 256, 144), (4, 64, 192), (4, 16, 240), (4, 256, 64), (4, 64, 80), (4, 16, 96)]


@pytest.fixture(params=[(batch, *tokens) for batch in (1, 8) for tokens in TOKENS], ids="{0[0]}x{0[1]}x{0[2]}x{0[3]}".format)
def x(request: pytest.FixtureRequest) -> torch.Tensor:
    batch, phases, length, d = request.param
    return torch.randn(batch * phases, length, d)


def test_forward(alone, x, contender):
    weight, bias = torch.randn(x.shape[-1]), torch.randn(x.shape[-1])
    if contender == "copy":
        function = copy_of(x, x)
    else:
        function = functools.partial(ops.layer_norm, x, weight, bias, backend=contender)
        torch.testing.assert_close(function(), reference.layer_norm(x.double(), weight.double(), bias.double()).float())
    alone(f"forward {tuple(x.shape)}", contender, function)


def test_backward(alone, x, contender):
    dy, weight = torch.randn_like(x), torch.randn(x.shape[-1])
    if contender == "copy":
        function = copy_of(x, dy, x)
    elif contender == "reference":  # PyTorch's own kernel, which needs what its forward saved
        bias = torch.randn(x.shape[-1])
        _, mean, inverse = torch.ops.aten.native_layer_norm(x, weight.shape, weight, bias, 1e-5)
        arguments = (dy, x, weight.shape, mean, inverse, weight, bias, [True, True, True])
        function = functools.partial(torch.ops.aten.native_layer_norm_backward, *arguments)
    else:
        function = functools.partial(torch.ops.mvit_kernels.layer_norm_backward, dy, x, weight, 1e-5, contender)
    if contender != "copy":
        for actual, exact in zip(function(), reference.layer_norm_backward(dy.double(), x.double(), weight.double()), strict=True):
            torch.testing.assert_close(actual, exact.float(), rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
    alone(f"backward {tuple(x.shape)}", contender, function)
