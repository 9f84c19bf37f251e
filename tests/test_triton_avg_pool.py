"""The Triton kernel of avg_pool by the float rule; test_avg_pool.py holds plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from marks import slow
from triton_checks import DEVICE, DTYPES, FORMATS, assert_rule, randn, views

from mvit_kernels import ops, reference

Tensor = torch.Tensor


def check(x: Tensor) -> Tensor:
    y = ops.avg_pool(x, backend="triton")
    assert y.dtype == x.dtype
    assert y.shape == x.shape[:2]
    assert y.is_contiguous()
    assert_rule(y, x.mean((2, 3)), x.double().mean((2, 3)))
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 4, 5), (2, 65, 7, 3), (1, 40, 1, 9), (2, 1, 5, 3), slow((1, 640, 8, 8))], ids=str)
def test_pool(size, fmt: str, dtype: torch.dtype, poison) -> None:
    check(randn(*size, dtype=dtype, fmt=fmt) + 1)


def test_more_pixels_than_a_tile_has() -> None:
    for fmt in FORMATS:
        check(randn(1, 3, 70, 50, fmt=fmt) + 1)
        half = torch.full((1, 3, 70, 50), 60000.0, dtype=torch.float16, device=DEVICE).contiguous(memory_format=FORMATS[fmt])
        assert torch.equal(check(half), half[:, :, 0, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("far", [0, 3, slow(100)])
def test_of_a_norm(far: float, fmt: str, dtype: torch.dtype, poison) -> None:
    """Means of several standard deviations, moments as they are kept between kernels, and more pixels than a tile has."""
    from mvit_kernels.triton_kernels.moments import parts_of

    for size in ((2, 65, 7, 3), (3, 5, 40, 41)):
        x = randn(*size, dtype=dtype, fmt=fmt) + torch.randn(size[1], 1, 1).to(DEVICE, dtype) + far
        moments, wide = reference.moments_of(x, size[0]), x.double()
        exact = F.gelu(F.group_norm(wide, 1, eps=0.1).mean((2, 3)))
        plain = F.gelu(F.group_norm(x, 1, eps=0.1).mean((2, 3)))
        for known in (moments, parts_of(x)[0]):
            y = ops.avg_pool(x, moments=known, eps=0.1, activation="gelu", backend="triton")
            assert_rule(y, plain, exact)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations(activation: str) -> None:
    x = 3 * randn(2, 33, 2, 2, fmt="nhwc")
    y = ops.avg_pool(x, activation=activation, backend="triton")
    assert_rule(y, *(reference.activate(each.mean((2, 3)), activation) for each in (x, x.double())))


def test_any_strides_and_empty() -> None:
    for x in (*views(5, 4, 6).values(), randn(1, 6, 2, 2)[:0]):
        check(x)


def test_nan_and_infinity_stay_in_their_channel() -> None:
    for fmt in FORMATS:
        x = randn(2, 5, 3, 4, fmt=fmt)
        x[0, 1, 2, 3], x[1, 4, 0, 0], x[1, 0, 1, 1] = float("nan"), float("inf"), float("-inf")
        y, expected = ops.avg_pool(x, backend="triton"), x.mean((2, 3))
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.isinf(), expected.isinf())


def test_gradients_arrive() -> None:
    x, results = randn(2, 3, 4, 5), []
    for backend in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        ops.avg_pool(leaf, backend=backend).square().sum().backward()
        results.append(leaf.grad)
    assert torch.allclose(*results, atol=1e-6)
