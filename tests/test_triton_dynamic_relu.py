"""dynamic_relu, by itself and behind convolutions: in float32 by themselves the bits of plain torch, which integers behind
them need; else by the float rule."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from triton_checks import DTYPES, FORMATS, assert_bits, assert_gradients_arrive, assert_rule, randn, views

from mvit_kernels import ops

Tensor = torch.Tensor


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 4, 5), (3, 72, 7, 9), slow((1, 17, 1, 9)), slow((2, 1030, 3, 1))], ids=str)
def test_dynamic_relu(size, fmt: str, dtype: torch.dtype, poison) -> None:
    assert_bits(ops.dynamic_relu, randn(*size, dtype=dtype, fmt=fmt), 2 * randn(size[0], 2 * size[1], dtype=dtype))


def check_behind_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, stride: int = 1) -> Tensor:
    inputs = x, weight, bias, u
    y = ops.conv2d_dynamic_relu(*inputs, stride=stride, backend="triton")
    exact = ops.conv2d_dynamic_relu(*(None if each is None else each.double() for each in inputs), stride=stride)
    assert_rule(y, ops.conv2d_dynamic_relu(*inputs, stride=stride, backend="reference"), exact)
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (5, 16, 7, 7, 40), (3, 7, 5, 3, 19), slow((2, 33, 12, 11, 70))], ids=str)
def test_behind_products(size, stride: int, dtype: torch.dtype, poison) -> None:
    """Images that end within tiles, whose slopes differ."""
    batch, channels, height, width, columns = size
    x, u = randn(batch, channels, height, width, dtype=dtype, fmt="nhwc"), 2 * randn(batch, 2 * columns, dtype=dtype)
    check_behind_convolution(x, randn(columns, channels, 1, 1, dtype=dtype), randn(columns, dtype=dtype), u, stride)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("case", [((1, 1, 1, 1), 1), ((3, 5, 9, 4), 1), ((2, 12, 6, 5), 6), slow(((2, 70, 3, 17), 1))], ids=str)
def test_behind_depthwise_convolutions(case, stride: int, dtype: torch.dtype, poison) -> None:
    size, times = case
    batch, wide = size[0], times * size[1]
    x, u = randn(*size, dtype=dtype, fmt="nhwc"), 2 * randn(batch, 2 * wide, dtype=dtype)
    check_behind_convolution(x, randn(wide, 1, 3, 3), randn(wide, dtype=dtype), u, stride)


def test_behind_convolutions_of_any_strides_and_empty() -> None:
    for x in (*views(6, 4, 5).values(), randn(1, 6, 2, 2)[:0]):
        u = randn(x.shape[0], 24)[:, ::2]
        for weight in (randn(6, 6, 1, 1), randn(6, 1, 3, 3)):
            check_behind_convolution(x, weight, None, u)
    x, u = randn(2, 6, 3, 3), randn(2, 12)
    u[1, 2] = float("nan")
    for weight in (randn(6, 6, 1, 1), randn(6, 1, 3, 3)):
        nan = ops.conv2d_dynamic_relu(x, weight, None, u, backend="triton").isnan()
        assert nan[1, 2].all()
        assert nan.sum() == 9


def test_any_strides_and_empty() -> None:
    for x in (*views(6, 4, 5).values(), randn(1, 6, 2, 2)[:0]):
        assert_bits(ops.dynamic_relu, x, randn(x.shape[0], 4 * x.shape[1])[:, ::2])


def test_nan_and_infinity() -> None:
    x, u = randn(2, 3, 4, 5), randn(2, 6)
    x[1, 2, 3, 4] = u[0, 4] = float("nan")
    x[0, 0, 0, 0], x[0, 0, 0, 1], u[1, 0], u[1, 3] = float("inf"), float("-inf"), float("inf"), float("-inf")
    y = assert_bits(ops.dynamic_relu, x, u)
    assert y[0, 1].isnan().all()


def test_gradients_arrive() -> None:
    assert_gradients_arrive(ops.dynamic_relu, randn(2, 3, 4, 5), randn(2, 6))
