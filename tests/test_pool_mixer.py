"""pool_mixer: the mean of what neighbours there are, against torch's own pooling."""

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
SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 48, 14, 14), (2, 65, 7, 3), (1, 17, 1, 9), (3, 16, 6, 1)]


def plain(x: Tensor, scale: Tensor) -> Tensor:
    return x + scale[:, None, None] * (F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_and_gradients(size, dtype: torch.dtype, fmt: str, isa: str, poison) -> None:
    draws = [[torch.randn(size).contiguous(memory_format=FORMATS[fmt]).to(dtype), torch.rand(size[1]).to(dtype)] for _ in range(3)]
    assert_forward_and_gradients(lambda x, scale: ops.pool_mixer(x, scale, backend="cpu"), plain, *draws)


def test_any_strides(backend: str) -> None:
    big = torch.randn(4, 6, 8, 10)
    for x in (big[1:, ::2], big[..., ::2], big.transpose(2, 3), big.permute(0, 3, 1, 2), big[:, :1].expand(-1, 3, -1, -1), big[:0]):
        scale = torch.rand(2 * x.shape[1])[::2]
        y = ops.pool_mixer(x, scale, backend=backend)
        assert y.shape == x.shape
        if x.numel():
            assert (y - plain(x.double(), scale.double())).abs().max() < 1e-5


def test_nan_reaches_its_neighbours_only(backend: str) -> None:
    x = torch.randn(1, 2, 6, 6)
    x[0, 1, 2, 2] = float("nan")
    y = ops.pool_mixer(x, torch.rand(2), backend=backend)
    assert y[0, 0].isfinite().all()
    assert torch.equal(y[0, 1].isnan(), F.max_pool2d(x.isnan().float(), 3, 1, 1)[0, 1] > 0)


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    x, scale = torch.randn(3, 40, 30, 30).contiguous(memory_format=torch.channels_last), torch.rand(40)
    assert_same_bits_with_any_threads(lambda: [ops.pool_mixer(x, scale, backend="cpu")], threads)


def test_reference_gradients() -> None:
    assert_reference_gradients(lambda x, s: ops.pool_mixer(x, s, backend="reference"), [torch.randn(2, 2, 3, 4), torch.rand(2)])


def test_opcheck_and_compile() -> None:
    x, scale = torch.randn(2, 3, 4, 5), torch.rand(3)
    torch.library.opcheck(torch.ops.mvit_kernels.pool_mixer, (x.requires_grad_(), scale.requires_grad_()))
    assert_compiles_and_exports(lambda x: ops.pool_mixer(x, scale.detach()), [x.detach()], [torch.randn(5, 3, 4, 5)], dynamic=[axes(0)])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.pool_mixer(None, torch.zeros(1)), TypeError, "pool_mixer: x: expected a tensor, got NoneType"),
        (lambda: ops.pool_mixer(torch.zeros(1, 2, 0, 3), torch.zeros(2)), ValueError, "pool_mixer: x: expected at least one channel"),
        (
            lambda: ops.pool_mixer(torch.zeros(1, 2, 3, 3), torch.zeros(3)),
            ValueError,
            "scale: expected one value for each of 2",
        ),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
