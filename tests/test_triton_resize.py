"""The Triton kernel of resize by the float rule; test_resize.py holds plain torch."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from test_resize import plain, resize
from triton_checks import DTYPES, FORMATS, assert_rule, randn, views

from mvit_kernels import reference

Tensor = torch.Tensor


def check(x: Tensor, size: tuple[int, int], activation: str | None = None) -> None:
    for align_corners in (False, True):
        y = resize(x, size, align_corners, activation, "triton")
        assert y.dtype == x.dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_rule(y, *(plain(each, size, align_corners, activation) for each in (x, x.double())))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 5, slow(70)])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), slow((3, 40)), (14, 6), slow((8, 8))], ids=str)
def test_sizes(size, channels: int, dtype: torch.dtype, poison) -> None:
    for height, width in ((8, 8), (7, 3), (1, 5)):
        check(randn(2, channels, height, width, dtype=dtype), size)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations(activation: str) -> None:
    check(3 * randn(2, 19, 5, 4, fmt="nhwc"), (7, 3), activation)


def test_any_strides_and_empty() -> None:
    for x in (*views(5, 4, 6).values(), randn(0, 3, 4, 4)):
        check(x, (5, 5))


def test_offsets_beyond_32_bits(monkeypatch) -> None:
    from mvit_kernels.triton_kernels import resize as kernels

    x, results = randn(2, 5, 6, 7, fmt="nhwc"), []
    for _ in range(2):
        results.append(resize(x, (9, 4), backend="triton"))
        monkeypatch.setattr(kernels, "far", lambda *_: True)
    assert torch.equal(*results)


def test_gradients_arrive() -> None:
    for fmt in FORMATS:
        x, results = randn(2, 3, 4, 5, fmt=fmt), []
        for backend in ("triton", "reference"):
            leaf = x.clone().requires_grad_()
            resize(leaf, (7, 3), activation="gelu", backend=backend).square().sum().backward()
            results.append(leaf.grad)
        assert torch.allclose(*results, atol=1e-5)
