"""avg_pool against torch's mean: every tail and stride, gradients, any threads, in programs and in calls that run again."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from op_checks import (
    FLOATS,
    FORMATS,
    assert_compiles,
    assert_forward_and_gradients,
    assert_function_transforms,
    assert_reference_gradients,
    assert_same_bits_with_any_threads,
    assert_second_derivative,
    needs_native,
)
from q_checks import assert_compiles_and_exports, axes
from torch import nn

import mvit_kernels as mk
from mvit_kernels import graph, ops, reference
from mvit_kernels.ops import replay

Tensor = torch.Tensor
SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 65, 7, 7), (3, 17, 1, 9), (2, 130, 33, 1), (1, 40, 16, 17), (1, 5, 300, 201)]


def plain(x: Tensor) -> Tensor:
    return x.mean((2, 3))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_and_gradients(size, dtype: torch.dtype, fmt: str, isa: str, poison) -> None:
    draws = [[(torch.randn(size) + i).contiguous(memory_format=FORMATS[fmt]).to(dtype)] for i in range(3)]
    assert_forward_and_gradients(lambda x: ops.avg_pool(x, backend="cpu"), plain, *draws)


@needs_native
def test_sums_stay_exact_where_they_grow(isa: str) -> None:
    """Values that one running sum in float32 would lose."""
    x = torch.full((1, 20, 512, 257), 1 / 3).contiguous(memory_format=torch.channels_last)
    assert (ops.avg_pool(x, backend="cpu") - x[0, 0, 0, 0]).abs().max() <= 2**-23
    half = torch.full((1, 3, 300, 300), 60000.0, dtype=torch.float16)  # whose sum is no half
    assert torch.equal(ops.avg_pool(half, backend="cpu"), half[:, :, 0, 0])


def pooled(x: Tensor, activation: str, norm: bool, backend: str | None = None) -> Tensor:
    moments = reference.moments_of(x.detach(), x.shape[0]) if norm else None
    return ops.avg_pool(x, moments=moments, activation=activation, backend=backend)


def normed(x: Tensor, activation: str, norm: bool) -> Tensor:
    return reference.activate(plain(F.group_norm(x, 1) if norm else x), activation)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_norm_and_activation(activation: str, norm: bool) -> None:
    how = {"activation": activation, "norm": norm}
    for dtype in FLOATS:
        x = (2 * torch.randn(3, 17, 5, 7) + torch.randn(17, 1, 1)).to(dtype)
        draws = [[x.contiguous(memory_format=each)] for each in FORMATS.values()]
        assert_forward_and_gradients(functools.partial(pooled, **how), functools.partial(normed, **how), *draws)
    if activation not in ("relu", "relu6"):  # which have no derivative where draws may be
        assert_reference_gradients(functools.partial(pooled, **how, backend="reference"), [torch.randn(2, 3, 2, 3)])
    moments = reference.moments_of(x, 3) if norm else None
    torch.library.opcheck(torch.ops.mvit_kernels.avg_pool, (x.float().requires_grad_(), moments, 1e-5, activation))


def test_any_strides(backend: str) -> None:
    big = torch.randn(4, 6, 8, 10)
    last = big.contiguous(memory_format=torch.channels_last)
    views = big[1:, ::2], big[..., ::2], big.transpose(2, 3), big.permute(0, 3, 1, 2), big[:, :1].expand(-1, 3, -1, -1), big[:0]
    for x in (*views, last[:, 1:4], last[1::2], last[..., 3:], big.permute(1, 2, 3, 0), big[:, :, :1, :1].expand(-1, -1, 3, 2)):
        y = ops.avg_pool(x, backend=backend)
        assert y.shape == x.shape[:2]
        assert y.is_contiguous()
        torch.testing.assert_close(y, plain(x.double()).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fmt", FORMATS)
def test_nan_and_infinity_stay_in_their_channel(backend: str, fmt: str) -> None:
    x = torch.randn(2, 19, 5, 7).contiguous(memory_format=FORMATS[fmt])
    x[0, 1, 4, 6], x[1, 18, 0, 0] = float("nan"), float("inf")
    x[1, 3, 0, 0], x[1, 3, 4, 6] = float("inf"), float("-inf")
    y = ops.avg_pool(x, backend=backend)
    expected = plain(x)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())
    assert y.isfinite().sum() == 2 * 19 - 3


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    x = torch.randn(3, 200, 30, 31)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_same_bits_with_any_threads(lambda: [ops.avg_pool(each, backend="cpu") for each in (x, last, last.half())], threads)
    assert torch.equal(ops.avg_pool(x, backend="cpu"), ops.avg_pool(last, backend="cpu"))


def test_gradients() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert_reference_gradients(lambda x: ops.avg_pool(x, backend="reference"), [x])
    assert_second_derivative(ops.avg_pool, plain, [x])
    assert_function_transforms(ops.avg_pool, plain, x)
    for fmt in FORMATS.values():
        leaf = x.contiguous(memory_format=fmt).requires_grad_()
        (dx,) = torch.autograd.grad(ops.avg_pool(leaf).square().sum(), leaf)
        assert dx.is_contiguous(memory_format=fmt)
    empty = torch.randn(0, 3, 4, 5, requires_grad=True)
    assert torch.autograd.grad(ops.avg_pool(empty).sum(), empty)[0].shape == empty.shape


def test_autocast_leaves_it_alone() -> None:
    """As the mean of torch: of a dtype the result has it too."""
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in FLOATS:
            x = torch.randn(1, 3, 4, 5).to(dtype)
            assert ops.avg_pool(x).dtype == x.mean((2, 3)).dtype == dtype


def test_opcheck_and_compile() -> None:
    for fmt in FORMATS.values():
        x = torch.randn(2, 3, 4, 5).contiguous(memory_format=fmt)
        torch.library.opcheck(torch.ops.mvit_kernels.avg_pool, (x.clone().requires_grad_(),))
        assert_compiles_and_exports(ops.avg_pool, [x], [torch.randn(5, 3, 4, 5).contiguous(memory_format=fmt)], dynamic=[axes(0)])
        assert_compiles(lambda x: ops.avg_pool(x).sigmoid(), [x], (2, 3))


class Head(nn.Module):
    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return ops.gemm(ops.avg_pool(x), self.fc.weight, self.fc.bias)


@torch.no_grad()
def test_heads_are_captured() -> None:
    head, x = Head().eval(), torch.randn(2, 24, 6, 6)
    program = graph.optimize(graph.capture(head, (24, 6, 6)))
    assert [node.kind for node in program] == ["input", "avg_pool", "linear"]
    expected = F.linear(plain(x), head.fc.weight, head.fc.bias)
    torch.testing.assert_close(graph.run(program, x), expected)
    torch.testing.assert_close(mk.compile(head, x)(x), expected)


@needs_native
@torch.no_grad()
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_heads_are_run_again(dtype: torch.dtype, monkeypatch, threads) -> None:
    head, replays, copying = Head(200).to(dtype), replay.Replays("head"), replay.Replays("avg_pool")
    count, run = [], replay._Replay.__call__
    monkeypatch.setattr(replay._Replay, "__call__", lambda self, addresses: count.append(0) or run(self, addresses))
    for batch, number in ((1, 1), (3, 2)):
        threads(number)
        for _ in range(4):
            x = torch.randn(batch, 200, 9, 7).to(dtype).contiguous(memory_format=torch.channels_last)
            y = replays(head, (x,), known=(head.fc.weight, head.fc.bias))
            assert torch.equal(y, head(x))
            assert torch.equal(copying(ops.avg_pool, (x.contiguous(),)), ops.avg_pool(x))  # by torch, which nobody writes down
    assert len(count) == 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.avg_pool(None), TypeError, "avg_pool: x: expected a tensor, got NoneType"),
        (lambda: ops.avg_pool(torch.zeros(2, 3)), ValueError, r"avg_pool: x: expected 4 dimensions, got shape \(2, 3\)"),
        (lambda: ops.avg_pool(torch.zeros(1, 2, 0, 3)), ValueError, r"avg_pool: x: .* one pixel, got shape \(1, 2, 0, 3\)"),
        (lambda: ops.avg_pool(torch.zeros(0, 2, 3, 0)), ValueError, r"avg_pool: x: .* one pixel, got shape \(0, 2, 3, 0\)"),
        (lambda: ops.avg_pool(torch.zeros(1, 0, 3, 3)), ValueError, r"avg_pool: x: expected at least one channel"),
        (lambda: ops.avg_pool(torch.zeros(1, 2, 3, 3).int()), TypeError, "avg_pool: x: expected dtype float32, .*, got int32"),
        (lambda: ops.avg_pool(torch.zeros(1, 2, 3, 3).to_sparse()), TypeError, "avg_pool: x: expected a dense tensor"),
        (
            lambda: ops.avg_pool(torch.zeros(2, 2, 3, 3), moments=torch.zeros(3, 2, dtype=torch.float64)),
            ValueError,
            r"avg_pool: moments: expected shape \(2, 2\) on cpu, got \(3, 2\) on cpu",
        ),
        (lambda: ops.avg_pool(torch.zeros(1, 2, 3, 3), activation="elu"), ValueError, "avg_pool: activation: expected one of none, relu"),
        (
            lambda: ops.avg_pool(torch.zeros(1, 2, 3, 3), moments=torch.zeros(1, 2, dtype=torch.float64), backend="cpu"),
            ValueError,
            "it has no kernel for the mean of a norm|not built",
        ),
        (lambda: ops.avg_pool(torch.zeros(1, 2, 3, 3), backend=1), TypeError, "avg_pool: backend: expected a name or None, got 1"),
        (
            lambda: ops.avg_pool(torch.zeros(1, 2, 3, 3).double(), backend="cpu"),
            ValueError,
            "avg_pool: backend 'cpu' was requested and cannot take this call",
        ),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
