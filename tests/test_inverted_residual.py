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

# (batch, C, E, O, height, width), E None without an expansion: odd sizes, single pixels, tails of vectors and panels, several steps.
SHAPES = [
    (1, 2, 3, 1, 1, 1),
    (2, 5, 19, 5, 7, 9),
    (1, 3, 33, 16, 2, 5),
    (2, 17, None, 17, 6, 3),
    (1, 16, 64, 32, 16, 16),
]
MANY_SHAPES = [  # of all combinations every third, which has all pairs of sizes
    *[(2, 6, hidden, 6, height, width) for hidden in (1, 16, 31, 48, None) for width in (1, 2, 4, 11) for height in (1, 2, 5, 3)][::3],
    *((1, 3, hidden, 3, 12, 90) for hidden in (192, 257)),
]


def make(shape, dtype=torch.float32, fmt="nchw") -> list[torch.Tensor | None]:
    batch, channels, hidden, columns, height, width = shape
    x = torch.randn(batch, channels, height, width).to(dtype).contiguous(memory_format=FORMATS[fmt])
    expand = [None, None] if hidden is None else [torch.randn(hidden, channels, 1, 1) / channels**0.5, torch.randn(hidden)]
    hidden = hidden or channels
    rest = [torch.randn(hidden, 1, 3, 3) / 3, torch.randn(hidden), torch.randn(columns, hidden, 1, 1) / hidden**0.5, torch.randn(columns)]
    return [x, *(None if each is None else each.to(dtype) for each in (*expand, *rest))]


def cpu(*inputs, **settings):
    return mk.ops.inverted_residual(*inputs, backend="cpu", **settings)


def compare(*draws, **settings) -> None:
    op, plain = functools.partial(cpu, **settings), functools.partial(reference.inverted_residual, **settings)
    assert_forward_and_gradients(op, plain, *draws)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tail(shape, stride: int, dtype: torch.dtype, isa: str, poison) -> None:
    residual = stride == 1 and shape[1] == shape[3]
    draws = [make(shape, dtype, fmt) for fmt in (*FORMATS, *FORMATS)]
    compare(*draws, stride=stride, residual=residual)
    assert cpu(*draws[0], stride=stride).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", MANY_SHAPES, ids=str)
def test_many_tails(shape, stride: int, dtype: torch.dtype, isa: str, poison) -> None:
    for residual in (False, True)[: 2 if stride == 1 else 1]:
        compare(*(make(shape, dtype, fmt) for fmt in (*FORMATS, *FORMATS)), stride=stride, residual=residual)


