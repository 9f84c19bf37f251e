from __future__ import annotations

import functools

import pytest
import torch
from marks import slow
from triton_checks import DTYPES, FORMATS, assert_gradients, assert_rule, randn, views

import mvit_kernels as mk
from mvit_kernels import reference

Tensor = torch.Tensor
# (batch, d, hidden, axis 2, axis 3): one pixel; channels of two powers of two; tails of tiles and of hidden channels.
SHAPES = [(2, 21, 40, 3, 7), slow((1, 1, 1, 1, 1)), slow((1, 40, 130, 5, 4)), slow((3, 64, 64, 1, 20)), slow((1, 144, 70, 4, 4))]


def make(
    batch: int, dim: int, hidden: int, height: int, width: int, dtype=torch.float32, fmt: str = "nhwc", mean: float = 0.0
) -> list[Tensor]:
    x = (randn(batch, dim, height, width) + mean).to(dtype).contiguous(memory_format=FORMATS[fmt])
    sizes = (dim,), (dim,), (hidden, dim), (hidden,), (dim, hidden), (dim,)
    return [x, *(randn(*size, dtype=dtype) / (size[-1] ** 0.5 if len(size) == 2 else 1) for size in sizes)]


def block(*inputs, **settings):
    return mk.ops.feed_forward(*inputs, backend="triton", **settings)


def check(inputs: list[Tensor], norm: str = "group", activation: str = "silu", **settings) -> Tensor:
    y = block(*inputs, norm=norm, activation=activation, **settings)
    exact = reference.feed_forward(*(each.double() for each in inputs), norm=norm, activation=activation)
    assert_rule(y, reference.feed_forward(*inputs, norm=norm, activation=activation), exact)
    return y


@pytest.fixture(params=["one launch", "two launches"])
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: which of them runs is a matter of speed."""
    from mvit_kernels.triton_kernels import feed_forward

    tile = {"BLOCK_T": 16, "BLOCK_H": 32, "num_warps": 4, "num_stages": 2} if request.param == "one launch" else {}
    monkeypatch.setattr(feed_forward, "tile", lambda *_: tile)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, norm: str, dtype: torch.dtype, launches, poison) -> None:
    y = check(make(*shape, dtype), norm)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [slow(torch.float32), torch.bfloat16], ids=str)
@pytest.mark.parametrize("mean", [slow(3.0), 100.0])
def test_any_mean_and_known_moments(mean: float, dtype: torch.dtype, launches) -> None:
    inputs = make(2, 12, 24, 4, 6, dtype, mean=mean)
    check(inputs, "layer")
    check(inputs)
    check(inputs, moments=reference.moments_of(inputs[0], 2))


@pytest.mark.parametrize("activation", ["none", "relu", slow("gelu")])
def test_activations(activation: str) -> None:
    check(make(1, 5, 9, 2, 3), "layer", activation)


def test_moments_are_those_of_what_is_written(launches) -> None:
    y, moments = block(*make(3, 24, 16, 4, 5, torch.float16, mean=5.0), collect=True)
    assert torch.allclose(moments, reference.moments_of(y, 3), rtol=1e-6)


def test_gradients_with_known_moments() -> None:
    inputs = make(2, 24, 40, 4, 6, torch.float16, mean=2.0)
    assert_gradients(functools.partial(block, moments=reference.moments_of(inputs[0], 2)), reference.feed_forward, inputs)


def test_gradients() -> None:
    results = []
    inputs = make(2, 6, 8, 4, 6)
    for norm in ("group", "layer"):
        for function in (block, reference.feed_forward):
            leaves = [each.detach().clone().requires_grad_() for each in inputs]
            function(*leaves, norm=norm).square().sum().backward()
            results.append([leaf.grad for leaf in leaves])
        for ours, plain in zip(*results[-2:], strict=True):
            assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max() + 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_gradients_in_sixteen_bits(activation: str, norm: str, dtype: torch.dtype) -> None:
    """Products are in that dtype there, as torch's own are."""
    how = {"norm": norm, "activation": activation}
    assert_gradients(functools.partial(block, **how), functools.partial(reference.feed_forward, **how), make(3, 24, 40, 6, 5, dtype))


def test_weights_that_change_are_seen() -> None:
    inputs = make(1, 5, 8, 4, 4)
    for _ in range(2):
        check(inputs)
        inputs[3].mul_(2.0)


def test_any_strides_empty_and_nan() -> None:
    inputs = make(1, 5, 8, 4, 6)
    for x in views(5, 4, 6).values():
        check([x, *inputs[1:]], "layer")
    y, moments = block(inputs[0][:0], *inputs[1:], collect=True)
    assert (y.shape, moments.shape) == ((0, 5, 4, 6), (0, 2))
    inputs[0][0, 1, 2, 3] = float("nan")
    nan = block(*inputs, norm="layer").isnan()[0]
    assert nan[:, 2, 3].all()
    assert nan.sum() == 5


def test_more_channels_than_registers_hold() -> None:
    check(make(1, 520, 16, 1, 2), "layer")
