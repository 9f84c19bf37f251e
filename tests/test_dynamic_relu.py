"""dynamic_relu: float64, torch's own gradients, every tail; and the same bits in float32, which integers behind them need."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_checks import (
    FLOATS,
    FORMATS,
    assert_forward_and_gradients,
    assert_reference_gradients,
    assert_same_bits_with_any_threads,
    needs_native,
)
from q_checks import assert_compiles_and_exports, axes

from mvit_kernels import ops

Tensor = torch.Tensor
SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (3, 48, 14, 14), (2, 65, 7, 3), (1, 17, 1, 9), (2, 1030, 3, 1)]


def plain(x: Tensor, u: Tensor) -> Tensor:
    """As Mobile-Former's module has it, of what stands in front of its hard-sigmoid, divided by 3."""
    a, b = (2 * F.hardsigmoid(3 * u)[..., None, None]).chunk(2, dim=1)
    return torch.maximum(a * x, (b - 1) * x)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dynamic_relu(size, dtype: torch.dtype, fmt: str, isa: str, poison) -> None:
    draws = [
        [torch.randn(size).contiguous(memory_format=FORMATS[fmt]).to(dtype), torch.randn(size[0], 2 * size[1]).to(dtype)] for _ in range(3)
    ]
    assert_forward_and_gradients(lambda x, u: ops.dynamic_relu(x, u, backend="cpu"), plain, *draws)


def test_zero_is_relu(backend: str) -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(ops.dynamic_relu(x, torch.zeros(2, 6), backend=backend), torch.relu(x))


def test_the_same_bits_in_float32(isa: str) -> None:
    """Every operation is rounded once, in torch and in kernels: what stands beside integers must not differ."""
    x, u = torch.randn(2, 37, 5, 3).contiguous(memory_format=torch.channels_last), 2 * torch.randn(2, 74)
    assert torch.equal(ops.dynamic_relu(x, u, backend="cpu"), ops.dynamic_relu(x, u, backend="reference"))


def test_any_strides(backend: str) -> None:
    big = torch.randn(4, 6, 8, 10)
    for x in (big[1:, ::2], big[..., ::2], big.transpose(2, 3), big.permute(0, 3, 1, 2), big[:, :1].expand(-1, 3, -1, -1), big[:0]):
        u = torch.randn(x.shape[0], 4 * x.shape[1])[:, ::2]
        y = ops.dynamic_relu(x, u, backend=backend)
        assert y.shape == x.shape
        torch.testing.assert_close(y, plain(x, u))


def test_nan_stays_where_it_is(backend: str) -> None:
    x, u = torch.randn(2, 3, 4, 5), torch.randn(2, 6)
    x[1, 2, 3, 4] = float("nan")
    assert torch.equal(ops.dynamic_relu(x, u, backend=backend).isnan(), x.isnan())
    u[0, 1] = u[1, 5] = float("nan")  # of the first slope, and of the second
    assert torch.equal(ops.dynamic_relu(x, u, backend=backend).isnan(), plain(x, u).isnan())


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    x, u = torch.randn(3, 40, 30, 30).contiguous(memory_format=torch.channels_last), torch.randn(3, 80)
    assert_same_bits_with_any_threads(lambda: [ops.dynamic_relu(x, u, backend="cpu")], threads)


def test_reference_gradients() -> None:
    inputs = [torch.randn(2, 2, 3, 4), torch.randn(2, 4)]
    assert_reference_gradients(lambda x, u: ops.dynamic_relu(x, u, backend="reference"), inputs)


def test_opcheck_and_compile() -> None:
    x, u = torch.randn(2, 3, 4, 5), torch.randn(2, 6)
    torch.library.opcheck(torch.ops.mvit_kernels.dynamic_relu, (x.clone().requires_grad_(), u.clone().requires_grad_()))
    more = [torch.randn(5, 3, 4, 5), torch.randn(5, 6)]
    assert_compiles_and_exports(ops.dynamic_relu, [x, u], more, dynamic=[axes(0), axes(0)])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.dynamic_relu(None, torch.zeros(1)), TypeError, "dynamic_relu: x: expected a tensor, got NoneType"),
        (
            lambda: ops.dynamic_relu(torch.zeros(1, 2, 0, 3), torch.zeros(1, 4)),
            ValueError,
            "dynamic_relu: x: expected at least one channel",
        ),
        (lambda: ops.dynamic_relu(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2)), ValueError, r"dynamic_relu: u: expected .* \(1, 4\)"),
        (
            lambda: ops.dynamic_relu(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4).half()),
            ValueError,
            "dynamic_relu: u: expected torch.float32",
        ),
        (lambda: ops.dynamic_relu(torch.zeros(1, 2, 3, 3).int(), torch.zeros(1, 4)), TypeError, "dynamic_relu: x: expected dtype float32"),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
