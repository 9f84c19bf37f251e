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
# (batch, C, C2, N, H, W): 1 x 1 and odd maps, tails of channels and columns, planes, minimal filtering, a block of each of several images.
SHAPES = [
    (1, 1, 0, 1, 1, 1),
    (2, 3, 0, 16, 1, 1),
    (2, 3, 0, 33, 9, 13),
    (1, 17, 0, 5, 7, 1),
    (3, 33, 0, 40, 5, 6),
    (2, 17, 16, 33, 7, 9),
    (1, 5, 3, 4, 6, 6),
    (5, 40, 24, 72, 8, 8),
    (1, 64, 0, 48, 15, 18),
]

needs_native = pytest.mark.skipif(native is None, reason="the native kernels are not built")


def make(shape, kernel: int, dtype=torch.float32, fmt="nhwc", bias: bool = True) -> dict[str, torch.Tensor | None]:
    batch, channels, beside, columns, height, width = shape
    x, second = (torch.randn(batch, c, height, width).to(dtype).contiguous(memory_format=FORMATS[fmt]) for c in (channels, beside))
    weight = torch.randn(columns, channels + beside, kernel, kernel) / (kernel * (channels + beside) ** 0.5)
    return {
        "x": x,
        "weight": weight.to(dtype),
        "bias": torch.randn(columns).to(dtype) if bias else None,
        "second": second if beside else None,
    }


