from __future__ import annotations

import functools

import pytest
import torch
from marks import slow
from triton_checks import DTYPES, FORMATS, assert_gradients, assert_rule, randn, views

import mvit_kernels as mk
from mvit_kernels import reference

Tensor = torch.Tensor
# (batch, d, axis 2, axis 3, patch): tails of tiles and of channels, several tiles of a phase, one pixel.
SHAPES = [
    (2, 5, 4, 6, (2, 2)),
    slow((1, 2, 1, 1, None)),
    slow((1, 33, 4, 40, None)),
    slow((1, 70, 10, 8, (2, 2))),
    slow((1, 5, 6, 12, (2, 3))),
    slow((1, 130, 2, 20, None)),
    (2, 1, 4, 4, (2, 2)),
]


def make(batch: int, dim: int, height: int, width: int, dtype=torch.float32, fmt: str = "nhwc", mean: float = 0.0) -> list[Tensor]:
    x = (randn(batch, dim, height, width) + mean).to(dtype).contiguous(memory_format=FORMATS[fmt])
    sizes = (dim,), (dim,), (1 + 2 * dim, dim), (1 + 2 * dim,), (dim, dim), (dim,)
    return [x, *(randn(*size, dtype=dtype) / (size[-1] ** 0.5 if len(size) == 2 else 1) for size in sizes)]


def block(*inputs, **settings):
    return mk.ops.separable_attention_block(*inputs, backend="triton", **settings)


def check(inputs: list[Tensor], patch, **settings) -> Tensor:
    y = block(*inputs, patch_size=patch, **settings)
    exact = reference.separable_attention_block(*(each.double() for each in inputs), patch_size=patch)
    assert_rule(y, reference.separable_attention_block(*inputs, patch_size=patch), exact)
    return y


@pytest.fixture(params=[16, 64, 0], ids=["one launch", "phases in a tile", "two launches"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ways: which of them runs is a matter of speed."""
    from mvit_kernels.triton_kernels import separable_attention_block

    tile = {"BLOCK_T": request.param, "BLOCK_V": 32, "num_warps": 4, "num_stages": 2} if request.param else {}
    monkeypatch.setattr(separable_attention_block, "tile", lambda *_: tile)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, fmt: str, dtype: torch.dtype, products, poison) -> None:
    y = check(make(*shape[:4], dtype, fmt), shape[4])
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=FORMATS[fmt])


@pytest.mark.parametrize("dtype", [slow(torch.float32), torch.bfloat16], ids=str)
@pytest.mark.parametrize("mean", [slow(3.0), 100.0])
def test_any_mean_and_known_moments(mean: float, dtype: torch.dtype, products) -> None:
    inputs = make(2, 12, 4, 6, dtype, mean=mean)
    check(inputs, (2, 2))
    check(inputs, (2, 2), moments=reference.moments_of(inputs[0], 2))


def test_many_phases() -> None:
    """More than read their keys each for itself."""
    check(make(17, 40, 2, 4), (2, 2))


def test_moments_are_those_of_what_is_written(products) -> None:
    y, moments = block(*make(3, 40, 12, 10, torch.float16, mean=5.0), patch_size=(2, 2), collect=True)
    assert torch.allclose(moments, reference.moments_of(y, 3), rtol=1e-6)


def test_gradients() -> None:
    results = []
    inputs = make(2, 6, 4, 6)
    for function in (block, reference.separable_attention_block):
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        function(*leaves, patch_size=(2, 2)).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for ours, plain in zip(*results, strict=True):
        assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max() + 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
def test_gradients_in_sixteen_bits(fmt: str, dtype: torch.dtype) -> None:
    """Products are in that dtype there, as torch's own are."""
    x, *parameters = make(3, 24, 8, 6, dtype)
    plain = functools.partial(reference.separable_attention_block, patch_size=(2, 2))
    inputs = [x.contiguous(memory_format=FORMATS[fmt]), *parameters]
    assert_gradients(functools.partial(block, patch_size=(2, 2)), plain, inputs)


def test_gradients_with_known_moments() -> None:
    inputs = make(2, 24, 4, 6, torch.float16, mean=2.0)
    moments = reference.moments_of(inputs[0], 2)
    plain = functools.partial(reference.separable_attention_block, patch_size=(2, 2))
    assert_gradients(functools.partial(block, patch_size=(2, 2), moments=moments), plain, inputs)


def test_weights_that_change_are_seen() -> None:
    inputs = make(1, 5, 4, 4)
    for _ in range(2):
        check(inputs, (2, 2))
        inputs[3].mul_(2.0)


def test_any_strides_empty_and_refused() -> None:
    inputs = make(1, 5, 4, 6)
    for x in views(5, 4, 6).values():
        check([x, *inputs[1:]], (2, 2))
    y, moments = block(inputs[0][:0], *inputs[1:], patch_size=(2, 2), collect=True)
    assert (y.shape, moments.shape) == ((0, 5, 4, 6), (0, 2))
    with pytest.raises(ValueError, match="it has no kernel for more than 512 channels, got 513"):
        block(*make(1, 513, 1, 1))
