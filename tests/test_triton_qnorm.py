"""Bits of the Triton kernels are those of plain torch (which test_qnorm.py holds against Python's integers)."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from q_checks import random_bytes, random_packed_weight
from triton_checks import DEVICE

from mvit_kernels import ops, reference

Tensor = torch.Tensor
NORM = {"scale": 0.0071, "out_scale": 0.11, "out_zero_point": 130}


def stream(rows: int, depth: int) -> Tensor:
    """Rows about different means, some of which reach both ends of int16."""
    x = 40.0 * torch.randn(rows, depth) + 3000.0 * torch.randn(rows, 1)
    x[::3] *= 50
    return x.clamp(-32768, 32767).to(DEVICE, torch.int16)


def check(x: Tensor, sums: Tensor | None = None, **arguments) -> None:
    y = ops.qnorm(x, sums, backend="triton", **{**NORM, **arguments})
    expected = ops.qnorm(x, sums, backend="reference", **{**NORM, **arguments})
    assert torch.equal(y, expected)
    assert y.is_contiguous()


@pytest.mark.parametrize("size", [(1, 1), (6, 17), (70, 144), slow((40, 640)), (2, 9000), slow((1, 17000))], ids=str)
def test_rows_and_groups(size) -> None:
    x = stream(*size)
    for groups in {None, 1, size[0], *([2] if size[0] % 2 == 0 else [])}:
        check(x, groups=groups)
        if groups is not None:
            check(x, reference.stream_sums(x, groups), bits=6)


@pytest.mark.parametrize("size", [(1, 1), (6, 17), (70, 144), (2, 9000)], ids=str)
def test_weight_and_bias(size) -> None:
    """Of each channel, of groups in registers and of larger ones; infinite sums become 0 or the end they are at."""
    x, (weight, bias) = stream(*size), torch.randn(2, size[1])
    weight[::5], bias[1::7] = 0, 1e30
    for groups in {None, 1, size[0]}:
        check(x, groups=groups, weight=weight, bias=bias)
        check(x, groups=groups, weight=1e38 * weight, bias=bias, bits=6)
    check(x, reference.stream_sums(x, 1), weight=weight, bias=bias)


@pytest.mark.parametrize("pieces", [1, 5, 300])
def test_sums_of_pieces(pieces: int) -> None:
    x = stream(6, 40)
    parts = torch.randint(-(2**40), 2**40, (2, pieces, 2), device=DEVICE)
    parts[:, 0] += reference.stream_sums(x, 2) - parts.sum(1)
    check(x, parts)


def test_groups_of_many_pieces() -> None:
    x = stream(3 * 1030, 96)
    x[:1030] = -32768
    x[1030] = 32767
    check(x, groups=3)
    check(x, reference.stream_sums(x, 3))
    check(torch.full((2**12, 80), 32767, dtype=torch.int16, device=DEVICE), groups=1)


@pytest.mark.parametrize("quantization", [
    {"scale": 2.0**-126, "eps": 1e-300}, {"scale": 2.0**126, "out_scale": 2.0**-100, "eps": 1e-5}, {"out_zero_point": -(2**20)},
    {"out_zero_point": 2**20, "eps": 1.0}, {"eps": 5e-324}, {"out_scale": 1e-3, "out_zero_point": 1, "bits": 6},
], ids=str)  # fmt: skip
def test_extremes(quantization) -> None:
    """Infinite factors and subnormal ones; rows of one value, whose differences are 0."""
    x = stream(9, 40)
    x[1], x[2], x[3], x[4, 1:] = 0, -32768, 32767, 5
    for groups in (None, 3):
        check(x, groups=groups, **quantization)


def test_any_strides_and_empty() -> None:
    big = stream(24, 60)
    for x in (big[::2, 7:50], big.T, big[:, ::2], big[:0], big[:, :0], big[:1].expand(6, -1)):
        for groups in (None, *([2] if x.shape[0] else [0])):
            check(x, groups=groups)
            if groups is not None:
                check(x, reference.stream_sums(x, groups))


@pytest.mark.parametrize("bits", [8, 6])
def test_products_behind_and_before(bits: int) -> None:
    """qnorm_gemm, and the sums that qgemm collects."""
    weight = random_packed_weight(7, 33, bits)
    x, a, residual = stream(6, 33), random_bytes(6, 33).to(DEVICE), stream(6, 7)
    norm = {"scale": 0.01, "a_scale": 0.03, "a_zero_point": 120, "w_scale": 0.01, "bias": torch.randn(7)}
    product = {"a_scale": 0.05, "a_zero_point": 113, "w_scale": 0.01, "out_dtype": torch.int16, "out_scale": 0.02}
    for groups in (2, 6):
        for sums in (None, reference.stream_sums(x, groups)):
            y, expected = (
                ops.qnorm_gemm(x, weight, sums, out_dtype=torch.uint8, out_scale=0.1, out_zero_point=99, **norm, backend=backend)
                for backend in ("triton", "reference")
            )
            assert torch.equal(y, expected)
        for rows in (6, 0):
            ours, expected = (
                ops.qgemm(a[:rows], weight, residual=residual[:rows], collect=groups, **product, backend=backend)
                for backend in ("triton", "reference")
            )
            assert all(torch.equal(*each) for each in zip(ours, expected, strict=True))
