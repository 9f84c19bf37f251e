from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from marks import slow
from triton_checks import DEVICE, DTYPES, FORMATS, assert_rule, randn, views

import mvit_kernels as mk
from mvit_kernels import reference

Tensor = torch.Tensor
# One element; tails of tiles; several pieces of an image; many channels.
MAPS = [slow((1, 1, 1, 1)), (2, 5, 4, 6), slow((1, 37, 30, 21)), slow((1, 300, 3, 5)), slow((1, 12, 40, 30))]
ROWS = [slow((1, 1)), (3, 5, 7), slow((300, 24)), slow((2, 1000)), (1, 80)]


def parameters(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return randn(channels, dtype=dtype), randn(channels, dtype=dtype)


def check(norm: str, x: Tensor, dtype: torch.dtype, channels: int) -> None:
    op, plain = getattr(mk.ops, norm), getattr(reference, norm)
    weight, bias = parameters(channels, dtype)
    y = op(x, weight, bias, backend="triton")
    assert y.dtype == x.dtype
    assert_rule(y, plain(x, weight, bias), plain(x.double(), weight.double(), bias.double()))
    dy = randn(*x.shape, dtype=x.dtype)
    gradients = getattr(torch.ops.mvit_kernels, f"{norm}_backward")(dy, x, weight, 1e-5, "triton")
    backward = getattr(reference, f"{norm}_backward")
    # 16-bit floats are summed in float32 by both.
    theirs = backward(*(each.float() for each in (dy, x, weight)))
    exact = backward(dy.double(), x.double(), weight.double())
    for ours, rounded, right in zip(gradients, theirs, exact, strict=True):
        assert_rule(ours, rounded.to(ours.dtype), right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("size", MAPS, ids=str)
def test_group_norm(size, fmt: str, dtype: torch.dtype, poison) -> None:
    x = randn(*size, dtype=dtype, fmt=fmt)
    check("group_norm", x, dtype, size[1])
    assert mk.ops.group_norm(x, *parameters(size[1], dtype), backend="triton").is_contiguous(memory_format=FORMATS[fmt])


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("known", [True, False])
def test_group_norm_inside_of_another_op(known: bool, fmt: str, monkeypatch: pytest.MonkeyPatch, poison) -> None:
    """Its moments are found once, or not at all where they are known, and the gradient of x has that of a residual in it."""
    from mvit_kernels.ops.group_norm import triton_steps
    from mvit_kernels.triton_kernels import moments

    launched, launch = [], moments.launch
    monkeypatch.setattr(
        moments, "launch", lambda kernel, *arguments, **settings: (launched.append(1), launch(kernel, *arguments, **settings))
    )
    x, (weight, bias) = randn(2, 37, 9, 8, fmt=fmt) + 3, parameters(37, torch.float32)
    dy, residual = randn(*x.shape), randn(*x.shape).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    forward, backward = triton_steps(x, reference.moments_of(x, 2) if known else None)
    y, gradients = forward(x, weight, bias, 1e-5), backward(dy, x, weight, 1e-5, residual=residual)
    assert len(launched) == (0 if known else 1)
    assert_rule(y, reference.group_norm(x, weight, bias), reference.group_norm(x.double(), weight.double(), bias.double()))
    plain = reference.group_norm_backward(dy, x, weight, residual=residual)
    exact = reference.group_norm_backward(*(each.double() for each in (dy, x, weight)), residual=residual.double())
    for ours, rounded, right in zip(gradients, plain, exact, strict=True):
        assert_rule(ours, rounded, right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", ROWS, ids=str)
def test_layer_norm(size, dtype: torch.dtype, poison) -> None:
    check("layer_norm", randn(*size, dtype=dtype), dtype, size[-1])


@pytest.mark.parametrize("mean", [slow(3.0), slow(30.0), 100.0])
def test_means_far_from_zero(mean: float) -> None:
    x = randn(1, 8, 40, 30) + mean
    weight, bias = parameters(8, torch.float32)
    exact = reference.group_norm(x.double(), weight.double(), bias.double())
    assert_rule(mk.ops.group_norm(x, weight, bias, backend="triton"), reference.group_norm(x, weight, bias), exact)
    rows, (weight, bias) = x.flatten(0, 2)[:64], parameters(30, torch.float32)
    exact = reference.layer_norm(rows.double(), weight.double(), bias.double())
    assert_rule(mk.ops.layer_norm(rows, weight, bias, backend="triton"), reference.layer_norm(rows, weight, bias), exact)


@pytest.mark.skipif(DEVICE != "cpu", reason="of the interpreter; a GPU's own division is met by test_means_far_from_zero")
@pytest.mark.parametrize("towards", [float("-inf"), float("inf")])
def test_means_are_divided_exactly(towards: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other divisions of a GPU are off by two units of the last place, if not by powers of two (PTX ISA, div.full): of a mean far from
    zero that would be much of what is left without it."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def multiply_add(self: Any, x: Any, y: Any, z: Any) -> Any:
        """Rounded once, as that of a GPU; older interpreters round the product, too."""
        wide = x.data.astype(numpy.float64) * y.data.astype(numpy.float64) + z.data.astype(numpy.float64)
        return TensorHandle(wide.astype(z.data.dtype), z.dtype.scalar)

    def divide(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
        y = numpy.divide(a, b)
        end = y.dtype.type(towards)
        exact = y.dtype != numpy.float32 or numpy.frexp(numpy.abs(b))[0] == 0.5
        return numpy.where(exact, y, numpy.nextafter(numpy.nextafter(y, end), end))

    def normed() -> list[Tensor]:
        return [
            mk.ops.group_norm(x, *parameters[:2], backend="triton"), mk.ops.layer_norm(rows, *parameters[2:], backend="triton"),
            mk.ops.gemm(rows, torch.eye(30), layer_norm=True, backend="triton"),
            torch.ops.mvit_kernels.gemm(rows, torch.eye(30), collect=1, backend="triton")[1],
            mk.ops.feed_forward(maps, *parameters[2:], *layers, norm="layer", backend="triton") / 100,
        ]  # fmt: skip

    x, parameters = randn(1, 8, 20, 30) + 100, [torch.ones(8), torch.zeros(8), torch.ones(30), torch.zeros(30)]
    rows = x.flatten(0, 2)
    maps, layers = rows.T.reshape(1, 30, 8, 20).contiguous(), [torch.eye(30), torch.zeros(30), 100 * torch.eye(30), torch.zeros(30)]
    monkeypatch.setattr(InterpreterBuilder, "create_fma", multiply_add)
    exact = normed()
    monkeypatch.setattr(InterpreterBuilder, "create_fdiv", lambda self, a, b: self.binary_op(a, b, divide))
    for ours, right in zip(normed(), exact, strict=True):
        assert (ours - right).abs().max() <= 3e-6


def test_parameters_in_float32_beside_16_bits() -> None:
    x = randn(1, 6, 4, 4, dtype=torch.bfloat16)
    weight, bias = parameters(6, torch.float32)
    y = mk.ops.group_norm(x, weight, bias, backend="triton")
    assert_rule(
        y, reference.group_norm(x.float(), weight, bias).bfloat16(), reference.group_norm(x.double(), weight.double(), bias.double())
    )


def test_any_strides() -> None:
    for name, x in views(5, 4, 6).items():
        for norm, channels in (("group_norm", 5), ("layer_norm", 6)):
            weight, bias = parameters(2 * channels, torch.float32)
            y = getattr(mk.ops, norm)(x, weight[::2], bias[::2], backend="triton")
            assert torch.allclose(y, getattr(reference, norm)(x, weight[::2], bias[::2]), atol=1e-5), (name, norm)


@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
def test_gradients_reach_every_leaf(norm: str) -> None:
    leaves = [each.requires_grad_() for each in (randn(2, 4, 4, 4), *parameters(4, torch.float32))]
    getattr(mk.ops, norm)(*leaves, backend="triton").square().sum().backward()
    plain = [each.detach().clone().requires_grad_() for each in leaves]
    getattr(reference, norm)(*plain).square().sum().backward()
    for ours, theirs in zip(leaves, plain, strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)


@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
def test_empty_and_nan(norm: str) -> None:
    op, (weight, bias) = getattr(mk.ops, norm), parameters(4, torch.float32)
    assert op(randn(0, 4, 4, 4), weight, bias, backend="triton").shape == (0, 4, 4, 4)
    gradients = getattr(torch.ops.mvit_kernels, f"{norm}_backward")(randn(0, 4, 4, 4), randn(0, 4, 4, 4), weight, 1e-5, "triton")
    assert [tuple(each.shape) for each in gradients] == [(0, 4, 4, 4), (4,), (4,)]
    assert not gradients[1].any()
    x = randn(2, 4, 4, 4)
    x[0, 1, 2, 3] = float("nan")
    assert torch.equal(op(x, weight, bias, backend="triton").isnan(), getattr(reference, norm)(x, weight, bias).isnan())


def test_rows_that_are_too_long_are_refused() -> None:
    weight, bias = parameters(20000, torch.float32)
    with pytest.raises(ValueError, match="it has no kernel for rows of more than 8192 channels, got 20000"):
        mk.ops.layer_norm(randn(1, 20000), weight, bias, backend="triton")
