from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from marks import slow
from tolerance import assert_float_rule

import mvit_kernels as mk
from mvit_kernels import reference
from mvit_kernels.ops.backend import native

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# (batch, d, axis 2, axis 3, patch): tails of every vector width, single elements, the shapes of the networks.
SHAPES = [
    (1, 1, 1, 1, None),
    (2, 3, 1, 7, None),
    (1, 5, 4, 15, None),
    (2, 4, 4, 16, None),
    (1, 37, 4, 33, None),
    (1, 64, 4, 256, None),
    (1, 130, 4, 16, None),
    (2, 3, 2, 2, (2, 2)),
    (1, 6, 6, 10, (2, 2)),
    (1, 64, 32, 32, (2, 2)),
    (2, 33, 8, 8, (2, 2)),
    (1, 5, 4, 24, (4, 8)),
    (1, 5, 6, 12, (3, 4)),
    (2, 5, 6, 5, (2, 1)),
]

needs_native = pytest.mark.skipif(native is None, reason="the native kernels are not built")


def make(shape, dtype=torch.float32, fmt="nchw") -> tuple[torch.Tensor, tuple[int, int] | None]:
    batch, dim, height, width, patch = shape
    return torch.randn(batch, 1 + 2 * dim, height, width).to(dtype).contiguous(memory_format=FORMATS[fmt]), patch


def exact_gradient(qkv: torch.Tensor, dy: torch.Tensor, patch) -> torch.Tensor:
    leaf = qkv.detach().double().requires_grad_()
    reference.separable_attention(leaf, patch).backward(dy.double())
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, fmt: str, dtype: torch.dtype, isa: str, poison) -> None:
    qkv, patch = make(shape, dtype, fmt)
    y = mk.ops.separable_attention(qkv, patch, backend="cpu")
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=FORMATS[fmt])
    assert_float_rule(y, reference.separable_attention(qkv, patch), reference.separable_attention(qkv.double(), patch))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(shape, fmt: str, dtype: torch.dtype, isa: str, poison) -> None:
    qkv, patch = make(shape, dtype, fmt)
    qkv.requires_grad_()
    y = mk.ops.separable_attention(qkv, patch, backend="cpu")
    dy = torch.randn_like(y)
    y.backward(dy)
    plain = qkv.detach().clone().requires_grad_()
    reference.separable_attention(plain, patch).backward(dy)
    assert_float_rule(qkv.grad, plain.grad, exact_gradient(qkv, dy, patch))
    assert qkv.grad.is_contiguous(memory_format=FORMATS[fmt])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("patch", [None, (2, 2)])
def test_any_strides(backend: str, patch, isa: str) -> None:
    big = torch.randn(3, 2 * 11 + 1, 8, 14)
    views = {
        "batch slice": big[1:],
        "rows": big[:, :, 2:6],
        "columns": big[..., 2:12],
        "every other column": big[..., ::2][..., :6],
        "transposed": big.transpose(2, 3),
        "channels last, columns": big.contiguous(memory_format=torch.channels_last)[..., 2:12],
        "permuted": torch.randn(8, 3, 14, 2 * 11 + 1).permute(1, 3, 0, 2),
        "expanded": big[:1].expand(3, -1, -1, -1),
        "one column": torch.randn(2, 5, 2, 2).transpose(2, 3)[..., :2],
    }
    if patch is None:
        # The stride of an axis of one element may be anything, in x and in the gradient.
        views["one position"] = torch.randn(2, 3, 1, 4).transpose(2, 3)
        views["odd stride"] = torch.empty_strided((2, 3, 4, 1), (12, 4, 1, 7)).normal_()
        views["one channel"] = torch.randn(2, 4, 5, 3).permute(0, 3, 1, 2)
    for name, qkv in views.items():
        y = mk.ops.separable_attention(qkv, patch, backend=backend)
        expected = reference.separable_attention(qkv.double(), patch)
        assert (y - expected).abs().max() < 1e-5, name
        leaf = qkv.detach().requires_grad_()
        mk.ops.separable_attention(leaf, patch, backend=backend).sum().backward()  # the gradient arrives expanded
        assert (leaf.grad - exact_gradient(qkv, torch.ones_like(expected), patch)).abs().max() < 1e-5, name


@needs_native
@pytest.mark.parametrize("fmt", FORMATS)
def test_gradient_of_one_element_axes_in_the_other_format(fmt: str) -> None:
    for size in ((2, 3, 4, 4), (2, 5, 4, 1)):
        qkv = torch.randn(size).contiguous(memory_format=FORMATS[fmt]).requires_grad_()
        y = mk.ops.separable_attention(qkv, backend="cpu")
        for dy in (torch.randn(y.shape), torch.randn(y.shape).contiguous(memory_format=torch.channels_last)):
            (grad,) = torch.autograd.grad(y, qkv, dy, retain_graph=True)
            assert (grad - exact_gradient(qkv, dy, None)).abs().max() < 1e-5