def plain(x, weight, bias, second=None, residual=None, stride: int = 1, activation: str | None = None) -> torch.Tensor:
    both = x if second is None else torch.cat([x, second], dim=1)
    y = F.conv2d(both, weight, bias, stride, weight.shape[2] // 2)
    y = {None: lambda t: t, "relu": torch.relu, "silu": F.silu, "gelu": F.gelu}[activation](y)
    return y if residual is None else y + residual


def exact(stride: int = 1, activation: str | None = None, **tensors: torch.Tensor | None) -> torch.Tensor:
    return plain(**{name: None if each is None else each.double() for name, each in tensors.items()}, stride=stride, activation=activation)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tail(shape, kernel: int, stride: int, fmt: str, dtype: torch.dtype, isa: str, poison) -> None:
    inputs = make(shape, kernel, dtype, fmt)
    y = mk.ops.conv2d(**inputs, stride=stride, backend="cpu")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == dtype
    assert_float_rule(y, plain(**inputs, stride=stride), exact(**inputs, stride=stride))


@pytest.mark.parametrize("size", [96, 320])
def test_minimal_filtering_is_as_exact_as_the_direct_sum(size: int, isa: str) -> None:
    for mean in (0.0, 3.0):
        inputs = make((1, size, 0, 64, 8, 8), 3)
        inputs["x"] = inputs["x"] + mean
        assert_float_rule(mk.ops.conv2d(**inputs, backend="cpu"), plain(**inputs), exact(**inputs))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_epilogues(kernel: int, activation: str | None, backend: str, isa: str) -> None:
    for shape, stride in (((2, 19, 0, 35, 9, 14), 1), ((2, 19, 7, 35, 9, 14), 2), ((1, 3, 0, 17, 12, 21), 2)):
        for fmt in FORMATS:
            inputs = make(shape, kernel, fmt=fmt, bias=fmt == "nchw")
            inputs["residual"] = torch.randn_like(plain(**inputs, stride=stride))
            y = mk.ops.conv2d(**inputs, stride=stride, activation=activation, backend=backend)
            assert_float_rule(y, plain(**inputs, stride=stride, activation=activation), exact(stride, activation, **inputs))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_any_strides_and_dtypes(kernel: int, backend: str, isa: str) -> None:
    for channels in (3, 17):
        big, weight, bias = torch.randn(3, channels, 8, 14), torch.randn(2 * 19, channels, kernel, kernel)[::2], torch.randn(38)[::2]
        last = big.contiguous(memory_format=torch.channels_last)
        views = [big[1:], big[:, :, 2:6], big[..., ::2], big.transpose(2, 3), big[:1].expand(3, -1, -1, -1)]
        for x in (*views, last[..., 3:9], last[:, :, ::2]):
            for stride in (1, 2):
                y = mk.ops.conv2d(x, weight, bias, stride=stride, activation="silu", backend=backend)
                assert (y - exact(stride, "silu", x=x, weight=weight, bias=bias)).abs().max() < 2e-5
        half = mk.ops.conv2d(big.bfloat16(), weight, bias, backend=backend)  # float32 parameters beside 16-bit activations
        assert half.dtype == torch.bfloat16
    some = torch.randn(2, 24, 6, 6).contiguous(memory_format=torch.channels_last)
    x, second = some[:, :7], some[:, 9:]  # views whose pixels are further apart than their channels
    weight = torch.randn(16, 22, kernel, kernel)
    assert (
        mk.ops.conv2d(x, weight, second=second, backend=backend) - exact(x=x, weight=weight, bias=None, second=second)
    ).abs().max() < 1e-4


def test_float64_is_the_references() -> None:
    inputs = make((1, 4, 0, 4, 3, 3), 3, torch.float64)
    assert mk.ops.conv2d(**inputs).dtype == torch.float64
    with pytest.raises(ValueError, match="conv2d: backend 'cpu' was requested and cannot take this call"):
        mk.ops.conv2d(**inputs, backend="cpu")


@needs_native
@pytest.mark.parametrize(("shape", "kernel", "stride", "fmt"), [
    ((2, 3, 0, 16, 64, 64), 3, 2, "nchw"),
    ((1, 40, 24, 72, 16, 16), 3, 1, "nhwc"),
    ((2, 40, 0, 72, 16, 16), 3, 2, "nhwc"),
    ((2, 40, 24, 72, 20, 16), 1, 1, "nhwc"),
])  # fmt: skip
def test_same_bits_on_any_number_of_threads_and_from_several(shape, kernel: int, stride: int, fmt: str, threads) -> None:
    inputs = make(shape, kernel, fmt=fmt)

    def run() -> torch.Tensor:
        return mk.ops.conv2d(**inputs, stride=stride, activation="silu", backend="cpu")

    threads(1)
    expected = run()
    for count in (2, 3, 7):
        threads(count)
        assert torch.equal(run(), expected)
    threads(2)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected) for y in pool.map(lambda _: run(), range(8)))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_empty_batch(kernel: int, backend: str) -> None:
    if backend == "cpu" and native is None:
        pytest.skip("the native kernels are not built")
    inputs = make((0, 16, 3, 16, 5, 4), kernel)
    weight = inputs["weight"].requires_grad_()
    y = mk.ops.conv2d(**inputs, stride=2, activation="silu", backend=backend)
    assert y.shape == (0, 16, 3, 2)
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride"), [((2, 5, 0, 7, 8, 9), 1, 1), ((2, 5, 0, 7, 8, 9), 3, 1), ((2, 3, 0, 7, 8, 9), 3, 2)]
)
def test_not_finite_values_stay_where_torch_has_them(shape, kernel: int, stride: int, value: float, isa: str) -> None:
    for fmt in FORMATS:
        inputs = make(shape, kernel, fmt=fmt)
        inputs["x"][1, 2, 3, 4] = value
        expected, actual = plain(**inputs, stride=stride), mk.ops.conv2d(**inputs, stride=stride, backend="cpu")
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_reach_whole_tiles_of_minimal_filtering(value: float, isa: str) -> None:
    inputs = make((2, 16, 0, 16, 8, 8), 3)
    inputs["x"][1, 2, 3, 4] = value  # of interest to rows 2 to 4 and columns 3 to 5
    actual, expected = mk.ops.conv2d(**inputs, backend="cpu"), plain(**inputs)
    seen = torch.zeros_like(actual, dtype=torch.bool)
    seen[1, :, 2:6, 2:6] = True  # the tiles with these
    assert not actual[~expected.isfinite()].isfinite().any()
    assert torch.allclose(actual[~seen], expected[~seen], atol=1e-5)


def test_a_changed_weight_is_packed_anew() -> None:
    for kernel in (1, 3):
        inputs = make((1, 16, 0, 16, 6, 6), kernel)
        mk.ops.conv2d(**inputs)
        inputs["weight"].mul_(2)
        assert (mk.ops.conv2d(**inputs) - exact(**inputs)).abs().max() < 1e-4


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients(kernel: int, activation: str | None, backend: str) -> None:
    if backend == "cpu" and native is None:
        pytest.skip("the native kernels are not built")
    for fmt in FORMATS:
        for stride in (1, 2):
            inputs = make((2, 5, 3, 6, 7, 6), kernel, fmt=fmt)
            inputs["residual"] = torch.randn_like(plain(**inputs, stride=stride))
            leaves = [each.requires_grad_() for each in inputs.values()]
            wide = {name: each.detach().double().requires_grad_() for name, each in inputs.items()}
            y = mk.ops.conv2d(**inputs, stride=stride, activation=activation, backend=backend)
            dy = torch.randn_like(y)
            right = torch.autograd.grad(exact(stride, activation, **wide), list(wide.values()), dy.double())
            for ours, theirs in zip(torch.autograd.grad(y, leaves, dy), right, strict=True):
                assert (ours - theirs).abs().max() < 1e-4
    mk.ops.conv2d(**inputs, stride=stride, backend=backend).sum().backward()  # the gradient arrives expanded


