"""hard_gate: float64, torch's own gradients, every tail; and the same bits in float32, which integers behind it need."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_checks import FLOATS, assert_forward_and_gradients, assert_reference_gradients, assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, axes

from mvit_kernels import ops

Tensor = torch.Tensor


def gate(x: Tensor, u: Tensor) -> Tensor:
    return x * F.hardsigmoid(u)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [(), (1,), (2, 3), (4, 17, 5), (1, 1030), (2, 3, 4, 5)], ids=str)
def test_forward_and_gradients(size, dtype: torch.dtype, isa: str, poison) -> None:
    draws = [[torch.randn(size).to(dtype), 3 * torch.randn(size).to(dtype)] for _ in range(3)]
    assert_forward_and_gradients(lambda x, u: ops.hard_gate(x, u, backend="cpu"), gate, *draws)


def test_the_same_bits_in_float32(isa: str) -> None:
    """Every operation is rounded once, in torch and in kernels: what stands beside integers must not differ."""
    x, u = torch.randn(1003), 4 * torch.randn(1003)
    assert torch.equal(ops.hard_gate(x, u, backend="cpu"), ops.hard_gate(x, u, backend="reference"))


def test_any_strides(backend: str) -> None:
    big = torch.randn(4, 6, 8, 10)
    for x in (big[1:, ::2], big[..., ::2], big.transpose(2, 3), big.permute(0, 3, 1, 2), big[:, :1].expand(-1, 3, -1, -1), big[:0]):
        torch.testing.assert_close(ops.hard_gate(x, 2 * x, backend=backend), gate(x, 2 * x))


def test_nan_stays_where_it_is(backend: str) -> None:
    x = torch.randn(2, 3, 4, 5)
    x[1, 2, 3, 4] = float("nan")
    assert torch.equal(ops.hard_gate(x, torch.randn_like(x), backend=backend).isnan(), x.isnan())
    assert torch.equal(ops.hard_gate(torch.ones(5), x[1, 2, 3], backend=backend).isnan(), x[1, 2, 3].isnan())


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    x, u = torch.randn(3, 40, 30, 30), torch.randn(3, 40, 30, 30)
    assert_same_bits_with_any_threads(lambda: [ops.hard_gate(x, u, backend="cpu")], threads)


def test_reference_gradients() -> None:
    assert_reference_gradients(lambda x, u: ops.hard_gate(x, u, backend="reference"), [torch.randn(3, 4), 4 * torch.randn(3, 4)])


def test_opcheck_and_compile() -> None:
    x, u, more = torch.randn(2, 6), torch.randn(2, 6), torch.randn(5, 6)
    torch.library.opcheck(torch.ops.mvit_kernels.hard_gate, (x.clone().requires_grad_(), u.clone().requires_grad_()))
    assert_compiles_and_exports(ops.hard_gate, [x, u], [more, more], dynamic=[axes(0), axes(0)])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.hard_gate(torch.zeros(3), 1.0), TypeError, "hard_gate: u: expected a tensor, got float"),
        (lambda: ops.hard_gate(torch.zeros(3), torch.zeros(2)), ValueError, r"hard_gate: u: expected .* \(3,\)"),
        (lambda: ops.hard_gate(torch.zeros(3).int(), torch.zeros(3).int()), TypeError, "hard_gate: x: expected dtype float32"),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
