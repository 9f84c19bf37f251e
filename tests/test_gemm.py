from __future__ import annotations

import functools

import pytest
import torch
from op_checks import (
    FLOATS,
    assert_compiles,
    assert_forward_and_gradients,
    assert_function_transforms,
    assert_reference_gradients,
    assert_same_bits_with_any_threads,
    assert_second_derivative,
    gradients,
    needs_native,
)
from tolerance import assert_float_rule

import mvit_kernels as mk
from mvit_kernels import reference

# (M, K, N): tails of tiles and panels, depths of several chunks, few rows, the shapes of the networks.
SHAPES = [(1, 1, 1), (3, 7, 5), (5, 2, 40), (13, 33, 17), (14, 16, 16), (65, 24, 31), (64, 32, 64), (2, 600, 33), (1, 512, 100)]
MANY_SHAPES = [
    *((rows, 9, columns) for rows in (1, 2, 13, 15, 63, 130) for columns in (1, 16, 33, 257)),
    *((rows, depth, 48) for rows in (1, 15, 64) for depth in (256, 257, 768)),
]


def make(shape, dtype=torch.float32, mean: float = 0.0) -> list[torch.Tensor]:
    """a, weight and bias."""
    rows, depth, columns = shape
    a = (mean + torch.randn(rows, depth, dtype=torch.float64)).to(dtype)
    return [a, (torch.randn(columns, depth) / max(depth, 1) ** 0.5).to(dtype), torch.randn(columns).to(dtype)]


def plain_gemm(a, weight, bias=None, second=None, residual=None, moments=None, **settings):
    if moments is not None:  # which are those of a, and change with it
        moments = reference.moments_of(a, moments.shape[0])
    return reference.gemm(a, weight, bias, second, moments, residual, **settings)


def cpu_gemm(a, weight, bias=None, second=None, residual=None, activation="none", **settings):
    return mk.ops.gemm(a, weight, bias, second=second, residual=residual, activation=activation, backend="cpu", **settings)


def compare(*draws, **settings) -> None:
    assert_forward_and_gradients(functools.partial(cpu_gemm, **settings), functools.partial(plain_gemm, **settings), *draws)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tail(shape, dtype: torch.dtype, isa: str, poison) -> None:
    compare(make(shape, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", MANY_SHAPES, ids=str)
def test_many_tails(shape, dtype: torch.dtype, isa: str, poison) -> None:
    compare(*(make(shape, dtype) for _ in range(4)))
    compare(*(make(shape, dtype) for _ in range(4)), layer_norm=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_epilogue(activation: str, dtype: torch.dtype, isa: str, poison) -> None:
    a, weight, bias = make((33, 21, 37), dtype)
    residual = torch.randn(33, 37).to(dtype)
    for inputs in ([a, weight], [a, weight, bias], [a, weight, bias, None, residual]):
        compare(inputs, activation=activation)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_second_input(dtype: torch.dtype, isa: str, poison) -> None:
    for depth, beside in ((5, 11), (16, 16), (0, 3), (3, 0)):
        a, weight, bias = make((19, depth + beside, 20), dtype)
        a, second = a.split([depth, beside], dim=1)
        compare([a, weight, bias, second], activation="silu")
        compare([a.contiguous(), weight, bias, second.contiguous(), torch.randn(19, 20).to(dtype)])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("norm", ["moments", "layer_norm"])
@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0, 100.0])
def test_norm_of_any_mean(mean: float, norm: str, dtype: torch.dtype, isa: str, poison) -> None:
    inputs = make((42, 40, 24), dtype, mean)
    if norm == "layer_norm":
        compare(inputs, layer_norm=True, eps=1e-3)
    else:
        compare(inputs, moments=reference.moments_of(inputs[0], 3), eps=1e-3)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_moments_are_those_of_what_is_written(dtype: torch.dtype, isa: str) -> None:
    for rows, columns, groups in ((12, 5, 3), (300, 70, 2), (4, 700, 1), (6, 33, 6)):
        inputs = make((rows, 30, columns), dtype, 5.0)
        y, moments = mk.ops.gemm(*inputs, collect=groups, backend="cpu")
        assert torch.allclose(moments, reference.moments_of(y, groups), rtol=1e-5, atol=1e-6)
        given = mk.ops.gemm(y, torch.randn(9, columns, dtype=dtype), moments=moments, collect=groups, backend="cpu")
        assert given[1].shape == (groups, 2)


@needs_native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_any_strides_and_dtypes(backend: str) -> None:
    gemm = functools.partial(mk.ops.gemm, backend=backend)
    big = torch.randn(40, 64)
    weight, bias = torch.randn(64, 22).T[:, ::2], torch.randn(44)[::2]
    views = [big[::2, :32], big[:20, ::2], big.T[:20, :32], big[:1].expand(20, -1)[:, 3:35], torch.randn(32).expand(20, -1)]
    for a in views:
        expected = reference.gemm(a.double(), weight.double(), bias.double(), residual=a[:, :22].double())
        assert (gemm(a, weight, bias, residual=a[:, :22]) - expected).abs().max() < 1e-5
        beside = gemm(a[:, :7], weight, bias, second=a[:, 7:])
        assert (beside - reference.gemm(a.double(), weight.double(), bias.double())).abs().max() < 1e-5
        leaf = a.detach().requires_grad_()
        gemm(leaf, weight, bias).sum().backward()  # the gradient arrives expanded
        assert (leaf.grad - weight.sum(0)).abs().max() < 1e-4
    transposed = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64).T
    assert torch.equal(gemm(big[:9], torch.eye(64), moments=transposed), gemm(big[:9], torch.eye(64), moments=transposed.contiguous()))
    assert gemm(big.bfloat16(), torch.randn(5, 64)).dtype == torch.bfloat16  # float32 parameters beside 16-bit activations


