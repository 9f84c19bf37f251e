from __future__ import annotations

import functools

import pytest
import torch
from marks import slow
from op_checks import (
    FLOATS,
    FORMATS,
    assert_compiles,
    assert_forward_and_gradients,
    assert_function_transforms,
    assert_reference_gradients,
    assert_same_bits_with_any_threads,
    assert_second_derivative,
    gradients,
    needs_native,
)

import mvit_kernels as mk
from mvit_kernels import reference

# (batch, d, height, width, hidden): tails of vectors and panels, one and several blocks of rows, the shapes of the networks.
SHAPES = [(1, 2, 1, 1, 1), (2, 3, 1, 7, 17), (2, 33, 5, 3, 16), (1, 17, 4, 33, 70), (1, 128, 8, 8, 256)]
# Of all combinations every third, which has all pairs of sizes.
MANY_SHAPES = [(2, d, 3, width, hidden) for d in (7, 16, 31, 65) for width in (1, 5, 22, 43) for hidden in (1, 16, 33, 257)][::3]
NORMS = ("group", "layer")


def make(shape, dtype=torch.float32, fmt="nchw", mean: float = 0.0) -> list[torch.Tensor]:
    batch, dim, height, width, hidden = shape
    x = (torch.randn(batch, dim, height, width, dtype=torch.float64) + mean).to(dtype).contiguous(memory_format=FORMATS[fmt])
    fc1_w, fc2_w = torch.randn(hidden, dim) / dim**0.5, torch.randn(dim, hidden) / hidden**0.5
    return [x, *(p.to(dtype) for p in (torch.randn(dim), torch.randn(dim), fc1_w, torch.randn(hidden), fc2_w, torch.randn(dim)))]


def cpu(*inputs, **settings):
    return mk.ops.feed_forward(*inputs, backend="cpu", **settings)


def compare(*draws, **settings) -> None:
    plain = {key: value for key, value in settings.items() if key != "moments"}
    assert_forward_and_gradients(functools.partial(cpu, **settings), functools.partial(reference.feed_forward, **plain), *draws)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tail(shape, norm: str, dtype: torch.dtype, isa: str, poison) -> None:
    for fmt in FORMATS:
        inputs = make(shape, dtype, fmt)
        compare(inputs, norm=norm)
        assert cpu(*inputs, norm=norm).is_contiguous(memory_format=FORMATS[fmt])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", MANY_SHAPES, ids=str)
def test_many_tails(shape, norm: str, dtype: torch.dtype, isa: str, poison) -> None:
    compare(*(make(shape, dtype, fmt) for fmt in FORMATS for _ in range(4)), norm=norm)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("norm", [*NORMS, "given moments"])
