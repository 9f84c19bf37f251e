from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from marks import slow
from tolerance import assert_float_rule

import mvit_kernels as mk
from mvit_kernels.ops.backend import native

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# (batch, C, H, W): tails of channels and of blocks of pixels, 1 x 1 and odd maps.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 1, 1),
    (2, 17, 1, 5),
    (1, 33, 5, 1),
    (2, 16, 2, 2),
    (1, 5, 7, 9),
    (3, 33, 8, 8),
    (1, 64, 15, 18),
    (1, 3, 9, 33),
]

needs_native = pytest.mark.skipif(native is None, reason="the native kernels are not built")
_ACTIVATIONS = {
    None: lambda t: t, "relu": torch.relu, "silu": F.silu, "gelu": F.gelu, "relu6": F.relu6, "hard_swish": F.hardswish
}  # fmt: skip


def make(shape, dtype=torch.float32, fmt="nhwc", bias: bool = True) -> list[torch.Tensor | None]:
    x = torch.randn(shape).to(dtype).contiguous(memory_format=FORMATS[fmt])
    return [x, torch.randn(shape[1], 1, 3, 3).to(dtype), torch.randn(shape[1]).to(dtype) if bias else None]


def plain(x, weight, bias, stride: int = 1, activation: str | None = None) -> torch.Tensor:
    y = F.conv2d(x, weight, bias, stride, 1, groups=x.shape[1])
    return _ACTIVATIONS[activation](y)


def exact(x, weight, bias, stride: int = 1, activation: str | None = None) -> torch.Tensor:
    return plain(x.double(), weight.double(), None if bias is None else bias.double(), stride, activation)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tail(shape, stride: int, fmt: str, dtype: torch.dtype, isa: str, poison) -> None:
    inputs = make(shape, dtype, fmt)
    y = mk.ops.depthwise_conv2d(*inputs, stride=stride, backend="cpu")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == dtype
    assert_float_rule(y, plain(*inputs, stride), exact(*inputs, stride))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("activation", _ACTIVATIONS)
def test_activations(activation: str | None, backend: str, isa: str) -> None:
    for bias in (True, False):
        inputs = make((2, 19, 9, 14), bias=bias)
        y = mk.ops.depthwise_conv2d(*inputs, activation=activation, backend=backend)
        assert_float_rule(y, plain(*inputs, 1, activation), exact(*inputs, 1, activation))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "times"), [(1, 5), (3, 2), (8, 3), (12, 6), (17, 4)])
def test_several_filters_for_each_channel(channels: int, times: int, stride: int, dtype: torch.dtype, isa: str, poison) -> None:
    x, weight, bias = (
        torch.randn(2, channels, 9, 14).to(dtype), torch.randn(channels * times, 1, 3, 3).to(dtype), torch.randn(channels * times).to(dtype)
    )  # fmt: skip
    y = mk.ops.depthwise_conv2d(x, weight, bias, stride=stride, activation="relu6", backend="cpu")
    assert_float_rule(y, plain(x, weight, bias, stride, "relu6"), exact(x, weight, bias, stride, "relu6"))


def test_gradients_of_several_filters(backend: str) -> None:
    inputs = [torch.randn(2, 3, 5, 4), torch.randn(12, 1, 3, 3), torch.randn(12)]
    found = []
    for function in (lambda *t: mk.ops.depthwise_conv2d(*t, stride=2, activation="hard_swish", backend=backend),
                     lambda *t: plain(*t, 2, "hard_swish")):  # fmt: skip
        leaves = [each.clone().requires_grad_() for each in inputs]
        function(*leaves).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_any_strides_and_dtypes(backend: str, isa: str) -> None:
    big = torch.randn(3, 11, 8, 14)
    weight, bias = torch.randn(11, 2, 3, 3)[:, :1], torch.randn(22)[::2]
    last = big.contiguous(memory_format=torch.channels_last)
    for x in (big[1:], big[:, :, 2:6], big[..., ::2], big.transpose(2, 3), big[:1].expand(3, -1, -1, -1), last[..., 3:9]):
        y = mk.ops.depthwise_conv2d(x, weight, bias, stride=2, activation="silu", backend=backend)
        assert (y - exact(x, weight, bias, 2, "silu")).abs().max() < 1e-5
    half = mk.ops.depthwise_conv2d(big.bfloat16(), weight, bias, backend=backend)  # float32 parameters beside 16-bit activations
    assert half.dtype == torch.bfloat16
    wide = mk.ops.depthwise_conv2d(big.double(), weight.double(), bias.double())
    assert wide.dtype == torch.float64
    with pytest.raises(ValueError, match="depthwise_conv2d: backend 'cpu' was requested and cannot take this call"):
        mk.ops.depthwise_conv2d(big.double(), weight.double(), backend="cpu")