def test_gradients_keep_the_dtype_of_each_parameter() -> None:
    """A float32 bias beside a 16-bit weight: its gradient, beyond the range of the weight's dtype, is that of float32."""
    a, weight, bias = torch.ones(70000, 1).half(), torch.ones(1, 1).half(), torch.ones(1)
    for backend in ("cpu", "reference"):
        if backend == "cpu" and mk.ops.backend.native is None:
            continue
        gemm = functools.partial(mk.ops.gemm, backend=backend)
        assert gradients(gemm, [a, weight, bias], torch.ones(70000, 1).half())[2].item() == 70000


@needs_native
def test_same_bits_on_any_number_of_threads_and_from_several(threads) -> None:
    a, weight, bias = make((150, 96, 130))
    residual, dy = torch.randn(150, 130), torch.randn(150, 130)

    def both() -> list[torch.Tensor]:
        y = cpu_gemm(a, weight, bias, residual=residual, layer_norm=True, activation="silu")
        few = cpu_gemm(a[:3], weight, bias)
        return [y, few, *gradients(functools.partial(cpu_gemm, layer_norm=True), [a, weight, bias], dy)[:1]]

    assert_same_bits_with_any_threads(both, threads)


@needs_native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("shape", [(0, 3, 5), (0, 0, 5), (4, 3, 0), (4, 0, 5)], ids=str)
def test_empty(shape, backend: str) -> None:
    inputs = make(shape)
    gemm = functools.partial(mk.ops.gemm, backend=backend)
    y = gemm(*inputs)
    assert torch.equal(y, inputs[2].expand_as(y))
    da, dweight, dbias = gradients(gemm, inputs, torch.ones_like(y))
    assert torch.equal(da, torch.zeros(shape[:2]) if shape[2] == 0 else inputs[1].sum(0).expand_as(da))
    assert dweight.shape == inputs[1].shape
    assert torch.equal(dbias, torch.full_like(dbias, shape[0]))
    norms = [{"layer_norm": True}] if shape[1] else []
    for groups in (0, 1, 2) if shape[0] == 0 else (1, 2):
        moments = torch.ones(groups, 2, dtype=torch.float64)
        norms.append({"moments": moments})
        if groups:
            y, collected = gemm(*inputs, moments=moments, collect=groups)
            assert collected.shape == (groups, 2)
            assert collected.isnan().all() == (y.numel() == 0)
    for norm in norms:
        normed = functools.partial(gemm, **norm)
        assert normed(*inputs).shape == y.shape
        for gradient, each in zip(gradients(normed, inputs, torch.ones_like(y))[:2], inputs, strict=False):
            assert torch.equal(gradient, torch.zeros_like(each))  # of no rows, or no columns, or rows that are normalized


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_values_stay_where_torch_has_them(value: float, isa: str) -> None:
    a, weight, bias = make((30, 20, 40))
    a[3, 5] = value
    weight[7] = weight[7].abs()
    for settings in ({}, {"activation": "relu"}, {"layer_norm": True}, {"moments": reference.moments_of(a[4:7], 1)}):
        expected, actual = reference.gemm(a, weight, bias, **settings), cpu_gemm(a, weight, bias, **settings)
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)
    weight[9, 2] = value
    assert torch.equal(cpu_gemm(a, weight, bias).isnan(), reference.gemm(a, weight, bias).isnan())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations_of_numbers_of_every_size(activation: str, dtype: torch.dtype, isa: str) -> None:
    inf = float("inf")
    x = torch.tensor([3e38, -3e38, 1e30, -1e30, 1e14, -1e14, 1e9, -1e9, 6e4, -6e4, 200, -200, 100, -100, 88, -88, 1, -1, 1e-30, -1e-30, 0])
    x = x[x.abs() <= torch.finfo(dtype).max].to(dtype)[:, None]
    one = torch.ones(1, 1).to(dtype)
    y = cpu_gemm(x, one, activation=activation)
    expected = reference.activate(x.double(), activation)
    assert torch.allclose(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-28)
    ends = torch.tensor([[inf], [-inf], [float("nan")]]).to(dtype)
    high, low, nan = cpu_gemm(ends, one, activation=activation).flatten().tolist()
    assert high == (6.0 if activation == "relu6" else inf)
    assert nan != nan
    assert low == -inf if activation == "none" else low != low or abs(low) < 1e-30  # torch gives NaN or the limit


