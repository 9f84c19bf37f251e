from __future__ import annotations

import pytest
import torch
from marks import slow
from triton_checks import DEVICE, FORMATS, randn, views

import mvit_kernels as mk
from mvit_kernels import reference

SIZES = [
    ((2, 5, 4, 6), (2, 2)),
    ((1, 3, 6, 9), (2, 3)),
    slow(((1, 20, 6, 8), (3, 4))),
    slow(((1, 1, 40, 72), (2, 2))),
    ((1, 2, 3, 5), (1, 1)),
]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_both_ways(shape, fmt: str, poison) -> None:
    size, patch = shape
    x = randn(*size, fmt=fmt)
    p = mk.ops.unfold_patches(x, patch, backend="triton")
    assert torch.equal(p, reference.unfold_patches(x, patch))
    assert p.is_contiguous(memory_format=FORMATS[fmt])
    y = mk.ops.fold_patches(p, size[2:], patch, backend="triton")
    assert torch.equal(y, x)
    assert y.is_contiguous(memory_format=FORMATS[fmt])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64, torch.bool, torch.complex64], ids=str)
def test_any_dtype(dtype: torch.dtype) -> None:
    x = (randn(1, 3, 4, 4) * 100).to(torch.uint8).to(dtype)
    p = mk.ops.unfold_patches(x, backend="triton")
    assert torch.equal(p, reference.unfold_patches(x))
    assert torch.equal(mk.ops.fold_patches(p, (4, 4), backend="triton"), x)


def test_any_strides() -> None:
    for name, x in views(5, 4, 6).items():
        assert torch.equal(mk.ops.unfold_patches(x, backend="triton"), reference.unfold_patches(x)), name
        # The same memory as phases: four of six positions.
        assert torch.equal(mk.ops.fold_patches(x, (4, 6), backend="triton"), reference.fold_patches(x, (4, 6))), name


def test_each_is_the_gradient_of_the_other() -> None:
    x = randn(1, 3, 4, 6).requires_grad_()
    p = mk.ops.unfold_patches(x, backend="triton")
    weight = torch.randn_like(p)
    (p * weight).sum().backward()
    assert torch.equal(x.grad, reference.fold_patches(weight, (4, 6)))


def test_empty_and_refused() -> None:
    assert mk.ops.unfold_patches(randn(0, 3, 4, 4), backend="triton").shape == (0, 3, 4, 4)
    with pytest.raises(ValueError, match=r"backend 'triton' was requested .* it has no kernel for torch.complex128"):
        mk.ops.unfold_patches(torch.zeros(1, 1, 2, 2, dtype=torch.complex128, device=DEVICE), backend="triton")