@needs_native
def test_same_bits_on_any_number_of_threads_and_from_several(threads) -> None:
    inputs = make((2, 48, 40, 40))

    def run() -> torch.Tensor:
        return mk.ops.depthwise_conv2d(*inputs, activation="silu", backend="cpu")

    threads(1)
    expected = run()
    for count in (2, 3, 7):
        threads(count)
        assert torch.equal(run(), expected)
    threads(2)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected) for y in pool.map(lambda _: run(), range(8)))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_empty_batch(backend: str) -> None:
    if backend == "cpu" and native is None:
        pytest.skip("the native kernels are not built")
    x, weight, bias = (each.requires_grad_() for each in make((0, 3, 5, 4)))
    y = mk.ops.depthwise_conv2d(x, weight, bias, stride=2, activation="silu", backend=backend)
    assert y.shape == (0, 3, 3, 2)
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_stay_where_torch_has_them(value: float, isa: str) -> None:
    x, weight, bias = make((2, 5, 8, 9))
    x[1, 2, 3, 4] = value
    expected, actual = plain(x, weight, bias), mk.ops.depthwise_conv2d(x, weight, bias, backend="cpu")
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)


def test_a_changed_weight_is_packed_anew() -> None:
    x, weight, bias = make((1, 8, 6, 6))
    mk.ops.depthwise_conv2d(x, weight, bias)
    weight.mul_(2)
    assert (mk.ops.depthwise_conv2d(x, weight, bias) - exact(x, weight, bias)).abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("activation", _ACTIVATIONS)
def test_gradients(activation: str | None, backend: str) -> None:
    if backend == "cpu" and native is None:
        pytest.skip("the native kernels are not built")
    for fmt in FORMATS:
        inputs = [each.requires_grad_() for each in make((2, 5, 7, 6), fmt=fmt)]
        wide = [each.detach().double().requires_grad_() for each in inputs]
        y = mk.ops.depthwise_conv2d(*inputs, stride=2, activation=activation, backend=backend)
        dy = torch.randn_like(y)
        right = torch.autograd.grad(exact(*wide, 2, activation), wide, dy.double())
        for ours, theirs in zip(torch.autograd.grad(y, inputs, dy), right, strict=True):
            assert (ours - theirs).abs().max() < 1e-4
    mk.ops.depthwise_conv2d(*inputs, backend=backend).sum().backward()  # the gradient arrives expanded


def test_reference_gradients() -> None:
    inputs = [each.double().requires_grad_() for each in make((2, 3, 4, 5))]
    for activation in (None, "silu", "gelu"):
        function = lambda *a: mk.ops.depthwise_conv2d(*a, stride=2, activation=activation)  # noqa: E731, B023
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("fmt", [slow("nchw"), "nhwc"])
def test_opcheck(fmt: str) -> None:
    x, weight, bias = make((2, 5, 4, 6), fmt=fmt)
    for requires_grad in (False, True):
        leaves = [each.detach().requires_grad_(requires_grad) for each in (x, weight, bias)]
        torch.library.opcheck(torch.ops.mvit_kernels.depthwise_conv2d, (*leaves, 2, "silu"))
        torch.library.opcheck(torch.ops.mvit_kernels.depthwise_conv2d, (leaves[0], leaves[1]))
    dy = torch.randn(2, 5, 2, 3)
    torch.library.opcheck(torch.ops.mvit_kernels.depthwise_conv2d_backward, (dy, x, weight, bias, 2, "silu", None))


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.randn(5, 1, 3, 3)), torch.nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mk.ops.depthwise_conv2d(x * 2, self.weight, self.bias, stride=2, activation="silu") + 1


@pytest.mark.parametrize("backend", ["aot_eager", slow("inductor")])
def test_compile_and_export(backend: str) -> None:
    module, x = Module(), torch.randn(2, 5, 9, 8)
    expected = module(x)
    assert torch.allclose(torch.compile(module, fullgraph=True, backend=backend)(x), expected, atol=1e-5)
    assert torch.allclose(torch.export.export(module, (x,)).module()(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, torch.ones(3, 1, 3, 3)), {}, TypeError, "depthwise_conv2d: x: expected a tensor, got NoneType"),
        ((torch.ones(3, 4, 4), torch.ones(3, 1, 3, 3)), {}, ValueError, r"x: expected 4 dimensions, got shape \(3, 4, 4\)"),
        ((torch.ones(1, 3, 0, 4), torch.ones(3, 1, 3, 3)), {}, ValueError, r"x: expected at least one channel and one pixel, got shape"),
        ((torch.ones(1, 3, 4, 4), torch.ones(4, 1, 3, 3)), {}, ValueError, r"weight: expected shape \(a multiple of 3, 1, 3, 3\), got"),
        ((torch.ones(1, 3, 4, 4), torch.ones(3, 1, 3, 3), torch.ones(4)), {}, ValueError, r"bias: expected shape \(3,\), got \(4,\)"),
        ((torch.ones(1, 3, 4, 4), torch.ones(3, 1, 3, 3)), {"stride": 3}, ValueError, "stride: expected 1 or 2, got 3"),
        ((torch.ones(1, 3, 4, 4), torch.ones(3, 1, 3, 3)), {"stride": 1.0}, TypeError, "stride: expected an integer, got 1.0"),
        ((torch.ones(1, 3, 4, 4), torch.ones(3, 1, 3, 3)), {"activation": "tanh"}, ValueError, "activation: expected one of none, relu"),
        ((torch.ones(1, 3, 4, 4).int(), torch.ones(3, 1, 3, 3)), {}, TypeError, "x: expected dtype float32, .* got int32"),
    ],
)
def test_bad_input(arguments, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        mk.ops.depthwise_conv2d(*arguments, **options)
