from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tolerance import assert_float_rule

import mvit_kernels as mk
from mvit_kernels import reference
from mvit_kernels.ops.backend import native

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
# Tails of every vector width and of groups of rows, several blocks and tiles, any number of leading axes, the shapes of the networks.
SHAPES = [
    (1,),
    (37,),
    (1, 1),
    (5, 2),
    (7, 3, 7),
    (2, 3, 8),
    (3, 2, 3, 9),
    (3, 15),
    (6, 16),
    (33, 17),
    (5, 33),
    (70, 65),
    (2, 9001),
    (4, 256, 144),
    (4, 16, 240),
    (4, 64, 80),
]

needs_native = pytest.mark.skipif(native is None, reason="the native kernels are not built")


def make(shape, dtype=torch.float32, ratio: float = 0.0) -> list[torch.Tensor]:
    """x of standard deviation 1 and mean `ratio`, weight and bias."""
    x = (torch.randn(shape, dtype=torch.float64) + ratio).to(dtype)
    return [x, torch.randn(shape[-1]).to(dtype), torch.randn(shape[-1]).to(dtype)]


def plain_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return torch.layer_norm(x, weight.shape, weight, bias, eps)


def gradients(function, inputs: list[torch.Tensor], dy: torch.Tensor) -> list[torch.Tensor]:
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in inputs]
    function(*leaves).backward(dy)
    return [leaf.grad for leaf in leaves]


def assert_exact(inputs: list[torch.Tensor], eps: float) -> None:
    """The kernels, forward and backward, by the float rule."""
    exact = [each.double() for each in inputs]
    y = mk.ops.layer_norm(*inputs, eps, backend="cpu")
    assert y.is_contiguous()
    assert_float_rule(y, plain_norm(*inputs, eps), plain_norm(*exact, eps))
    dy = torch.randn_like(y)
    ours = gradients(lambda *a: mk.ops.layer_norm(*a, eps, backend="cpu"), inputs, dy)
    plain = gradients(lambda *a: plain_norm(*a, eps), inputs, dy)
    right = gradients(lambda *a: plain_norm(*a, eps), exact, dy.double())
    for a, b, c in zip(ours, plain, right, strict=True):
        assert_float_rule(a, b, c)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("ratio", [0.0, 3.0, 30.0, 100.0])
def test_any_mean(ratio: float, dtype: torch.dtype, isa: str, poison) -> None:
    for shape in ((2, 70, 24), (300, 144), (3, 5000)):
        assert_exact(make(shape, dtype, ratio), 1e-5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tail(shape, dtype: torch.dtype, isa: str, poison) -> None:
    assert_exact(make(shape, dtype), 1e-3)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_any_strides_and_dtypes(backend: str, isa: str) -> None:
    big = torch.randn(3, 8, 6, 14)
    for x in (big[1:], big[:, :, 2:6], big[..., ::2], big.transpose(1, 3), big[0].mT, big[:1].expand(3, -1, -1, -1)):
        weight, bias = torch.randn(2 * x.shape[-1])[::2], torch.randn(x.shape[-1])
        expected = plain_norm(x.double(), weight.double(), bias.double())
        y = mk.ops.layer_norm(x, weight, bias, backend=backend)
        assert y.is_contiguous()
        assert (y - expected).abs().max() < 1e-5
        leaf = x.detach().requires_grad_()
        mk.ops.layer_norm(leaf, weight, bias, backend=backend).sum().backward()  # the gradient arrives expanded
        (right,) = gradients(lambda t, w=weight, b=bias: plain_norm(t, w.double(), b.double()), [x.double()], torch.ones_like(expected))
        assert (leaf.grad - right).abs().max() < 1e-5
    half = mk.ops.layer_norm(big.bfloat16(), torch.ones(14), torch.zeros(14), backend=backend)  # float32 parameters, 16-bit activations
    assert half.dtype == torch.bfloat16


@needs_native
def test_same_bits_on_any_number_of_threads_and_from_several(threads) -> None:
    inputs = make((5, 123, 144))
    dy = torch.randn_like(inputs[0])

    def both() -> list[torch.Tensor]:
        y = mk.ops.layer_norm(*inputs, backend="cpu")
        return [y, *gradients(lambda *a: mk.ops.layer_norm(*a, backend="cpu"), inputs, dy)]

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


@needs_native
def test_a_row_does_not_depend_on_its_neighbours(isa: str) -> None:
    inputs = make((70, 40))
    dy = torch.randn_like(inputs[0])
    whole = mk.ops.layer_norm(*inputs, backend="cpu")
    dx, _, _ = torch.ops.mvit_kernels.layer_norm_backward(dy, *inputs[:2], 1e-5, "cpu")
    for i in (0, 3, 33, 69):
        alone = inputs[0][i : i + 1]
        assert torch.equal(mk.ops.layer_norm(alone, *inputs[1:], backend="cpu"), whole[i : i + 1])
        assert torch.equal(torch.ops.mvit_kernels.layer_norm_backward(dy[i : i + 1], alone, inputs[1], 1e-5, "cpu")[0], dx[i : i + 1])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (2, 0)])