def test_several_steps_of_rows(isa: str) -> None:
    for stride in (1, 2):
        inputs = make((1, 3, 192, 3, 24, 90), fmt="nhwc")
        exact = reference.inverted_residual(*(each.double() for each in inputs), stride=stride)
        assert (cpu(*inputs, stride=stride) - exact).abs().max() < 1e-5


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations_and_no_bias(activation: str, isa: str) -> None:
    inputs = make((2, 5, 12, 7, 6, 5))
    compare(inputs, activation=activation)
    compare([*inputs[:-1], None], activation=activation, stride=2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_moments_are_those_of_what_is_written(dtype: torch.dtype, isa: str) -> None:
    for backend in ("cpu", "reference"):
        for shape in ((3, 9, 20, 5, 7, 5), (1, 4, None, 40, 33, 30)):
            inputs = make(shape, dtype)
            y, moments = mk.ops.inverted_residual(*inputs, stride=2, collect=True, backend=backend)
            assert torch.equal(y, mk.ops.inverted_residual(*inputs, stride=2, backend=backend))
            assert torch.allclose(moments, reference.moments_of(y, shape[0]), rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_any_strides_and_dtypes(backend: str) -> None:
    op = functools.partial(mk.ops.inverted_residual, residual=True, backend=backend)
    big, (_, *parameters) = torch.randn(3, 11, 8, 14), make((1, 11, 20, 11, 1, 1))
    parameters[0] = parameters[0].transpose(0, 1).contiguous().transpose(0, 1)
    parameters[2] = parameters[2].transpose(2, 3)
    for x in (big[1:], big[:, :, 2:6], big[..., ::2], big.transpose(2, 3), big[:1].expand(3, -1, -1, -1), big[..., :1], big[:, :, :1, :1]):
        exact = functools.partial(reference.inverted_residual, residual=True)
        expected = exact(x.double(), *(each.double() for each in parameters))
        assert (op(x, *parameters) - expected).abs().max() < 1e-5
        leaf = x.detach().requires_grad_()
        op(leaf, *parameters).sum().backward()  # the gradient arrives expanded
        (right,) = gradients(lambda t, f=exact: f(t, *(each.double() for each in parameters)), [x.double()], torch.ones_like(expected))
        assert (leaf.grad - right).abs().max() < 1e-4
    assert op(big.bfloat16(), *parameters).dtype == torch.bfloat16  # float32 parameters beside 16-bit activations


@needs_native
def test_same_bits_on_any_number_of_threads_and_from_several(threads) -> None:
    draws = [(make((3, 12, 48, 12, 30, 31), fmt="nhwc"), 1), (make((1, 12, None, 20, 50, 51), fmt="nhwc"), 2)]

    def forward() -> list[torch.Tensor]:
        return [each for inputs, stride in draws for each in cpu(*inputs, stride=stride, collect=True)]

    assert_same_bits_with_any_threads(forward, threads)


@needs_native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("hidden", [7, None])
def test_empty_batch(hidden, backend: str) -> None:
    inputs = make((0, 3, hidden, 5, 4, 6))
    op = functools.partial(mk.ops.inverted_residual, stride=2, backend=backend)
    y, moments = op(*inputs, collect=True)
    assert y.shape == (0, 5, 2, 3)
    assert moments.shape == (0, 2)
    for each, x in zip(gradients(op, inputs, torch.zeros_like(y)), (x for x in inputs if x is not None), strict=True):
        assert torch.equal(each, torch.zeros_like(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_values_stay_where_torch_has_them(value: float, isa: str) -> None:
    for activation in reference.ACTIVATIONS[:3]:
        for hidden in (9, None):
            inputs = make((2, 5, hidden, 7, 8, 9))
            inputs[0][1, 2, 3, 4] = value
            expected = reference.inverted_residual(*inputs, activation=activation)
            actual = cpu(*inputs, activation=activation)
            assert torch.equal(actual.isnan(), expected.isnan())
            assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)


def test_reference_gradients() -> None:
    for shape, settings in (((1, 3, 4, 3, 4, 3), {"residual": True}), ((1, 2, None, 3, 3, 4), {"stride": 2, "activation": "gelu"})):
        assert_reference_gradients(functools.partial(mk.ops.inverted_residual, **settings), make(shape))


def test_second_derivative() -> None:
    functions = (mk.ops.inverted_residual, reference.inverted_residual)
    op, plain = (functools.partial(function, stride=2) for function in functions)
    assert_second_derivative(op, plain, make((2, 3, 8, 4, 5, 6)))


def test_frozen_weights_and_frozen_input() -> None:
    inputs = make((2, 5, 9, 6, 4, 5))
    exact = gradients(reference.inverted_residual, [each.double() for each in inputs], torch.ones(2, 6, 4, 5).double())
    for i in (0, 3):
        leaves = [each.detach().clone().requires_grad_(j == i) for j, each in enumerate(inputs)]
        mk.ops.inverted_residual(*leaves).sum().backward()
        assert (leaves[i].grad - exact[i]).abs().max() < 1e-4
        assert all(leaf.grad is None for j, leaf in enumerate(leaves) if j != i)


@needs_native
@pytest.mark.parametrize("fmt", [slow("nchw"), "nhwc"])
def test_opcheck(fmt: str) -> None:
    for shape, stride in (((2, 5, 9, 5, 4, 6), 1), ((2, 5, None, 7, 5, 1), 2), ((2, 5, 9, 7, 1, 1), 1)):
        inputs = make(shape, fmt=fmt)
        for requires_grad in (False, True):
            leaves = [None if each is None else each.detach().requires_grad_(requires_grad) for each in inputs]
            for rest in ((stride,), (stride, stride == 1 and shape[1] == shape[3], "relu", True)):
                torch.library.opcheck(torch.ops.mvit_kernels.inverted_residual, (*leaves, *rest))
        y = mk.ops.inverted_residual(*inputs, stride=stride)
        backward = (torch.randn_like(y), *inputs[:-1], stride, False, "silu", None)
        torch.library.opcheck(torch.ops.mvit_kernels.inverted_residual_backward, backward)


def test_compiles_without_graph_break() -> None:
    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        y, _ = mk.ops.inverted_residual(x * 2, *parameters, residual=True, collect=True)
        return mk.ops.inverted_residual(y, *parameters, stride=2) + 1

    assert_compiles(function, make((2, 5, 9, 5, 4, 6)), (2, 3))


def test_exports_with_dynamic_batch_and_size() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(make((1, 5, 9, 7, 1, 1))[1:])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mk.ops.inverted_residual(x, *self.weights, stride=2)

    module, dims = Module(), {0: torch.export.Dim("batch"), 2: torch.export.Dim("rows", min=3), 3: torch.export.Dim("columns", min=3)}
    program = torch.export.export(module, (torch.randn(2, 5, 8, 12),), dynamic_shapes=(dims,))
    x = torch.randn(5, 5, 7, 6)
    assert torch.equal(program.module()(x), module(x))


def test_forward_mode_and_function_transforms() -> None:
    x, *parameters = make((1, 5, 9, 5, 4, 6))
    op, plain = (lambda x, f=f: f(x, *parameters, residual=True) for f in (mk.ops.inverted_residual, reference.inverted_residual))
    assert_function_transforms(op, plain, x)
    with pytest.raises(ValueError, match=r"backend 'cpu' was requested .* torch.func need plain torch"):
        torch.func.grad(lambda x: cpu(x, *parameters).sum())(x)


X, EW, EB = torch.zeros(2, 3, 4, 4), torch.ones(5, 3, 1, 1), torch.ones(5)
DW, DB, RW, RB = torch.ones(5, 1, 3, 3), torch.ones(5), torch.ones(3, 5, 1, 1), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((None, EW, EB, DW, DB, RW, RB), {}, TypeError, "inverted_residual: x: expected a tensor, got NoneType"),
        ((X, EW, EB, None, DB, RW, RB), {}, TypeError, "inverted_residual: depthwise_w: expected a tensor, got NoneType"),
        ((X, 1.0, EB, DW, DB, RW, RB), {}, TypeError, "inverted_residual: expand_w: expected a tensor, got float"),
        ((X[0], EW, EB, DW, DB, RW, RB), {}, ValueError, r"inverted_residual: x: expected 4 dimensions, got shape \(3, 4, 4\)"),
        ((X[:, :, :0], EW, EB, DW, DB, RW, RB), {}, ValueError, r"x: expected at least one channel and one pixel, got shape"),
        ((X.int(), EW, EB, DW, DB, RW, RB), {}, TypeError, "x: expected dtype float32, .*, got int32"),
        ((X, EW, None, DW, DB, RW, RB), {}, ValueError, "expand_b: expected None if and only if expand_w is None, got None"),
        ((X, None, EB, DW, DB, RW, RB), {}, ValueError, "expand_b: expected None if and only if expand_w is None, got a tensor"),
        ((X, EW[..., 0, 0], EB, DW, DB, RW, RB), {}, ValueError, r"expand_w: expected 4 dimensions, got shape \(5, 3\)"),
        ((X, EW[:, :2], EB, DW, DB, RW, RB), {}, ValueError, r"expand_w: expected shape \(5, 3, 1, 1\), got \(5, 2, 1, 1\)"),
        ((X, EW, EB[1:], DW, DB, RW, RB), {}, ValueError, r"expand_b: expected shape \(5,\), got \(4,\)"),
        ((X, None, None, DW, DB, RW, RB), {}, ValueError, r"depthwise_w: expected shape \(3, 1, 3, 3\), got \(5, 1, 3, 3\)"),
        ((X, EW, EB, DW, DB[1:], RW, RB), {}, ValueError, r"depthwise_b: expected shape \(5,\), got \(4,\)"),
        ((X, EW, EB, DW, DB, RW[:, 1:], RB), {}, ValueError, r"reduce_w: expected shape \(3, 5, 1, 1\), got \(3, 4, 1, 1\)"),
        ((X, EW, EB, DW, DB, RW, RB[1:]), {}, ValueError, r"reduce_b: expected shape \(3,\), got \(2,\)"),
        ((X, EW, EB, DW.half(), DB, RW, RB), {}, TypeError, "depthwise_w: expected dtype float32, got float16"),
        ((X, EW, EB, DW, DB, RW.to("meta"), RB), {}, ValueError, "reduce_w: expected device cpu, got meta"),
        ((X, EW, EB, DW, DB, RW, RB), {"stride": 3}, ValueError, "inverted_residual: stride: expected 1 or 2, got 3"),
        ((X, EW, EB, DW, DB, RW, RB), {"stride": 1.5}, TypeError, "inverted_residual: stride: expected an integer, got 1.5"),
        ((X, EW, EB, DW, DB, RW, RB), {"stride": 2, "residual": True}, ValueError, "residual: expected False unless stride is 1 and O = C"),
        ((X, EW, EB, DW, DB, RW[:2], RB[:2]), {"residual": True}, ValueError, "residual: expected False .*, got stride 1, O 2, C 3"),
        ((X, EW, EB, DW, DB, RW, RB), {"activation": "tanh"}, ValueError, "activation: expected one of none, relu, .*, got 'tanh'"),
        ((X, EW, EB, DW, DB, RW, RB), {"backend": "gpu"}, ValueError, "backend: expected one of auto, .*, got 'gpu'"),
        ((X.double(), EW, EB, DW, DB, RW, RB), {"backend": "cpu"}, ValueError, "backend 'cpu' was requested and cannot take this call"),
    ],
)
def test_bad_input(arguments, settings, error, message: str) -> None:
    with pytest.raises(error, match=message):
        mk.ops.inverted_residual(*arguments, **settings)