def test_reference_gradients() -> None:
    a, weight, bias = make((4, 5, 3), torch.float64)
    residual = torch.randn(4, 3, dtype=torch.float64)
    for settings in ({"activation": "silu"}, {"activation": "gelu", "layer_norm": True}):
        assert_reference_gradients(functools.partial(mk.ops.gemm, **settings), [a, weight, bias])

    def normed(a, weight, bias):
        with torch.no_grad():
            moments = reference.moments_of(a, 2)
        return mk.ops.gemm(a, weight, bias, activation="relu", moments=moments)

    assert_reference_gradients(normed, [a, weight, bias])
    op = lambda a, second, weight, residual: mk.ops.gemm(a, weight, second=second, residual=residual)  # noqa: E731
    assert_reference_gradients(op, [a[:, :2], a[:, 2:], weight, residual])


def test_second_derivative() -> None:
    settings = {"layer_norm": True, "activation": "gelu"}
    assert_second_derivative(functools.partial(mk.ops.gemm, **settings), functools.partial(plain_gemm, **settings), make((6, 9, 5)))


def test_frozen_weights() -> None:
    a, weight, bias = make((6, 9, 5))
    a.requires_grad_()
    mk.ops.gemm(a, weight, bias, activation="silu").sum().backward()
    exact = gradients(lambda a: plain_gemm(a, weight.double(), bias.double(), activation="silu"), [a.double()], torch.ones(6, 5).double())
    assert (a.grad - exact[0]).abs().max() < 1e-5
    assert weight.grad is None
    assert bias.grad is None
    a = a.detach()
    mk.ops.gemm(a, weight, bias.requires_grad_()).sum().backward()
    assert torch.equal(bias.grad, torch.full((5,), 6.0))
    assert a.grad is None


