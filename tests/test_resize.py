"""resize against torch's interpolation: every tail and stride, gradients, any threads, in programs."""

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

Tensor = torch.Tensor
SIZES = [((1, 1, 1, 1), (3, 2)), ((2, 5, 7, 7), (14, 14)), ((1, 65, 8, 3), (5, 9)), ((3, 17, 1, 9), (1, 1)), ((1, 40, 16, 17), (33, 8))]


def resize(
    x: Tensor, size: tuple[int, int], align_corners: bool = False, activation: str | None = None, backend: str | None = None
) -> Tensor:
    return ops.resize(x, size, align_corners=align_corners, activation=activation, backend=backend)


def plain(x: Tensor, size: tuple[int, int], align_corners: bool = False, activation: str | None = None) -> Tensor:
    return reference.activate(F.interpolate(x, size, mode="bilinear", align_corners=align_corners), activation or "none")


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("size", "output_size"), SIZES, ids=str)
def test_forward_and_gradients(
    size, output_size, dtype: torch.dtype, align_corners: bool, activation: str | None, isa: str, poison
) -> None:
    draws = [[torch.randn(size).contiguous(memory_format=each).to(dtype)] for each in FORMATS.values()]
    how = {"size": output_size, "align_corners": align_corners, "activation": activation}
    assert_forward_and_gradients(functools.partial(resize, **how, backend="cpu"), functools.partial(plain, **how), *draws)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations(activation: str, backend: str) -> None:
    x = 3 * torch.randn(2, 19, 5, 4)
    y = resize(x, (7, 3), activation=activation, backend=backend)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, plain(x, (7, 3), activation=activation), rtol=1e-5, atol=1e-5)


def test_any_strides(backend: str) -> None:
    big = torch.randn(4, 6, 8, 10)
    last = big.contiguous(memory_format=torch.channels_last)
    views = big[1:, ::2], big[..., ::2], big.transpose(2, 3), big.permute(0, 3, 1, 2), big[:, :1].expand(-1, 3, -1, -1), big[:0]
    for x in (*views, last[:, 1:4], last[1::2], last[..., 3:]):
        y = resize(x, (5, 11), backend=backend)
        assert y.shape == (*x.shape[:2], 5, 11)
        torch.testing.assert_close(y, plain(x.double(), (5, 11)).float(), rtol=1e-5, atol=1e-5)


def test_nan_and_infinity_stay_where_they_are(backend: str) -> None:
    x = torch.randn(1, 3, 9, 9)
    x[0, 1, 4, 4], x[0, 2, 0, 0] = float("nan"), float("inf")
    y, expected = resize(x, (18, 18), backend=backend), plain(x, (18, 18))
    assert torch.equal(y.isnan(), expected.isnan())
    assert y[0, 0].isfinite().all()


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    x = torch.randn(3, 50, 30, 31)
    assert_same_bits_with_any_threads(lambda: [resize(each, (41, 17), activation="gelu", backend="cpu") for each in (x, x.half())], threads)


def test_gradients() -> None:
    x = torch.randn(2, 3, 4, 5)
    ended = functools.partial(resize, size=(7, 3), activation="silu")
    assert_reference_gradients(functools.partial(ended, backend="reference"), [x])
    assert_second_derivative(ended, functools.partial(plain, size=(7, 3), activation="silu"), [x])
    assert_function_transforms(functools.partial(resize, size=(7, 3)), functools.partial(plain, size=(7, 3)), x)
    for fmt in FORMATS.values():
        leaf = x.contiguous(memory_format=fmt).requires_grad_()
        (dx,) = torch.autograd.grad(resize(leaf, (7, 3)).square().sum(), leaf)
        assert dx.is_contiguous(memory_format=fmt)


def test_opcheck_and_compile() -> None:
    for fmt in FORMATS.values():
        x = torch.randn(2, 3, 4, 5).contiguous(memory_format=fmt)
        torch.library.opcheck(torch.ops.mvit_kernels.resize, (x.clone().requires_grad_(), (8, 8), False, "gelu"))
        doubled = functools.partial(resize, size=(8, 10))
        assert_compiles_and_exports(doubled, [x], [torch.randn(5, 3, 4, 5).contiguous(memory_format=fmt)], dynamic=[axes(0)])
        assert_compiles(lambda x: resize(x, (8, 10), activation="relu").sigmoid(), [x], (2, 3))


class Up(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ops.resize(x, (12, 12), activation="gelu")


@torch.no_grad()
def test_programs_have_it() -> None:
    model, x = Up().eval(), torch.randn(2, 3, 6, 6)
    program = graph.capture(model, (3, 6, 6))
    assert [node.kind for node in program] == ["input", "resize", "activation"]
    torch.testing.assert_close(graph.run(program, x), plain(x, (12, 12), activation="gelu"))
    torch.testing.assert_close(mk.compile(model, x)(x), plain(x, (12, 12), activation="gelu"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.resize(None, (1, 1)), TypeError, "resize: x: expected a tensor, got NoneType"),
        (lambda: ops.resize(torch.zeros(2, 3), (1, 1)), ValueError, r"resize: x: expected 4 dimensions, got shape \(2, 3\)"),
        (lambda: ops.resize(torch.zeros(1, 2, 0, 3), (1, 1)), ValueError, r"resize: x: .* one pixel, got shape \(1, 2, 0, 3\)"),
        (lambda: ops.resize(torch.zeros(1, 2, 3, 3).int(), (1, 1)), TypeError, "resize: x: expected dtype float32, .*, got int32"),
        (lambda: ops.resize(torch.zeros(1, 2, 3, 3), (0, 1)), ValueError, r"output_size: expected two positive integers, got \(0, 1\)"),
        (lambda: ops.resize(torch.zeros(1, 2, 3, 3), 4), TypeError, "resize: output_size: expected"),
        (lambda: ops.resize(torch.zeros(1, 2, 3, 3), (4, 4), align_corners=1), TypeError, "resize: align_corners: expected True or False"),
        (lambda: ops.resize(torch.zeros(1, 2, 3, 3), (4, 4), activation="elu"), ValueError, "resize: activation: expected one of none"),
        (lambda: ops.resize(torch.zeros(1, 2, 3, 3), (4, 4), backend=1), TypeError, "resize: backend: expected a name or None, got 1"),
        (
            lambda: ops.resize(torch.zeros(1, 2, 3, 3).double(), (4, 4), backend="cpu"), ValueError,
            "resize: backend 'cpu' was requested and cannot take this call",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
