from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

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
from tolerance import assert_float_rule

import mvit_kernels as mk
from mvit_kernels import reference

# (batch, d, axis 2, axis 3, patch): tails of vectors and panels, one and several blocks of positions, many phases.
SHAPES = [
    (1, 2, 1, 1, None),
    (2, 3, 1, 7, None),
    (1, 33, 4, 40, None),
    (2, 17, 6, 10, (2, 2)),
    (1, 64, 16, 16, (2, 2)),
    (1, 5, 16, 16, (8, 8)),
    (1, 5, 6, 12, (2, 3)),
    (1, 7, 70, 3, None),
]
MANY_SHAPES = [
    *((2, d, 2 * height, 2 * width, (2, 2)) for d in (2, 16, 31, 48, 65, 130) for height in (1, 3) for width in (1, 4, 9)),
    *((1, 12, 12, 24, patch) for patch in ((1, 1), (3, 4), (12, 24), (4, 8), (6, 1), (1, 8))),
    *((1, d, phases, 15, None) for d in (9, 32) for phases in (1, 2, 4, 5, 64)),
]


def make(shape, dtype=torch.float32, fmt="nchw", mean: float = 0.0) -> list[torch.Tensor]:
    batch, dim, height, width, _ = shape
    x = (torch.randn(batch, dim, height, width, dtype=torch.float64) + mean).to(dtype).contiguous(memory_format=FORMATS[fmt])
    qkv_w, out_w = torch.randn(1 + 2 * dim, dim) / dim**0.5, torch.randn(dim, dim) / dim**0.5
    parameters = torch.randn(dim), torch.randn(dim), qkv_w, torch.randn(1 + 2 * dim), out_w, torch.randn(dim)
    return [x, *(each.to(dtype) for each in parameters)]


def cpu(*inputs, **settings):
    return mk.ops.separable_attention_block(*inputs, backend="cpu", **settings)


def compare(draws, patch, **settings) -> None:
    op = functools.partial(cpu, patch_size=patch, **settings)
    assert_forward_and_gradients(op, functools.partial(reference.separable_attention_block, patch_size=patch), *draws)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tail(shape, dtype: torch.dtype, isa: str, poison) -> None:
    draws = [make(shape, dtype, fmt) for fmt in FORMATS for _ in range(4 if dtype == torch.float32 else 1)]
    compare(draws, shape[-1])
    for fmt, inputs in zip(FORMATS, (draws[0], draws[-1]), strict=True):
        assert cpu(*inputs, patch_size=shape[-1]).is_contiguous(memory_format=FORMATS[fmt])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", MANY_SHAPES, ids=str)
def test_many_tails(shape, dtype: torch.dtype, isa: str, poison) -> None:
    compare([make(shape, dtype, fmt) for fmt in FORMATS for _ in range(12 if dtype == torch.float32 else 1)], shape[-1])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["computed", "given"])
@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0, 100.0])
def test_any_mean(mean: float, given: bool, dtype: torch.dtype, isa: str, poison) -> None:
    inputs = make((2, 24, 10, 12, None), dtype, "nhwc", mean)
    compare([inputs], (2, 2), moments=reference.moments_of(inputs[0], 2) if given else None)


@needs_native
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_long_sums_stay_exact(mean: float) -> None:
    inputs = make((1, 8, 128, 128, None), torch.float32, "nhwc", mean)
    exact = reference.separable_attention_block(*(each.double() for each in inputs), patch_size=(2, 2))
    plain = reference.separable_attention_block(*inputs, patch_size=(2, 2))
    assert_float_rule(cpu(*inputs, patch_size=(2, 2)), plain, exact)


