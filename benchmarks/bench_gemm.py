"""gemm on the products of MobileViT and MobileViTv2 at 256 x 256, beside torch's F.linear (MKL)."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from mvit_kernels import ops

# M, N, K: positions, output channels, input channels.
SHAPES = [
    (16384, 64, 32), (16384, 64, 64), (4096, 128, 64), (4096, 256, 128), (1024, 256, 128), (1024, 512, 256), (1024, 432, 144),
    (256, 768, 384), (256, 192, 192), (64, 512, 256), (64, 256, 512), (1, 1000, 512),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_bias(in_turn, native, shape):
    _compare(in_turn, shape, "none")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_bias_silu_residual(in_turn, native, shape):
    _compare(in_turn, shape, "silu")


def _compare(in_turn, shape, activation):
    rows, columns, depth = shape
    a, weight, bias, residual = torch.randn(rows, depth), torch.randn(columns, depth), torch.randn(columns), torch.randn(rows, columns)
    if activation == "none":
        cpu = functools.partial(ops.gemm, a, weight, bias, backend="cpu")
        plain = functools.partial(F.linear, a, weight, bias)
    else:
        cpu = functools.partial(ops.gemm, a, weight, bias, activation=activation, residual=residual, backend="cpu")
        plain = lambda: F.silu(F.linear(a, weight, bias)).add_(residual)  # noqa: E731
    torch.testing.assert_close(cpu(), plain(), rtol=1e-4, atol=1e-4 * depth**0.5)
    name = "bias" if activation == "none" else "bias+SiLU+residual"
    in_turn(f"{rows}x{columns}x{depth} {name}", {"cpu": cpu, "torch": plain}, calls=5, operations=2 * rows * columns * depth)