def test_reference_gradients() -> None:
    inputs = make((2, 3, 2, 4, 4, 5), 3, torch.float64)
    leaves = [each.requires_grad_() for each in inputs.values()]
    for activation in (None, "silu", "gelu"):

        def function(x, weight, bias, second, activation=activation):
            return mk.ops.conv2d(x, weight, bias, second=second, stride=2, activation=activation)

        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("fmt", [slow("nchw"), "nhwc"])
def test_opcheck(fmt: str) -> None:
    x, weight, bias, second = make((2, 5, 3, 6, 4, 6), 3, fmt=fmt).values()
    residual = torch.randn(2, 6, 2, 3)
    for requires_grad in (False, True):
        leaves = [each.detach().requires_grad_(requires_grad) for each in (x, weight, bias, second, residual)]
        torch.library.opcheck(torch.ops.mvit_kernels.conv2d, (*leaves, 2, "silu"))
        torch.library.opcheck(torch.ops.mvit_kernels.conv2d, (leaves[0], leaves[1].detach()[:, :5].clone().requires_grad_(requires_grad)))
    torch.library.opcheck(torch.ops.mvit_kernels.conv2d_backward, (residual, x, weight, bias, second, 2, "silu", None))


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.randn(5, 7, 3, 3)), torch.nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return mk.ops.conv2d(x * 2, self.weight, self.bias, second=second, stride=2, activation="silu") + 1


@pytest.mark.parametrize("backend", ["aot_eager", slow("inductor")])
def test_compile_and_export(backend: str) -> None:
    module, inputs = Module(), (torch.randn(2, 3, 9, 8), torch.randn(2, 4, 9, 8))
    expected = module(*inputs)
    assert torch.allclose(torch.compile(module, fullgraph=True, backend=backend)(*inputs), expected, atol=1e-5)
    assert torch.allclose(torch.export.export(module, inputs).module()(*inputs), expected, atol=1e-5)


X, W = torch.ones(1, 3, 4, 4), torch.ones(2, 3, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, W), {}, TypeError, "conv2d: x: expected a tensor, got NoneType"),
        ((X[0], W), {}, ValueError, r"conv2d: x: expected 4 dimensions, got shape \(3, 4, 4\)"),
        ((X[:, :, :0], W), {}, ValueError, "x: expected at least one channel and one pixel, got shape"),
        ((X.int(), W), {}, TypeError, "x: expected dtype float32, .* got int32"),
        ((X, W[:, :2]), {}, ValueError, r"weight: expected shape \(N, 3, k, k\) with k = 1 or 3, got \(2, 2, 3, 3\)"),
        ((X, W[..., :2, :2]), {}, ValueError, r"weight: expected shape \(N, 3, k, k\) with k = 1 or 3, got \(2, 3, 2, 2\)"),
        ((X, W, torch.ones(3)), {}, ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        ((X, W), {"second": X}, ValueError, r"weight: expected shape \(N, 6, k, k\)"),
        ((X, W), {"second": X[..., :2]}, ValueError, r"second: expected .* of shape \(1, 3, 4, 4\) .* got .* of shape \(1, 3, 4, 2\)"),
        ((X, W), {"residual": X}, ValueError, r"residual: expected .* of shape \(1, 2, 4, 4\) .* got .* of shape \(1, 3, 4, 4\)"),
        ((X, W), {"stride": 3}, ValueError, "stride: expected 1 or 2, got 3"),
        ((X, W), {"stride": (1, 1)}, TypeError, r"stride: expected an integer, got \(1, 1\)"),
        ((X, W), {"activation": "tanh"}, ValueError, "activation: expected one of none, relu, silu, gelu, relu6, hard_swish, got 'tanh'"),
        ((X, W), {"backend": "triton"}, ValueError, "conv2d: backend 'triton' was requested and cannot take this call"),
    ],
)
def test_bad_input(arguments, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        mk.ops.conv2d(*arguments, **options)
