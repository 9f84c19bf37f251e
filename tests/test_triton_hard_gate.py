"""hard_gate: in float32 the bits of plain torch, which integers behind it need; else by the float rule."""

from __future__ import annotations

import pytest
import torch
from triton_checks import DTYPES, assert_bits, assert_gradients_arrive, randn, views

from mvit_kernels import ops


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(), (1,), (4, 17, 35)], ids=str)
def test_forward(size, dtype: torch.dtype, poison) -> None:
    assert_bits(ops.hard_gate, randn(*size, dtype=dtype), 4 * randn(*size, dtype=dtype))


def test_any_strides_and_empty() -> None:
    for x in (*views(6, 4, 5).values(), randn(1, 6, 2, 2)[:0]):
        assert_bits(ops.hard_gate, x, 2 * x)


def test_nan_and_infinity() -> None:
    x = randn(2, 3, 4, 5)
    x[1, 2, 3, 4], x[0, 0, 0, 0], x[0, 0, 0, 1] = float("nan"), float("inf"), float("-inf")
    assert_bits(ops.hard_gate, x, x.roll(1))
    assert_bits(ops.hard_gate, x.roll(1), x)


def test_gradients_arrive() -> None:
    assert_gradients_arrive(ops.hard_gate, randn(4, 5), 2 * randn(4, 5))
