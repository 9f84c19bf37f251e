from __future__ import annotations

import pytest
import torch
from marks import slow
from triton_checks import DTYPES, FORMATS, assert_rule, randn, views

from mvit_kernels import ops

Tensor = torch.Tensor


def check(x: Tensor, scale: Tensor) -> Tensor:
    y, plain = (ops.pool_mixer(x, scale, backend=backend) for backend in ("triton", "reference"))
    assert_rule(y, plain, ops.pool_mixer(x.double(), scale.double()))
    assert y.dtype == x.dtype
    assert y.stride() == plain.stride() or y.numel() == 0
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 4, 5), slow((1, 17, 1, 9)), slow((1, 5, 7, 1)), slow((2, 72, 6, 9))], ids=str)
def test_maps(size, fmt: str, dtype: torch.dtype, poison) -> None:
    check(randn(*size, dtype=dtype, fmt=fmt), randn(size[1]))
    check(randn(*size, dtype=dtype, fmt=fmt), randn(size[1], dtype=dtype))


def test_any_strides_empty_and_nan() -> None:
    for x in views(6, 4, 5).values():
        check(x, randn(2 * x.shape[1])[::2])
    check(randn(1, 6, 2, 2)[:0], randn(6))
    x = randn(1, 3, 4, 5)
    x[0, 1, 0, 0] = float("nan")
    nan = ops.pool_mixer(x, randn(3), backend="triton").isnan()[0]
    assert nan.nonzero().tolist() == [[1, row, column] for row in (0, 1) for column in (0, 1)]


def test_gradients_arrive() -> None:
    results = []
    inputs = randn(2, 3, 4, 5, fmt="nhwc"), randn(3)
    for backend in ("triton", "reference"):
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        ops.pool_mixer(*leaves, backend=backend).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    assert all(torch.allclose(ours, plain, atol=1e-4) for ours, plain in zip(*results, strict=True))
