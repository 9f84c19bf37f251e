"""The gradient of a weight, summed over rows in parts."""

from __future__ import annotations

import pytest
import torch

from mvit_kernels.reference.pointwise import weight_gradient


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 127, 128, 129, 216, 1000])
@pytest.mark.parametrize("columns", [(5, 2), (129, 64), (70, 200)], ids=str)
def test_every_row_counts_once(rows: int, columns: tuple[int, int]) -> None:
    dy, x = (torch.randint(-9, 10, (rows, each)).double() for each in columns)
    for dtype in (torch.float32, torch.float64):  # integers: exact
        assert torch.equal(weight_gradient(dy.to(dtype), x.to(dtype)).double(), torch.einsum("mo,mc->oc", dy, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_rounded_once(dtype: torch.dtype) -> None:
    dy, x = torch.rand(1000, 5).to(dtype), torch.rand(1000, 7).to(dtype)
    assert torch.equal(weight_gradient(dy, x), dy.T @ x)
