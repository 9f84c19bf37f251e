from __future__ import annotations

import functools

import pytest
import torch
from marks import slow
from triton_checks import DTYPES, FORMATS, assert_gradients, assert_rule, randn, views

import mvit_kernels as mk
from mvit_kernels import reference

Tensor = torch.Tensor
# (batch, C, E or 0, O, H, W): one value, tails of tiles and of slices, several slices, blocks of columns and tiles of an image.
SHAPES = [
    (2, 5, 20, 7, 7, 5), (1, 24, 0, 18, 6, 9), slow((1, 1, 1, 1, 1, 1)), slow((1, 16, 72, 40, 9, 3)), slow((2, 70, 0, 35, 1, 11)),
]  # fmt: skip


def make(batch: int, channels: int, hidden: int, columns: int, height: int, width: int, dtype=torch.float32, fmt: str = "nhwc") -> list:
    wide = hidden or channels
    sizes = (hidden, channels, 1, 1), (hidden,), (wide, 1, 3, 3), (wide,), (columns, wide, 1, 1), (columns,)
    parameters = [
        randn(*size, dtype=dtype) / (size[1] * size[-1] ** 2) ** 0.5 if len(size) == 4 else randn(*size, dtype=dtype) for size in sizes
    ]
    return [randn(batch, channels, height, width, dtype=dtype, fmt=fmt), *(parameters if hidden else (None, None, *parameters[2:]))]


def block(*inputs, **settings):
    return mk.ops.inverted_residual(*inputs, backend="triton", **settings)


def check(inputs: list, **settings) -> Tensor:
    y = block(*inputs, **settings)
    exact = reference.inverted_residual(*(None if each is None else each.double() for each in inputs), **settings)
    assert_rule(y, reference.inverted_residual(*inputs, **settings), exact)
    assert y.dtype == inputs[0].dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, stride: int, dtype: torch.dtype, poison) -> None:
    check(make(*shape, dtype), stride=stride)


@pytest.mark.parametrize("activation", ["none", slow("relu"), "gelu"])
@pytest.mark.parametrize("hidden", [0, 12])
def test_activations_and_residual(hidden: int, activation: str) -> None:
    inputs = make(1, 8, hidden, 8, 5, 4, torch.float16)
    check(inputs, activation=activation, residual=True)
    check([*inputs[:-1], None], activation=activation)


@pytest.mark.parametrize("dtype", [torch.float16, slow(torch.float32)], ids=str)
@pytest.mark.parametrize("hidden", [0, 16])
def test_moments_are_those_of_what_is_written(hidden: int, dtype: torch.dtype) -> None:
    inputs = make(3, 8, hidden, 20, 5, 9, dtype)
    inputs[-1] += 5.0
    y, moments = block(*inputs, collect=True)
    assert torch.allclose(moments, reference.moments_of(y, 3), rtol=1e-6)


@pytest.mark.parametrize("fmt", FORMATS)
def test_any_strides_empty_and_nan(fmt: str) -> None:
    inputs = make(1, 5, 6, 5, 4, 6, fmt=fmt)
    for x in views(5, 4, 6).values():
        check([x, *inputs[1:]], stride=2)
    y, moments = block(inputs[0][:0], *inputs[1:], collect=True)
    assert (y.shape, moments.shape) == ((0, 5, 4, 6), (0, 2))
    inputs[0][0, 1, 2, 0] = float("nan")
    nan = block(*inputs, activation="relu").isnan().all(1)[0]
    assert nan.nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_in_sixteen_bits(dtype: torch.dtype) -> None:
    """Torch's own there, in that dtype."""
    x, *weights = [each.to(dtype) for each in make(2, 12, 24, 12, 6, 5)]
    how = {"residual": True}
    ours = functools.partial(mk.ops.inverted_residual, **how, backend="triton")
    assert_gradients(ours, functools.partial(reference.inverted_residual, **how), [x, *weights])


def test_weights_that_change_are_seen_and_gradients_arrive() -> None:
    inputs = make(1, 5, 8, 6, 4, 3)
    for _ in range(2):
        check(inputs)
        inputs[5].mul_(2.0)
    results = []
    for backend in ("triton", "reference"):
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        mk.ops.inverted_residual(*leaves, backend=backend).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    assert all(torch.allclose(ours, plain, rtol=1e-4, atol=1e-4) for ours, plain in zip(*results, strict=True))