@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0, 100.0])
def test_any_mean(mean: float, norm: str, dtype: torch.dtype, isa: str, poison) -> None:
    inputs = make((2, 24, 9, 13, 40), dtype, "nhwc", mean)
    if norm == "given moments":
        rows = inputs[0].permute(0, 2, 3, 1)
        compare(inputs, norm="group", moments=reference.moments_of(rows, 2), activation="gelu")
    else:
        compare(inputs, norm=norm)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations_and_convolution_weights(activation: str, isa: str) -> None:
    x, norm_w, norm_b, fc1_w, fc1_b, fc2_w, fc2_b = make((1, 9, 4, 5, 20))
    for norm in NORMS:
        compare([x, norm_w, norm_b, fc1_w[:, :, None, None], fc1_b, fc2_w[:, :, None, None], fc2_b], norm=norm, activation=activation)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_moments_are_those_of_what_is_written(norm: str, dtype: torch.dtype, isa: str) -> None:
    for backend in ("cpu", "reference"):
        for shape in ((3, 9, 7, 5, 20), (1, 40, 16, 16, 30)):
            inputs = make(shape, dtype, "nhwc", 5.0)
            y, moments = mk.ops.feed_forward(*inputs, norm=norm, collect=True, backend=backend)
            assert torch.equal(y, mk.ops.feed_forward(*inputs, norm=norm, backend=backend))
            assert torch.allclose(moments, reference.moments_of(y, shape[0]), rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("norm", NORMS)
def test_any_strides_and_dtypes(norm: str, backend: str) -> None:
    op = functools.partial(mk.ops.feed_forward, norm=norm, backend=backend)
    big, parameters = torch.randn(3, 11, 8, 14), make((1, 11, 1, 1, 20))[1:]
    parameters[2] = torch.randn(11, 40).T[::2] / 3
    for x in (big[1:], big[:, :, 2:6], big[..., ::2], big.transpose(2, 3), big[:1].expand(3, -1, -1, -1), big[..., :1], big[:, :, :1, :1]):
        exact = functools.partial(reference.feed_forward, norm=norm)
        expected = exact(x.double(), *(each.double() for each in parameters))
        assert (op(x, *parameters) - expected).abs().max() < 1e-5
        leaf = x.detach().requires_grad_()
        op(leaf, *parameters).sum().backward()  # the gradient arrives expanded
        (right,) = gradients(lambda t, f=exact: f(t, *(each.double() for each in parameters)), [x.double()], torch.ones_like(expected))
        assert (leaf.grad - right).abs().max() < 1e-4
    half = op(big.bfloat16(), *parameters)  # float32 parameters beside 16-bit activations
    assert half.dtype == torch.bfloat16


@needs_native
def test_moments_of_any_strides() -> None:
    inputs = make((64, 3, 2, 2, 5))
    moments = reference.moments_of(inputs[0], 64)
    strided = torch.stack([*moments.unbind(1)]).T
    assert not strided.is_contiguous()
    y, collected = cpu(*inputs, moments=moments, collect=True)
    for _ in range(5):
        again, also = cpu(*inputs, moments=strided, collect=True)
        assert torch.equal(again, y)
        assert torch.equal(also, collected)


def test_gradients_keep_the_dtype_of_each_parameter() -> None:
    """float32 weights beside a 16-bit norm: their gradients, beyond the range of the norm's dtype, are those of float32."""
    x, norm_w, norm_b, *rest = make((2, 3, 200, 200, 5), torch.float16)
    rest = [each.float() for each in rest]
    for backend in ("cpu", "reference"):
        if backend == "cpu" and mk.ops.backend.native is None:
            continue
        ours = gradients(functools.partial(mk.ops.feed_forward, backend=backend), [x, norm_w, norm_b, *rest], torch.ones_like(x))
        assert torch.equal(ours[-1], torch.full((3,), 80000.0))


@needs_native
@pytest.mark.parametrize("norm", NORMS)
def test_same_bits_on_any_number_of_threads_and_from_several(norm: str, threads) -> None:
    inputs = make((3, 48, 20, 20, 70), fmt="nhwc")
    dy = torch.randn_like(inputs[0])

    def both() -> list[torch.Tensor]:
        y, moments = cpu(*inputs, norm=norm, collect=True)
        return [y, moments]

    assert_same_bits_with_any_threads(both, threads)
    threads(1)
    expected = gradients(functools.partial(cpu, norm=norm), inputs, dy)
    for a, b in zip(gradients(functools.partial(cpu, norm=norm), inputs, dy), expected, strict=True):
        assert torch.equal(a, b)


@needs_native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4, 5), (2, 3, 0, 4, 5), (2, 3, 4, 0, 5)], ids=str)
def test_empty(shape, norm: str, backend: str) -> None:
    inputs = make(shape)
    op = functools.partial(mk.ops.feed_forward, norm=norm, backend=backend)
    y, moments = op(*inputs, collect=True)
    assert y.shape == inputs[0].shape
    assert moments.shape == (shape[0], 2)
    dx, *rest = gradients(op, inputs, torch.zeros_like(y))
    assert dx.shape == inputs[0].shape
    for each, x in zip(rest, inputs[1:], strict=True):
        assert torch.equal(each, torch.zeros_like(x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_values_stay_where_torch_has_them(value: float, norm: str, isa: str) -> None:
    inputs = make((3, 5, 8, 9, 7))
    inputs[0][1, 2, 3, 4] = value
    expected, actual = reference.feed_forward(*inputs, norm=norm), cpu(*inputs, norm=norm)
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("norm", NORMS)
def test_reference_gradients(norm: str) -> None:
    for activation in ("relu", "silu", "gelu"):
        assert_reference_gradients(functools.partial(mk.ops.feed_forward, norm=norm, activation=activation), make((2, 3, 2, 3, 4)))


@pytest.mark.parametrize("norm", NORMS)
def test_second_derivative(norm: str) -> None:
    settings = {"norm": norm, "activation": "gelu"}
    op, plain = (functools.partial(function, **settings) for function in (mk.ops.feed_forward, reference.feed_forward))
    assert_second_derivative(op, plain, make((2, 5, 3, 4, 6)))


def test_frozen_weights_and_frozen_input() -> None:
    inputs = make((2, 5, 3, 4, 6))
    exact = gradients(reference.feed_forward, [each.double() for each in inputs], torch.ones_like(inputs[0]).double())
    for i in (0, 3):
        leaves = [each.detach().clone().requires_grad_(j == i) for j, each in enumerate(inputs)]
        mk.ops.feed_forward(*leaves).sum().backward()
        assert (leaves[i].grad - exact[i]).abs().max() < 1e-4
        assert all(leaf.grad is None for j, leaf in enumerate(leaves) if j != i)


def test_gradient_through_given_moments_is_that_of_the_layer() -> None:
    inputs = make((2, 5, 3, 4, 6))
    dy = torch.randn_like(inputs[0])
    y, moments = mk.ops.feed_forward(inputs[0].requires_grad_(), *inputs[1:], collect=True)
    assert not moments.requires_grad
    given = functools.partial(mk.ops.feed_forward, moments=moments)
    computed = gradients(mk.ops.feed_forward, [y.detach(), *inputs[1:]], dy)
    for a, b in zip(gradients(given, [y.detach(), *inputs[1:]], dy), computed, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.parametrize("fmt", [slow("nchw"), "nhwc"])
def test_opcheck(fmt: str) -> None:
    for shape in ((2, 5, 4, 6, 7), (2, 5, 1, 1, 7)):
        x, *parameters = make(shape, fmt=fmt)
        for arguments in ((x, *parameters), (x, *parameters, reference.moments_of(x, 2), 1e-5, "group", "gelu", True)):
            for requires_grad in (False, True):
                leaves = [each.detach().requires_grad_(requires_grad) for each in arguments[:7]]
                torch.library.opcheck(torch.ops.mvit_kernels.feed_forward, (*leaves, *arguments[7:]))
        backward = (torch.randn_like(x), x, *parameters[:-1], None, 1e-5, "layer", "silu", None)
        torch.library.opcheck(torch.ops.mvit_kernels.feed_forward_backward, backward)


def test_compiles_without_graph_break() -> None:
    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        y, moments = mk.ops.feed_forward(x * 2, *parameters, collect=True)
        return mk.ops.feed_forward(y, *parameters, moments=moments) + 1

    assert_compiles(function, make((2, 5, 4, 6, 7)), (2, 3))


def test_exports_with_dynamic_batch_and_size() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(make((1, 5, 1, 1, 7))[1:])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mk.ops.feed_forward(x, *self.weights, norm="layer")

    module, dims = Module(), {0: torch.export.Dim("batch"), 2: torch.export.Dim("rows", min=2), 3: torch.export.Dim("columns", min=2)}
    program = torch.export.export(module, (torch.randn(2, 5, 8, 12),), dynamic_shapes=(dims,))
    x = torch.randn(5, 5, 4, 6)
    assert torch.equal(program.module()(x), module(x))


@pytest.mark.parametrize("norm", NORMS)
def test_forward_mode_and_function_transforms(norm: str) -> None:
    x, *parameters = make((1, 5, 3, 4, 6))
    op, plain = (lambda x, f=f: f(x, *parameters, norm=norm, activation="gelu") for f in (mk.ops.feed_forward, reference.feed_forward))
    assert_function_transforms(op, plain, x)
    with pytest.raises(ValueError, match=r"backend 'cpu' was requested .* torch.func need plain torch"):
        torch.func.grad(lambda x: cpu(x, *parameters).sum())(x)


X, D, D1, F1, H, F2 = torch.zeros(2, 3, 4, 4), torch.ones(3), torch.ones(4), torch.ones(5, 3), torch.ones(5), torch.ones(3, 5)
MOMENTS = torch.ones(2, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((None, D, D, F1, H, F2, D), {}, TypeError, "feed_forward: x: expected a tensor, got NoneType"),
        ((X, D, D, F1, H, F2, None), {}, TypeError, "feed_forward: fc2_b: expected a tensor, got NoneType"),
        ((X[0], D, D, F1, H, F2, D), {}, ValueError, r"feed_forward: x: expected 4 dimensions, got shape \(3, 4, 4\)"),
        ((X.long(), D, D, F1, H, F2, D), {}, TypeError, "feed_forward: x: expected dtype float32, .*, got int64"),
        ((X, D1, D, F1, H, F2, D), {}, ValueError, r"feed_forward: norm_w: expected shape \(3,\), got \(4,\)"),
        ((X, D, D1, F1, H, F2, D), {}, ValueError, r"feed_forward: norm_b: expected shape \(3,\), got \(4,\)"),
        ((X, D, D, F2, H, F2, D), {}, ValueError, r"feed_forward: fc1_w: expected shape \(3, 3\) or \(3, 3, 1, 1\), got \(3, 5\)"),
        ((X, D, D, D, H, F2, D), {}, ValueError, r"feed_forward: fc1_w: expected 2 dimensions, got shape \(3,\)"),
        ((X, D, D, torch.tensor(1.0), H, F2, D), {}, ValueError, r"feed_forward: fc1_w: expected 2 dimensions, got shape \(\)"),
        ((X, D, D, F1, D, F2, D), {}, ValueError, r"feed_forward: fc1_b: expected shape \(5,\), got \(3,\)"),
        ((X, D, D, F1, H, F1, D), {}, ValueError, r"feed_forward: fc2_w: expected shape \(3, 5\) or \(3, 5, 1, 1\), got \(5, 3\)"),
        ((X, D, D, F1, H, F2, H), {}, ValueError, r"feed_forward: fc2_b: expected shape \(3,\), got \(5,\)"),
        ((X, D.double(), D, F1, H, F2, D), {}, TypeError, "feed_forward: norm_w: expected dtype float32, got float64"),
        ((X, D, D, F1.to("meta"), H, F2, D), {}, ValueError, "feed_forward: fc1_w: expected device cpu, got meta"),
        ((X, D, D, F1, H, F2, D), {"norm": "batch"}, ValueError, "feed_forward: norm: expected one of group, layer, got 'batch'"),
        ((X, D, D, F1, H, F2, D), {"moments": [1.0]}, TypeError, "feed_forward: moments: expected a tensor, got list"),
        ((X, D, D, F1, H, F2, D), {"moments": MOMENTS.half()}, TypeError, "feed_forward: moments: expected dtype float64, got float16"),
        ((X, D, D, F1, H, F2, D), {"moments": MOMENTS[:1]}, ValueError, r"moments: expected shape \(2, 2\) on cpu, got \(1, 2\)"),
        ((X, D, D, F1, H, F2, D), {"moments": MOMENTS, "norm": "layer"}, ValueError, "moments: expected None with norm='layer'"),
        ((X, D, D, F1, H, F2, D), {"activation": "tanh"}, ValueError, "activation: expected one of none, relu, .*, got 'tanh'"),
        ((X, D, D, F1, H, F2, D), {"backend": 1}, TypeError, "feed_forward: backend: expected a name or None, got 1"),
        ((X.double(), D, D, F1, H, F2, D), {"backend": "cpu"}, ValueError, "feed_forward: backend 'cpu' was requested and cannot take"),
    ],
)
def test_bad_input(arguments, settings, error, message: str) -> None:
    with pytest.raises(error, match=message):
        mk.ops.feed_forward(*arguments, **settings)
