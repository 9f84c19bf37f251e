from __future__ import annotations

import functools

import pytest
import torch
from marks import slow
from triton_checks import DTYPES, FORMATS, assert_gradients, assert_rule, randn, views

import mvit_kernels as mk
from mvit_kernels import reference

Tensor = torch.Tensor
# One value; several strips and their tails; several tiles across and their tails; one row, one column.
SIZES = [slow((1, 1, 1, 1)), (2, 5, 7, 4), slow((1, 24, 19, 3)), slow((1, 70, 2, 75)), slow((3, 17, 1, 20)), slow((1, 16, 9, 1))]


def check(x: Tensor, weight: Tensor, bias: Tensor | None, **settings) -> Tensor:
    y = mk.ops.depthwise_conv2d(x, weight, bias, **settings, backend="triton")
    exact = mk.ops.depthwise_conv2d(*(None if each is None else each.double() for each in (x, weight, bias)), **settings)
    assert_rule(y, mk.ops.depthwise_conv2d(x, weight, bias, **settings, backend="reference"), exact)
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_convolutions(size, stride: int, dtype: torch.dtype, poison) -> None:
    check(randn(*size, dtype=dtype, fmt="nhwc"), randn(size[1], 1, 3, 3), randn(size[1], dtype=dtype), stride=stride, activation="silu")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, slow(4), slow(8)])
def test_strips_of_any_length(rows: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvit_kernels.triton_kernels import depthwise_conv2d

    tile = {"ROWS": rows, "BLOCK_W": 4, "BLOCK_C": 16, "num_warps": 1}
    monkeypatch.setattr(depthwise_conv2d, "tile", lambda y: tile)
    check(randn(1, 20, 5, 6, dtype=torch.float16, fmt="nhwc"), randn(20, 1, 3, 3), None, stride=stride)


@pytest.mark.parametrize("activation", [None, "relu", slow("silu"), "gelu", "relu6", "hard_swish"])
def test_activations(activation: str | None) -> None:
    check(randn(1, 8, 5, 6, fmt="nhwc"), 3 * randn(8, 1, 3, 3), None, activation=activation)


@pytest.mark.parametrize("times", [2, slow(6)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_filters_for_each_channel(dtype: torch.dtype, times: int, poison) -> None:
    check(randn(2, 11, 5, 6, dtype=dtype, fmt="nhwc"), randn(11 * times, 1, 3, 3), randn(11 * times), stride=2, activation="relu6")
    check(randn(1, 24, 3, 4, dtype=dtype, fmt="nhwc"), randn(24 * times, 1, 3, 3), None)


@pytest.mark.parametrize("fmt", FORMATS)
def test_any_strides_empty_and_nan(fmt: str) -> None:
    weight = randn(6, 1, 3, 3)
    for x in (*views(6, 4, 6).values(), randn(1, 6, 3, 4, fmt=fmt)):
        check(x, weight, None, stride=2)
    x = randn(1, 6, 4, 5, fmt=fmt)
    assert mk.ops.depthwise_conv2d(x[:0], weight, backend="triton").shape == (0, 6, 4, 5)
    x[0, 1, 2, 0] = float("nan")
    nan = mk.ops.depthwise_conv2d(x, weight, activation="relu", backend="triton").isnan()[0]
    assert nan.nonzero().tolist() == [[1, y, x] for y in (1, 2, 3) for x in (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_in_sixteen_bits(stride: int, dtype: torch.dtype) -> None:
    """Torch's own there, in that dtype."""
    how = {"stride": stride, "activation": "gelu"}
    inputs = [randn(2, 12, 6, 5, dtype=dtype, fmt="nhwc"), randn(12, 1, 3, 3, dtype=dtype), randn(12, dtype=dtype)]
    ours = functools.partial(mk.ops.depthwise_conv2d, **how, backend="triton")
    assert_gradients(ours, functools.partial(reference.depthwise_conv2d, **how), inputs)


def test_weights_that_change_are_seen_and_gradients_arrive() -> None:
    inputs = [randn(1, 5, 4, 3, fmt="nhwc"), randn(5, 1, 3, 3), randn(5)]
    for _ in range(2):
        check(*inputs)
        inputs[1].mul_(2.0)
    results = []
    for backend in ("triton", "reference"):
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        mk.ops.depthwise_conv2d(*leaves, activation="silu", backend=backend).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    assert all(torch.allclose(ours, plain, atol=1e-4) for ours, plain in zip(*results, strict=True))