def test_scores_far_apart(isa: str) -> None:
    block = reference.separable_attention_block
    for scale in (10.0, 100.0):
        draws = [make((2, 16, 12, 14, None)) for _ in range(8)]
        for inputs in draws:
            inputs[3][0] *= scale
        exact = torch.stack([block(*(each.double() for each in inputs), patch_size=(2, 2)) for inputs in draws])
        ours, plain = (torch.stack([f(*inputs, patch_size=(2, 2)) for inputs in draws]) for f in (cpu, block))
        assert_float_rule(ours, plain, exact)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_moments_are_those_of_what_is_written(dtype: torch.dtype, isa: str) -> None:
    for backend in ("cpu", "reference"):
        for shape in ((3, 9, 6, 4, None), (1, 40, 16, 16, None)):
            inputs = make(shape, dtype, "nhwc", 5.0)
            y, moments = mk.ops.separable_attention_block(*inputs, patch_size=(2, 2), collect=True, backend=backend)
            assert torch.equal(y, mk.ops.separable_attention_block(*inputs, patch_size=(2, 2), backend=backend))
            assert torch.allclose(moments, reference.moments_of(y, shape[0]), rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("patch", [None, (2, 2)])
def test_any_strides_and_dtypes(patch, backend: str) -> None:
    op = functools.partial(mk.ops.separable_attention_block, patch_size=patch, backend=backend)
    big, (_, *parameters) = torch.randn(3, 11, 8, 14), make((1, 11, 1, 1, None))
    parameters[2] = torch.randn(11, 46).T[::2] / 3
    parameters[4] = parameters[4][:, :, None, None]
    views = [big[1:], big[:, :, 2:6], big[..., ::2][..., :6], big.transpose(2, 3), big[:1].expand(3, -1, -1, -1)]
    if patch is None:
        views += [big[..., :1], big[:, :, :1], big[:, :, :1, :1]]
    for x in views:
        exact = functools.partial(reference.separable_attention_block, patch_size=patch)
        expected = exact(x.double(), *(each.double() for each in parameters))
        assert (op(x, *parameters) - expected).abs().max() < 1e-5
        leaf = x.detach().requires_grad_()
        op(leaf, *parameters).sum().backward()  # the gradient arrives expanded
        (right,) = gradients(lambda t, f=exact: f(t, *(each.double() for each in parameters)), [x.double()], torch.ones_like(expected))
        assert (leaf.grad - right).abs().max() < 1e-4
    assert op(big.bfloat16(), *parameters).dtype == torch.bfloat16  # float32 parameters beside 16-bit activations


@needs_native
def test_moments_of_any_strides() -> None:
    inputs = make((64, 3, 2, 2, None))
    moments = reference.moments_of(inputs[0], 64)
    strided = torch.stack([*moments.unbind(1)]).T
    assert not strided.is_contiguous()
    y, collected = cpu(*inputs, moments=moments, collect=True)
    for _ in range(5):
        again, also = cpu(*inputs, moments=strided, collect=True)
        assert torch.equal(again, y)
        assert torch.equal(also, collected)


@needs_native
@pytest.mark.parametrize("patch", [None, (2, 2), (4, 4)])
def test_same_bits_on_any_number_of_threads_and_from_several(patch, threads) -> None:
    inputs = make((3, 48, 20, 20, None), fmt="nhwc")
    assert_same_bits_with_any_threads(lambda: list(cpu(*inputs, patch_size=patch, collect=True)), threads)


@needs_native
def test_gradients_from_several_python_threads(threads) -> None:
    inputs = make((2, 24, 12, 12, None), fmt="nhwc")
    dy = torch.randn_like(inputs[0])
    expected = gradients(functools.partial(cpu, patch_size=(2, 2)), inputs, dy)

    def own(_: int) -> list[torch.Tensor]:
        y = cpu(*leaves, patch_size=(2, 2))
        return list(torch.autograd.grad(y, leaves, dy))

    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in inputs]
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(own, range(12)):
            for a, b in zip(result, expected, strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("patch", [None, (2, 2)])
@pytest.mark.parametrize("shape", [(0, 3, 4, 4, None), (2, 3, 0, 4, None), (2, 3, 4, 0, None)], ids=str)
def test_empty(shape, patch, backend: str) -> None:
    inputs = make(shape)
    op = functools.partial(mk.ops.separable_attention_block, patch_size=patch, backend=backend)
    y, moments = op(*inputs, collect=True)
    assert y.shape == inputs[0].shape
    assert moments.shape == (shape[0], 2)
    dx, *rest = gradients(op, inputs, torch.zeros_like(y))
    assert dx.shape == inputs[0].shape
    for each, x in zip(rest, inputs[1:], strict=True):
        assert torch.equal(each, torch.zeros_like(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_values_stay_where_torch_has_them(value: float, isa: str) -> None:
    inputs = make((3, 5, 8, 10, None))
    inputs[0][1, 2, 3, 4] = value
    expected = reference.separable_attention_block(*inputs, patch_size=(2, 2))
    actual = cpu(*inputs, patch_size=(2, 2))
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)


def test_reference_gradients() -> None:
    for patch in (None, (2, 2)):
        assert_reference_gradients(functools.partial(mk.ops.separable_attention_block, patch_size=patch), make((1, 3, 4, 4, None)))


def test_second_derivative() -> None:
    functions = (mk.ops.separable_attention_block, reference.separable_attention_block)
    op, plain = (functools.partial(function, patch_size=(2, 2)) for function in functions)
    assert_second_derivative(op, plain, make((2, 5, 4, 4, None)))


def test_frozen_weights_and_frozen_input() -> None:
    inputs = make((2, 5, 4, 6, None))
    exact = gradients(reference.separable_attention_block, [each.double() for each in inputs], torch.ones_like(inputs[0]).double())
    for i in (0, 3):
        leaves = [each.detach().clone().requires_grad_(j == i) for j, each in enumerate(inputs)]
        mk.ops.separable_attention_block(*leaves).sum().backward()
        assert (leaves[i].grad - exact[i]).abs().max() < 1e-4
        assert all(leaf.grad is None for j, leaf in enumerate(leaves) if j != i)


@needs_native
@pytest.mark.parametrize("fmt", [slow("nchw"), "nhwc"])
def test_opcheck(fmt: str) -> None:
    for shape, patch in (((2, 5, 4, 6, None), [2, 2]), ((2, 5, 1, 1, None), None)):
        x, *parameters = make(shape, fmt=fmt)
        for arguments in ((x, *parameters), (x, *parameters, reference.moments_of(x, 2), 1e-5, patch, True)):
            for requires_grad in (False, True):
                leaves = [each.detach().requires_grad_(requires_grad) for each in arguments[:7]]
                torch.library.opcheck(torch.ops.mvit_kernels.separable_attention_block, (*leaves, *arguments[7:]))
        backward = (torch.randn_like(x), x, *parameters, None, 1e-5, patch, None)
        torch.library.opcheck(torch.ops.mvit_kernels.separable_attention_block_backward, backward)


def test_compiles_without_graph_break() -> None:
    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        y, moments = mk.ops.separable_attention_block(x * 2, *parameters, patch_size=(2, 2), collect=True)
        return mk.ops.separable_attention_block(y, *parameters, moments=moments) + 1

    assert_compiles(function, make((2, 5, 4, 6, None)), (2, 3))


def test_exports_with_dynamic_batch_and_size() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(make((1, 5, 1, 1, None))[1:])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mk.ops.separable_attention_block(x, *self.weights, patch_size=(2, 2))

    module = Module()
    dims = {0: torch.export.Dim("batch"), 2: 2 * torch.export.Dim("rows", min=2), 3: 2 * torch.export.Dim("columns", min=2)}
    program = torch.export.export(module, (torch.randn(2, 5, 8, 12),), dynamic_shapes=(dims,))
    x = torch.randn(5, 5, 4, 6)
    assert torch.equal(program.module()(x), module(x))


def test_forward_mode_and_function_transforms() -> None:
    x, *parameters = make((1, 5, 4, 4, None))
    functions = (mk.ops.separable_attention_block, reference.separable_attention_block)
    op, plain = (lambda x, f=f: f(x, *parameters, patch_size=(2, 2)) for f in functions)
    assert_function_transforms(op, plain, x)
    with pytest.raises(ValueError, match=r"backend 'cpu' was requested .* torch.func need plain torch"):
        torch.func.grad(lambda x: cpu(x, *parameters).sum())(x)


X, D, D1 = torch.zeros(2, 3, 4, 4), torch.ones(3), torch.ones(4)
QW, QB, OW = torch.ones(7, 3), torch.ones(7), torch.ones(3, 3)
MOMENTS = torch.ones(2, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((None, D, D, QW, QB, OW, D), {}, TypeError, "separable_attention_block: x: expected a tensor, got NoneType"),
        ((X, D, D, QW, None, OW, D), {}, TypeError, "separable_attention_block: qkv_b: expected a tensor, got NoneType"),
        ((X[0], D, D, QW, QB, OW, D), {}, ValueError, r"x: expected 4 dimensions, got shape \(3, 4, 4\)"),
        ((X.int(), D, D, QW, QB, OW, D), {}, TypeError, "x: expected dtype float32, .*, got int32"),
        ((X, D1, D, QW, QB, OW, D), {}, ValueError, r"norm_w: expected shape \(3,\), got \(4,\)"),
        ((X, D, D1, QW, QB, OW, D), {}, ValueError, r"norm_b: expected shape \(3,\), got \(4,\)"),
        ((X, D, D, QW[1:], QB, OW, D), {}, ValueError, r"qkv_w: expected shape \(7, 3\) or \(7, 3, 1, 1\), got \(6, 3\)"),
        ((X, D, D, QW, QB[1:], OW, D), {}, ValueError, r"qkv_b: expected shape \(7,\), got \(6,\)"),
        ((X, D, D, QW, QB, OW[1:], D), {}, ValueError, r"out_w: expected shape \(3, 3\) or \(3, 3, 1, 1\), got \(2, 3\)"),
        ((X, D, D, QW, QB, OW, D1), {}, ValueError, r"out_b: expected shape \(3,\), got \(4,\)"),
        ((X, D, D, QW.half(), QB, OW, D), {}, TypeError, "qkv_w: expected dtype float32, got float16"),
        ((X, D, D, QW, QB, OW.to("meta"), D), {}, ValueError, "out_w: expected device cpu, got meta"),
        ((X, D, D, QW, QB, OW, D), {"patch_size": (3, 2)}, ValueError, r"x: expected height and width .* multiples of \(3, 2\), got 4 x 4"),
        ((X, D, D, QW, QB, OW, D), {"patch_size": (0, 2)}, ValueError, r"patch_size: expected two positive integers, got \(0, 2\)"),
        ((X, D, D, QW, QB, OW, D), {"patch_size": 2}, TypeError, "patch_size: expected two integers, got 2"),
        ((X, D, D, QW, QB, OW, D), {"moments": MOMENTS.float()}, TypeError, "moments: expected dtype float64, got float32"),
        ((X, D, D, QW, QB, OW, D), {"moments": MOMENTS[:1]}, ValueError, r"moments: expected shape \(2, 2\) on cpu, got \(1, 2\)"),
        ((X, D, D, QW, QB, OW, D), {"backend": "gpu"}, ValueError, "backend: expected one of auto, .*, got 'gpu'"),
        ((X.double(), D, D, QW, QB, OW, D), {"backend": "cpu"}, ValueError, "backend 'cpu' was requested and cannot take this call"),
    ],
)
def test_bad_input(arguments, settings, error, message: str) -> None:
    with pytest.raises(error, match=message):
        mk.ops.separable_attention_block(*arguments, **settings)