def test_collected_moments_have_no_gradient_of_their_own() -> None:
    a, weight, bias = make((6, 9, 5))
    y, moments = mk.ops.gemm(a.requires_grad_(), weight, bias, collect=2)
    assert y.requires_grad
    assert not moments.requires_grad  # or a loss of them would silently have no gradient


@needs_native
def test_opcheck() -> None:
    a, weight, bias = make((6, 9, 5))
    op = torch.ops.mvit_kernels.gemm
    moments, residual = reference.moments_of(a, 2), torch.randn(6, 5)
    for arguments in (
        (a, weight),
        (a, weight, bias, None, moments, residual, False, 1e-5, "silu", 2),
        (a[:, :4], weight, bias, a[:, 4:]),
        (a, weight, bias, None, None, None, True),
    ):
        for requires_grad in (False, True):
            leaves = [
                x.detach().requires_grad_(requires_grad) if isinstance(x, torch.Tensor) and x is not moments else x for x in arguments
            ]
            torch.library.opcheck(op, leaves)
    torch.library.opcheck(torch.ops.mvit_kernels.gemm_backward, (residual, a, weight, bias, None, moments, False, 1e-5, "gelu", None))


def test_compiles_without_graph_break() -> None:
    def function(a: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y, moments = mk.ops.gemm(a * 2, weight, bias, activation="silu", collect=1)
        return mk.ops.gemm(y, weight.T, moments=moments, residual=a) + 1

    assert_compiles(function, make((4, 9, 5)), (2, 3))


def test_exports_with_dynamic_rows() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(9, 5)

        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return mk.ops.gemm(a, self.linear.weight, self.linear.bias, layer_norm=True, activation="gelu")

    module = Module()
    program = torch.export.export(module, (torch.randn(4, 9),), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    a = torch.randn(7, 9)
    assert torch.equal(program.module()(a), module(a))


def test_forward_mode_and_function_transforms() -> None:
    a, weight, bias = make((6, 9, 5))
    for settings in ({"activation": "silu"}, {"layer_norm": True}):
        op = lambda a, f=mk.ops.gemm, s=settings: f(a, weight, bias, **s)  # noqa: E731
        assert_function_transforms(op, functools.partial(op, f=plain_gemm), a)
    with pytest.raises(ValueError, match=r"backend 'cpu' was requested .* torch.func need plain torch"):
        torch.func.grad(lambda a: mk.ops.gemm(a, weight, backend="cpu").sum())(a)


def test_lazy_tensors() -> None:
    a, weight, bias = make((6, 9, 5))
    assert torch.allclose(mk.ops.gemm(torch._neg_view(a), weight, bias), plain_gemm(-a, weight, bias), atol=1e-5)
    assert torch.allclose(mk.ops.gemm(a, torch._neg_view(weight), bias), plain_gemm(a, -weight, bias), atol=1e-5)


def test_float16_near_its_largest_value(isa: str) -> None:
    a = torch.empty(5, 300).uniform_(-6e4, 6e4).half()
    weight = torch.full((3, 300), 1.0 / 300).half()
    y = cpu_gemm(a, weight)
    assert_float_rule(y, plain_gemm(a, weight), plain_gemm(a.double(), weight.double()))
    y = cpu_gemm(a, weight, layer_norm=True)
    assert y.isfinite().all()


M, W = torch.zeros(4, 3), torch.zeros(5, 3)
MOMENTS = torch.ones(2, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((None, W), {}, TypeError, "gemm: a: expected a tensor, got NoneType"),
        ((M, [1.0]), {}, TypeError, "gemm: weight: expected a tensor, got list"),
        ((M, W, 3), {}, TypeError, "gemm: bias: expected a tensor, got int"),
        ((M[0], W), {}, ValueError, r"gemm: a: expected 2 dimensions, got shape \(3,\)"),
        ((M.int(), W), {}, TypeError, "gemm: a: expected dtype float32, .*, got int32"),
        ((M.to_sparse(), W), {}, TypeError, "gemm: a: expected a dense tensor, got torch.sparse_coo"),
        ((M, W[0]), {}, ValueError, r"gemm: weight: expected 2 dimensions, got shape \(3,\)"),
        ((M, W.half()), {}, TypeError, "gemm: weight: expected dtype float32, got float16"),
        ((M, W.T), {}, ValueError, r"gemm: weight: expected shape \(N, 3\), got \(3, 5\)"),
        ((M, W.to("meta")), {}, ValueError, "gemm: weight: expected device cpu, got meta"),
        ((M, W, torch.zeros(4)), {}, ValueError, r"gemm: bias: expected shape \(5,\), got \(4,\)"),
        ((M, W), {"second": M}, ValueError, r"gemm: weight: expected shape \(N, 6\), got \(5, 3\)"),
        ((M, W), {"second": M[:, 0]}, ValueError, r"gemm: second: expected 2 dimensions, got shape \(4,\)"),
        ((M, W), {"second": M[:3]}, ValueError, r"gemm: second: expected torch.float32 of shape \(4, 3\) .* got .* \(3, 3\)"),
        ((M, W), {"second": M.half()}, ValueError, "gemm: second: expected torch.float32 .* got torch.float16"),
        ((M, W), {"second": M, "layer_norm": True}, ValueError, "gemm: second: expected None together with a norm, got a tensor"),
        ((M, W), {"second": M, "moments": MOMENTS}, ValueError, "gemm: second: expected None together with a norm, got a tensor"),
        ((M, W), {"residual": M}, ValueError, r"gemm: residual: expected torch.float32 of shape \(4, 5\) .* got .* \(4, 3\)"),
        ((M, W), {"moments": MOMENTS, "layer_norm": True}, ValueError, "gemm: moments: expected None together with layer_norm"),
        ((M, W), {"moments": MOMENTS.float()}, TypeError, "gemm: moments: expected dtype float64, got float32"),
        ((M, W), {"moments": MOMENTS[:, :1]}, ValueError, r"gemm: moments: expected shape \(G, 2\) on cpu, got \(2, 1\)"),
        ((M[:3], W), {"moments": MOMENTS}, ValueError, "gemm: moments: expected a number of groups that divides 3 rows, got 2"),
        ((M, W), {"moments": MOMENTS[:0]}, ValueError, "gemm: moments: expected a number of groups that divides 4 rows, got 0"),
        ((M, W), {"collect": 3}, ValueError, "gemm: collect: expected a number of groups that divides 4 rows, got 3"),
        ((M, W), {"collect": -1}, ValueError, "gemm: collect: expected a number of groups that divides 4 rows, got -1"),
        ((M, W), {"moments": MOMENTS, "collect": 4}, ValueError, "gemm: collect: expected as many groups as moments has, 2, got 4"),
        ((M[:, :0], W[:, :0]), {"layer_norm": True}, ValueError, "gemm: a: expected at least one column for layer_norm"),
        ((M, W), {"activation": "tanh"}, ValueError, "gemm: activation: expected one of none, relu, .*, got 'tanh'"),
        ((M, W), {"backend": 3}, TypeError, "gemm: backend: expected a name or None, got 3"),
        ((M, W), {"backend": "gpu"}, ValueError, "backend: expected one of auto, .*, got 'gpu'"),
        ((M.double(), W.double()), {"backend": "cpu"}, ValueError, "gemm: backend 'cpu' was requested and cannot take this call"),
    ],
)
def test_bad_input(arguments, settings, error, message: str) -> None:
    with pytest.raises(error, match=message):
        mk.ops.gemm(*arguments, **settings)