@needs_native
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_long_sums_stay_exact(mean: float, fmt: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        qkv, patch = make((1, 8, 128, 128, (2, 2)), fmt=fmt)
        qkv[:, 1:] += mean
        exact = reference.separable_attention(qkv.double(), patch)
        assert_float_rule(mk.ops.separable_attention(qkv, patch, backend="cpu"), reference.separable_attention(qkv, patch), exact)
        dy = torch.randn_like(exact).float()
        grad = torch.ops.mvit_kernels.separable_attention_backward(dy, qkv, patch, "cpu")
        assert_float_rule(grad, reference.separable_attention_backward(dy, qkv, patch), exact_gradient(qkv, dy, patch))


@needs_native
def test_large_keys_do_not_overflow_on_the_way() -> None:
    qkv = torch.ones(1, 3, 1, 64)
    qkv[:, 1] = 1e38
    qkv[:, 2] = 1e-5
    for fmt in FORMATS.values():
        y = mk.ops.separable_attention(qkv.contiguous(memory_format=fmt), backend="cpu")
        assert torch.allclose(y, torch.full_like(y, 1e33), rtol=1e-5)


@needs_native
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_round_to_nearest_even(dtype: torch.dtype, fmt: str, isa: str) -> None:
    """With one position s = 1, so y = relu(v) k: one float32 product, rounded once. All of 37 x 4096 products must have PyTorch's bits."""
    qkv = torch.randn(1 << 12, 1 + 2 * 37, 1, 1).to(dtype).contiguous(memory_format=FORMATS[fmt])
    key, value = qkv[:, 1:38].float(), qkv[:, 38:].float()
    assert torch.equal(mk.ops.separable_attention(qkv, backend="cpu"), (value.relu() * key).to(dtype))


@needs_native
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("patch", [None, (2, 2)])
def test_same_bits_on_any_number_of_threads(fmt: str, patch, threads) -> None:
    qkv, _ = make((3, 96, 16, 16, patch), fmt=fmt)
    dy = torch.randn(3, 96, 16, 16).contiguous(memory_format=FORMATS[fmt])
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        leaf = qkv.clone().requires_grad_()
        y = mk.ops.separable_attention(leaf, patch, backend="cpu")
        y.backward(dy)
        results.append((y.detach(), leaf.grad))
    for y, grad in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(grad, results[0][1])


@needs_native
def test_many_threads_call_at_once() -> None:
    # Large enough for parallel regions of their own in every call.
    inputs = [make((2, 40, 32, 32, (2, 2)), fmt=fmt)[0] for fmt in FORMATS for _ in range(4)]

    def both(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = qkv.clone().requires_grad_()
        y = mk.ops.separable_attention(leaf, (2, 2), backend="cpu")
        y.sum().backward()
        return y.detach(), leaf.grad

    alone = [both(qkv) for qkv in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for (y, grad), (y0, grad0) in zip(pool.map(both, inputs), alone, strict=True):
                assert torch.equal(y, y0)
                assert torch.equal(grad, grad0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("shape", [(0, 9, 4, 4), (2, 1, 4, 4), (2, 9, 0, 4), (2, 9, 4, 0)])
def test_empty(shape, backend: str) -> None:
    if backend == "cpu" and native is None:
        pytest.skip("the native kernels are not built")
    qkv = torch.randn(shape, requires_grad=True)
    y = mk.ops.separable_attention(qkv, backend=backend)
    assert y.shape == (shape[0], (shape[1] - 1) // 2, *shape[2:])
    y.sum().backward()
    assert torch.equal(qkv.grad, torch.zeros(shape))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("channel", [0, 2, 7])
def test_not_finite_values_stay_where_torch_has_them(channel: int, value: float, fmt: str, isa: str) -> None:
    qkv, _ = make((2, 5, 4, 21, None), fmt=fmt)
    qkv[1, channel, 2, 3] = value
    qkv[0, 0, 1] = value  # a whole row of scores
    expected = reference.separable_attention(qkv)
    actual = mk.ops.separable_attention(qkv, backend="cpu")
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("fmt", FORMATS)
def test_float16_near_its_largest_value(fmt: str, isa: str) -> None:
    qkv = torch.empty(1, 9, 4, 64, dtype=torch.float16).uniform_(5e4, 6e4)
    qkv[:, 5:] *= 1e-4  # v of a few units, so that the true result is finite
    qkv[:, 1:5] *= 0.15
    qkv[:, 0] = torch.empty(4, 64).uniform_(-6e4, 6e4)
    qkv = qkv.contiguous(memory_format=FORMATS[fmt])
    exact = reference.separable_attention(qkv.double())
    assert exact.max() > 2e4
    actual = mk.ops.separable_attention(qkv, backend="cpu")
    assert actual.isfinite().all()
    assert (actual.double() - exact).abs().max() <= 2**-10 * exact.max()


@needs_native
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_writes_only_its_output(layout: str, backward: bool, isa: str) -> None:
    """The raw kernels, on a tensor inside a larger buffer: the bytes around and between stay as they were."""
    batch, dim, height, width = 2, 5, 4, 6
    channels = 1 + 2 * dim
    axes = (0, 1, 2, 3) if layout == "planes" else (0, 3, 1, 2)

    def inside(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = (batch, count, height, width) if layout == "planes" else (batch, height, width, count)
        buffer = torch.full([n + 4 for n in size], 7.0)
        view = buffer[2:-2, 2:-2, 2:-2, 2:-2].permute(axes)
        return buffer, view

    _, qkv = inside(channels)
    qkv.normal_()
    y_buffer, y = inside(dim)
    patch, size = (2, 2), (batch, channels, height, width)
    if backward:
        y.normal_()
        out_buffer, out = inside(channels)
        status = native.separable_attention_backward(
            0, size, patch, qkv.data_ptr(), qkv.stride(), y.data_ptr(), y.stride(), out.data_ptr(), out.stride(), 2
        )
        expected = exact_gradient(qkv, y, patch)
    else:
        out_buffer, out = y_buffer, y
        status = native.separable_attention(0, size, patch, qkv.data_ptr(), qkv.stride(), y.data_ptr(), y.stride(), 2)
        expected = reference.separable_attention(qkv.double(), patch)
    assert status == 0
    assert (out - expected).abs().max() < 1e-5
    out.fill_(7.0)
    assert (out_buffer == 7.0).all()


def test_reference_gradient() -> None:
    qkv = torch.randn(2, 9, 4, 6, dtype=torch.float64, requires_grad=True)
    for patch in (None, (2, 2)):
        assert torch.autograd.gradcheck(lambda x, patch=patch: mk.ops.separable_attention(x, patch), (qkv,))


@pytest.mark.parametrize("fmt", [slow("nchw"), "nhwc"])
@pytest.mark.parametrize("patch", [None, (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype, patch, fmt: str) -> None:
    qkv, _ = make((2, 5, 4, 6, patch), dtype, fmt)
    for requires_grad in (False, True):
        torch.library.opcheck(torch.ops.mvit_kernels.separable_attention, (qkv.detach().requires_grad_(requires_grad), patch))
    dy = torch.randn(2, 5, 4, 6, dtype=dtype)
    torch.library.opcheck(torch.ops.mvit_kernels.separable_attention_backward, (dy, qkv.detach(), patch, None))


def test_compiles_without_graph_break() -> None:
    qkv, _ = make((2, 5, 4, 6, (2, 2)))

    def function(x: torch.Tensor) -> torch.Tensor:
        return mk.ops.separable_attention(x * 2, (2, 2)) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3):
        leaf, plain = (qkv[:1].expand(batch, -1, -1, -1).clone().requires_grad_() for _ in range(2))
        y, expected = compiled(leaf), function(plain)
        assert torch.equal(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        assert torch.allclose(leaf.grad, plain.grad)


def test_exports_with_dynamic_batch_and_size() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mk.ops.separable_attention(x, (2, 2))

    dims = {0: torch.export.Dim("batch"), 2: 2 * torch.export.Dim("rows", min=2), 3: 2 * torch.export.Dim("columns", min=2)}
    program = torch.export.export(Module(), (torch.randn(2, 11, 8, 12),), dynamic_shapes=(dims,))
    x = torch.randn(5, 11, 4, 6)
    assert torch.equal(program.module()(x), mk.ops.separable_attention(x, (2, 2)))


def test_autocast_keeps_sums_in_float32() -> None:
    layer = torch.nn.Conv2d(8, 1 + 2 * 16, 1)
    x = torch.randn(1, 8, 4, 1024)
    with torch.autocast("cpu", torch.bfloat16):
        qkv = layer(x)
        y = mk.ops.separable_attention(qkv)
    assert qkv.dtype == y.dtype == torch.bfloat16
    exact = reference.separable_attention(qkv.double())
    assert (y.double() - exact).abs().max() <= 2**-8 * exact.abs().max()  # one rounding of the result, none on the way


@pytest.mark.parametrize("patch", [None, (2, 2)])
def test_second_derivative(patch) -> None:
    qkv = torch.randn(1, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: mk.ops.separable_attention(x, patch), (qkv,))
    single = qkv.detach().float().requires_grad_()
    (grad,) = torch.autograd.grad(mk.ops.separable_attention(single, patch).square().sum(), single, create_graph=True)
    grad.square().sum().backward()
    (exact,) = torch.autograd.grad(reference.separable_attention(qkv, patch).square().sum(), qkv, create_graph=True)
    exact.square().sum().backward()
    assert torch.allclose(single.grad.double(), qkv.grad, rtol=1e-4, atol=1e-4)


def test_lazy_and_wrapped_tensors_are_seen_by_those_who_made_them() -> None:
    qkv, _ = make((1, 3, 2, 4, None))
    expected = reference.separable_attention(-qkv)
    assert torch.allclose(mk.ops.separable_attention(torch._neg_view(qkv)), expected)
    zero = torch._efficientzerotensor((1, 7, 2, 4))
    assert torch.equal(mk.ops.separable_attention(zero), torch.zeros(1, 3, 2, 4))


def test_forward_mode_and_function_transforms() -> None:
    qkv, tangent = torch.randn(1, 7, 2, 4), torch.randn(1, 7, 2, 4)
    results = []
    for attention in (mk.ops.separable_attention, reference.separable_attention):

        def loss(x: torch.Tensor, attention=attention) -> torch.Tensor:
            return attention(x).square().sum()

        def norm(x: torch.Tensor, loss=loss) -> torch.Tensor:
            return torch.func.grad(loss)(x).square().sum()

        results.append(
            (
                *torch.func.jvp(loss, (qkv,), (tangent,)),
                torch.func.grad(loss)(qkv),
                torch.func.grad(norm)(qkv),
                torch.vmap(torch.func.grad(loss))(torch.stack([qkv, tangent])),
                torch.vmap(attention)(torch.stack([qkv, tangent])),
            )
        )
    for ours, plain in zip(*results, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"backend 'cpu' was requested .* torch.func need plain torch"):
        torch.func.grad(lambda x: mk.ops.separable_attention(x, backend="cpu").sum())(qkv)


def test_backward_uses_the_backend_of_the_forward(monkeypatch) -> None:
    import sys

    module = sys.modules["mvit_kernels.ops.separable_attention"]
    used = []
    original = module.choose.implementations["reference"].backward
    spy = lambda *args: (used.append("reference"), original(*args))[1]  # noqa: E731
    monkeypatch.setitem(
        module.choose.implementations, "reference", module.Implementation(module.choose.implementations["reference"].forward, spy)
    )
    qkv, _ = make((1, 3, 4, 4, None))
    qkv.requires_grad_()
    with mk.use_backend("reference"):
        y = mk.ops.separable_attention(qkv)
    y.sum().backward()
    assert used == ["reference"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda op: op([1.0]), TypeError, "qkv: expected a tensor, got list"),
        (lambda op: op(torch.zeros(3, 4, 4)), ValueError, r"qkv: expected 4 dimensions, got shape \(3, 4, 4\)"),
        (lambda op: op(torch.zeros(1, 3, 4, 4, dtype=torch.int32)), TypeError, "qkv: expected dtype float32, .*, got int32"),
        (lambda op: op(torch.zeros(1, 4, 4, 4)), ValueError, "qkv: expected an odd number of channels 1 \\+ 2d, got 4"),
        (lambda op: op(torch.zeros(1, 3, 4, 5), (2, 2)), ValueError, r"qkv: expected height and width that are multiples of \(2, 2\)"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), (2,)), TypeError, r"patch_size: expected two integers, got \(2,\)"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), (2.0, 2)), TypeError, r"patch_size: expected two integers, got \(2.0, 2\)"),
        (lambda op: op(torch.zeros(1, 3, 4, 4, requires_grad=True), 2), TypeError, "patch_size: expected two integers, got 2"),
        (lambda op: op(torch.zeros(1, 3, 4, 4).to_sparse()), TypeError, "qkv: expected a dense tensor, got torch.sparse_coo"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), backend=3), TypeError, "backend: expected a name or None, got 3"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), backend=""), ValueError, "backend: expected one of auto, .*, got ''"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), (2, 0)), ValueError, r"patch_size: expected two positive integers, got \(2, 0\)"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), backend="gpu"), ValueError, "backend: expected one of auto, cpu, cuda, .*, got 'gpu'"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), backend="triton"), ValueError, "backend 'triton' was requested and cannot take"),
        (
            lambda op: op(torch.zeros(1, 3, 4, 4, dtype=torch.float64), backend="cpu"),
            ValueError,
            "separable_attention: backend 'cpu' was requested and cannot take this call",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call(mk.ops.separable_attention)
