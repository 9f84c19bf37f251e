from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tolerance import assert_float_rule

import mvit_kernels as mk
from mvit_kernels.ops.backend import native

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# (batch, C, H, W): tails of every vector width, one and several tiles, the shapes of the networks.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 1, 1),
    (1, 1, 3, 5),
    (2, 5, 7, 9),
    (1, 17, 4, 4),
    (3, 33, 5, 3),
    (1, 64, 32, 32),
    (2, 130, 8, 8),
    (1, 8, 30, 131),
]

needs_native = pytest.mark.skipif(native is None, reason="the native kernels are not built")


def make(shape, dtype=torch.float32, fmt="nchw", ratio: float = 0.0) -> list[torch.Tensor]:
    """x of standard deviation 1 and mean `ratio`, weight and bias."""
    x = (torch.randn(shape, dtype=torch.float64) + ratio).to(dtype).contiguous(memory_format=FORMATS[fmt])
    return [x, torch.randn(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype)]


def gradients(function, inputs: list[torch.Tensor], dy: torch.Tensor) -> list[torch.Tensor]:
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in inputs]
    function(*leaves).backward(dy)
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("ratio", [0.0, 3.0, 30.0, 100.0])
def test_any_mean(ratio: float, fmt: str, dtype: torch.dtype, isa: str, poison) -> None:
    inputs = make((2, 24, 17, 33), dtype, fmt, ratio)
    exact = [each.double() for each in inputs]
    y = mk.ops.group_norm(*inputs, backend="cpu")
    assert_float_rule(y, torch.group_norm(inputs[0], 1, *inputs[1:]), torch.group_norm(exact[0], 1, *exact[1:]))
    dy = torch.randn_like(y)
    ours = gradients(lambda *a: mk.ops.group_norm(*a, backend="cpu"), inputs, dy)
    plain = gradients(lambda x, w, b: torch.group_norm(x, 1, w, b), inputs, dy)
    right = gradients(lambda x, w, b: torch.group_norm(x, 1, w, b), exact, dy.double())
    for a, b, c in zip(ours, plain, right, strict=True):
        assert_float_rule(a, b, c)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tail(shape, fmt: str, isa: str, poison) -> None:
    inputs = make(shape, fmt=fmt)
    exact = [each.double() for each in inputs]
    y = mk.ops.group_norm(*inputs, 1e-3, backend="cpu")
    assert y.is_contiguous(memory_format=FORMATS[fmt])
    assert_float_rule(y, torch.group_norm(inputs[0], 1, *inputs[1:], 1e-3), torch.group_norm(exact[0], 1, *exact[1:], 1e-3))
    dy = torch.randn_like(y)
    ours = gradients(lambda *a: mk.ops.group_norm(*a, 1e-3, backend="cpu"), inputs, dy)
    plain = gradients(lambda x, w, b: torch.group_norm(x, 1, w, b, 1e-3), inputs, dy)
    right = gradients(lambda x, w, b: torch.group_norm(x, 1, w, b, 1e-3), exact, dy.double())
    for a, b, c in zip(ours, plain, right, strict=True):
        assert_float_rule(a, b, c)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_any_strides_and_dtypes(backend: str, isa: str) -> None:
    big = torch.randn(3, 11, 8, 14)
    weight, bias = torch.randn(22)[::2], torch.randn(11)
    for x in (big[1:], big[:, :, 2:6], big[..., ::2], big.transpose(2, 3), big[:1].expand(3, -1, -1, -1)):
        expected = torch.group_norm(x.double(), 1, weight.double(), bias.double())
        assert (mk.ops.group_norm(x, weight, bias, backend=backend) - expected).abs().max() < 1e-5
        leaf = x.detach().requires_grad_()
        mk.ops.group_norm(leaf, weight, bias, backend=backend).sum().backward()  # the gradient arrives expanded
        (right,) = gradients(lambda t: torch.group_norm(t, 1, weight.double(), bias.double()), [x.double()], torch.ones_like(expected))
        assert (leaf.grad - right).abs().max() < 1e-5
    half = mk.ops.group_norm(big.bfloat16(), weight, bias, backend=backend)  # float32 parameters beside 16-bit activations
    assert half.dtype == torch.bfloat16


