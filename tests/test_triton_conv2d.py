from __future__ import annotations

import functools

import pytest
import torch
from marks import slow
from triton_checks import DTYPES, FORMATS, assert_gradients, assert_rule, randn, views

import mvit_kernels as mk
from mvit_kernels import reference

Tensor = torch.Tensor
# (batch, C, C2, N, H, W): one of each, images whose values are gathered, tails of tiles, channels beside each other, several steps.
SHAPES = [
    slow((1, 1, 0, 1, 1, 1)), (2, 3, 0, 17, 9, 5), slow((1, 4, 0, 40, 6, 8)), (2, 17, 0, 24, 3, 5), slow((1, 72, 0, 70, 5, 9)),
    (1, 8, 16, 9, 4, 5), slow((3, 33, 70, 16, 1, 7)),
]  # fmt: skip


def make(shape, kernel: int, dtype: torch.dtype = torch.float32, fmt: str = "nhwc") -> dict[str, Tensor]:
    batch, channels, beside, columns, height, width = shape
    weight = randn(columns, channels + beside, kernel, kernel) / (kernel * (channels + beside) ** 0.5)
    inputs = {
        "x": randn(batch, channels, height, width, dtype=dtype, fmt=fmt),
        "weight": weight.to(dtype),
        "bias": randn(columns, dtype=dtype),
    }
    return inputs | {"second": randn(batch, beside, height, width, dtype=dtype, fmt=fmt)} if beside else inputs


def check(inputs: dict[str, Tensor], **settings) -> Tensor:
    y = mk.ops.conv2d(**inputs, **settings, backend="triton")
    exact = mk.ops.conv2d(**{name: each if each is None else each.double() for name, each in inputs.items()}, **settings)
    assert_rule(y, mk.ops.conv2d(**inputs, **settings, backend="reference"), exact)
    assert y.dtype == inputs["x"].dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolutions(shape, kernel: int, stride: int, dtype: torch.dtype, poison) -> None:
    check(make(shape, kernel, dtype), stride=stride)


@pytest.mark.parametrize("activation", [None, slow("relu"), "silu", slow("gelu")])
@pytest.mark.parametrize("shape", [(2, 3, 0, 16, 5, 4), (1, 16, 8, 24, 5, 4)], ids=str)
def test_epilogues(shape, activation: str | None) -> None:
    inputs = make(shape, 3, torch.float16)
    check(inputs | {"residual": randn(shape[0], shape[3], 3, 2, dtype=torch.float16)}, stride=2, activation=activation)
    check(inputs | {"bias": None}, activation=activation)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("channels", [3, 6])
def test_any_strides(channels: int, fmt: str) -> None:
    weight, bias = randn(5, channels, 3, 3) / 6, randn(5)
    for x in views(channels, 4, 6).values():
        check({"x": x, "weight": weight, "bias": bias}, stride=2)
    check(make((1, channels, 2, 5, 4, 4), 3, fmt=fmt))
    some = randn(2, 24, 4, 4, fmt="nhwc")
    x, second = some[:, :7], some[:, 9:]  # views whose pixels are further apart than their channels
    for kernel in (1, 3):
        check({"x": x, "weight": randn(16, 22, kernel, kernel) / 10, "bias": None, "second": second})


def test_empty_and_nan() -> None:
    for channels in (3, 8):
        inputs = make((1, channels, 0, 4, 5, 5), 3)
        assert mk.ops.conv2d(inputs["x"][:0], inputs["weight"], stride=2, backend="triton").shape == (0, 4, 3, 3)
        inputs["x"][0, 1, 2, 3] = float("nan")
        nan = mk.ops.conv2d(**inputs, activation="relu", backend="triton").isnan().all(1)[0]
        assert nan.nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (2, 3, 4)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_gradients_in_sixteen_bits(kernel: int, stride: int, dtype: torch.dtype) -> None:
    """Torch's own there, in that dtype."""
    how = {"stride": stride, "activation": "silu"}
    x, weight = randn(2, 12, 6, 5, dtype=dtype, fmt="nhwc"), randn(20, 12, kernel, kernel, dtype=dtype) / 6
    plain = functools.partial(reference.conv2d, **how)
    assert_gradients(functools.partial(mk.ops.conv2d, **how, backend="triton"), plain, [x, weight, randn(20, dtype=dtype)])


def test_weights_that_change_are_seen_and_gradients_arrive() -> None:
    inputs = make((1, 5, 0, 6, 4, 3), 3)
    for _ in range(2):
        check(inputs)
        inputs["weight"].mul_(2.0)
    results = []
    for backend in ("triton", "reference"):
        leaves = [each.detach().clone().requires_grad_() for each in inputs.values()]
        mk.ops.conv2d(*leaves, activation="silu", backend=backend).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    assert all(torch.allclose(ours, plain, atol=1e-4) for ours, plain in zip(*results, strict=True))