def test_empty(shape, backend: str) -> None:
    if backend == "cpu" and native is None:
        pytest.skip("the native kernels are not built")
    inputs = [torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape[-1])]
    dx, dweight, dbias = gradients(lambda *a: mk.ops.layer_norm(*a, backend=backend), inputs, torch.zeros(shape))
    assert dx.shape == shape
    assert torch.equal(dweight, torch.zeros(shape[-1]))
    assert torch.equal(dbias, torch.zeros(shape[-1]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_stay_where_torch_has_them(value: float, isa: str) -> None:
    x, weight, bias = make((3, 8, 21))
    x[1, 2, 4] = value
    expected, actual = plain_norm(x, weight, bias), mk.ops.layer_norm(x, weight, bias, backend="cpu")
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)
    dy = torch.randn_like(x)
    dx, _, _ = gradients(lambda *a: mk.ops.layer_norm(*a, backend="cpu"), [x, weight, bias], dy)
    right, _, _ = gradients(plain_norm, [x, weight, bias], dy)
    assert torch.equal(dx.isnan(), right.isnan())
    assert torch.allclose(dx, right, atol=1e-5, equal_nan=True)


def test_constant_row(isa: str) -> None:
    x, weight, bias = torch.full((3, 36), 3e4), torch.randn(36), torch.randn(36)
    assert torch.allclose(mk.ops.layer_norm(x, weight, bias, backend="cpu"), bias.expand(3, -1), atol=1e-6)


def test_float16_near_its_largest_value(isa: str) -> None:
    x = torch.empty(8, 1024).uniform_(-6e4, 6e4).half()
    y = mk.ops.layer_norm(x, torch.ones(1024).half(), torch.zeros(1024).half(), backend="cpu")
    exact = torch.layer_norm(x.double(), (1024,))
    assert (y.double() - exact).abs().max() <= 2**-10 * exact.abs().max()


def test_reference_gradients() -> None:
    for shape in ((2, 3, 5), (5,)):
        inputs = [each.double().requires_grad_() for each in make(shape)]
        assert torch.autograd.gradcheck(mk.ops.layer_norm, inputs)
        assert torch.autograd.gradgradcheck(mk.ops.layer_norm, inputs)


@needs_native
def test_second_derivative_of_the_kernels() -> None:
    inputs = make((4, 6))
    results = []
    for function, dtype in ((mk.ops.layer_norm, torch.float32), (plain_norm, torch.float64)):
        leaves = [each.to(dtype, copy=True).requires_grad_() for each in inputs]
        grads = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        sum(grad.square().sum() for grad in grads).backward()
        results.append([leaf.grad for leaf in leaves])
    for ours, exact in zip(*results, strict=True):
        assert torch.allclose(ours.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    x, weight, bias = make((2, 4, 6), dtype)
    for each in (x, x.transpose(0, 1)):
        for requires_grad in (False, True):
            leaves = [leaf.detach().requires_grad_(requires_grad) for leaf in (each, weight, bias)]
            torch.library.opcheck(torch.ops.mvit_kernels.layer_norm, leaves)
        torch.library.opcheck(torch.ops.mvit_kernels.layer_norm_backward, (torch.randn_like(each), each, weight, 1e-5, None))


def test_compiles_without_graph_break() -> None:
    inputs = make((2, 4, 6))

    def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return mk.ops.layer_norm(x * 2, weight, bias) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3):
        dy = torch.randn(batch, 4, 6)
        inputs[0] = torch.randn(batch, 4, 6)
        assert torch.equal(compiled(*inputs), function(*inputs))
        for ours, plain in zip(gradients(compiled, inputs, dy), gradients(function, inputs, dy), strict=True):
            assert torch.allclose(ours, plain)


def test_exports_with_dynamic_batch_and_length() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mk.ops.layer_norm(x, self.norm.weight, self.norm.bias, self.norm.eps)

    module = Module()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.export.export(module, (torch.randn(2, 8, 12),), dynamic_shapes=(dims,))
    x = torch.randn(5, 4, 12)
    assert torch.equal(program.module()(x), module(x))


def test_lazy_and_wrapped_tensors_are_seen_by_those_who_made_them() -> None:
    x, weight, bias = make((3, 8))
    assert torch.allclose(mk.ops.layer_norm(torch._neg_view(x), weight, bias), plain_norm(-x, weight, bias), atol=1e-6)
    assert torch.allclose(mk.ops.layer_norm(x, weight, torch._neg_view(bias)), plain_norm(x, weight, -bias), atol=1e-6)


def test_forward_mode_and_function_transforms() -> None:
    inputs = make((3, 4, 6))
    tangents = tuple(torch.randn_like(each) for each in inputs)
    results = []
    for norm in (mk.ops.layer_norm, reference.layer_norm):

        def loss(*a: torch.Tensor, norm=norm) -> torch.Tensor:
            return norm(*a).square().sum()

        results.append(
            (
                *torch.func.jvp(loss, tuple(inputs), tangents),
                *torch.func.grad(loss, argnums=(0, 1, 2))(*inputs),
                torch.vmap(norm, in_dims=(0, None, None))(*inputs),
            )
        )
    for ours, plain in zip(*results, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"backend 'cpu' was requested .* torch.func need plain torch"):
        torch.func.grad(lambda x: mk.ops.layer_norm(x, *inputs[1:], backend="cpu").sum())(inputs[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, torch.ones(3), torch.ones(3)), TypeError, "layer_norm: x: expected a tensor, got NoneType"),
        ((torch.tensor(1.0), torch.ones(3), torch.ones(3)), ValueError, r"x: expected at least 1 dimension, got shape \(\)"),
        ((torch.ones(1, 3), torch.ones(4), torch.ones(3)), ValueError, "weight: expected one value for each of 3 channels, got 4"),
        ((torch.ones(1, 3), torch.ones(3, 1), torch.ones(3)), ValueError, r"weight: expected 1 dimensions, got shape \(3, 1\)"),
        ((torch.ones(1, 3), torch.ones(3), torch.ones(3).half()), TypeError, "bias: expected dtype float32, got float16"),
        ((torch.ones(1, 3).int(), torch.ones(3), torch.ones(3)), TypeError, "x: expected dtype float32, .* got int32"),
        ((torch.ones(1, 3).to_sparse(), torch.ones(3), torch.ones(3)), TypeError, "x: expected a dense tensor, got torch.sparse_coo"),
    ],
)
def test_bad_input(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        mk.ops.layer_norm(*arguments)


@pytest.mark.parametrize("backend", ["triton", "nonsense"])
def test_a_backend_that_cannot_take_the_call_is_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=f"{backend}"):
        mk.ops.layer_norm(*make((2, 3)), backend=backend)