@needs_native
@pytest.mark.parametrize("fmt", FORMATS)
def test_same_bits_on_any_number_of_threads_and_from_several(fmt: str, threads) -> None:
    inputs = make((3, 48, 40, 40), fmt=fmt)
    dy = torch.randn_like(inputs[0])

    def both() -> list[torch.Tensor]:
        y = mk.ops.group_norm(*inputs, backend="cpu")
        return [y, *gradients(lambda *a: mk.ops.group_norm(*a, backend="cpu"), inputs, dy)]

    threads(1)
    expected = both()
    for count in (2, 3, 7):
        threads(count)
        for a, b in zip(both(), expected, strict=True):
            assert torch.equal(a, b)
    threads(2)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: both(), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty(shape, backend: str) -> None:
    if backend == "cpu" and native is None:
        pytest.skip("the native kernels are not built")
    inputs = [torch.randn(shape), torch.randn(3), torch.randn(3)]
    dx, dweight, dbias = gradients(lambda *a: mk.ops.group_norm(*a, backend=backend), inputs, torch.zeros(shape))
    assert dx.shape == shape
    assert torch.equal(dweight, torch.zeros(3))
    assert torch.equal(dbias, torch.zeros(3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_stay_where_torch_has_them(value: float, isa: str) -> None:
    x, weight, bias = make((3, 5, 8, 9))
    x[1, 2, 3, 4] = value
    expected, actual = torch.group_norm(x, 1, weight, bias), mk.ops.group_norm(x, weight, bias, backend="cpu")
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)


def test_constant_image(isa: str) -> None:
    x, weight, bias = torch.full((1, 4, 6, 6), 3e4), torch.randn(4), torch.randn(4)
    y = mk.ops.group_norm(x, weight, bias, backend="cpu")
    assert torch.allclose(y, bias[:, None, None].expand_as(y), atol=1e-6)


def test_float16_near_its_largest_value(isa: str) -> None:
    x = torch.empty(1, 8, 32, 32).uniform_(-6e4, 6e4).half()
    y = mk.ops.group_norm(x, torch.ones(8).half(), torch.zeros(8).half(), backend="cpu")
    exact = torch.group_norm(x.double(), 1, None, None, 1e-5)
    assert (y.double() - exact).abs().max() <= 2**-10 * exact.abs().max()


def test_reference_gradients() -> None:
    inputs = [torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    for each in inputs:
        each.requires_grad_()
    assert torch.autograd.gradcheck(mk.ops.group_norm, inputs)
    assert torch.autograd.gradgradcheck(mk.ops.group_norm, inputs)


@pytest.mark.parametrize("fmt", FORMATS)
def test_opcheck(fmt: str) -> None:
    x, weight, bias = make((2, 5, 4, 6), fmt=fmt)
    for requires_grad in (False, True):
        leaves = [each.detach().requires_grad_(requires_grad) for each in (x, weight, bias)]
        torch.library.opcheck(torch.ops.mvit_kernels.group_norm, leaves)
    torch.library.opcheck(torch.ops.mvit_kernels.group_norm_backward, (torch.randn_like(x), x, weight, 1e-5, None))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, torch.ones(3), torch.ones(3)), TypeError, "group_norm: x: expected a tensor, got NoneType"),
        ((torch.ones(1, 3, 4), torch.ones(3), torch.ones(3)), ValueError, r"x: expected 4 dimensions, got shape \(1, 3, 4\)"),
        ((torch.ones(1, 3, 4, 4), torch.ones(4), torch.ones(3)), ValueError, "weight: expected one value for each of 3 channels, got 4"),
        ((torch.ones(1, 3, 4, 4), torch.ones(3), torch.ones(3).half()), TypeError, "bias: expected dtype float32, got float16"),
        ((torch.ones(1, 3, 4, 4).int(), torch.ones(3), torch.ones(3)), TypeError, "x: expected dtype float32, .* got int32"),
    ],
)
def test_bad_input(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        mk.ops.group_norm(*arguments)
