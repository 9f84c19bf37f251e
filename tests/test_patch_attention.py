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
# (batch, channels of a head, heads, H, W, patch): tails of pixels and channels, single elements, blocks, the shapes of the networks.
SHAPES = [
    (1, 1, 1, 1, 1, (1, 1)),
    (2, 1, 3, 2, 2, (2, 2)),
    (1, 5, 2, 6, 10, (2, 2)),
    (2, 3, 1, 6, 35, (2, 1)),
    (1, 16, 4, 12, 8, (1, 2)),
    (1, 20, 4, 16, 16, (4, 4)),
    (1, 7, 3, 16, 24, (8, 8)),
    (1, 5, 2, 6, 12, (3, 4)),
    (1, 17, 1, 13, 23, (1, 1)),
    (1, 36, 4, 32, 32, (2, 2)),
    (2, 48, 4, 16, 16, (2, 2)),
    (3, 60, 4, 8, 8, (2, 2)),
]

needs_native = pytest.mark.skipif(native is None, reason="the native kernels are not built")


def make(shape, dtype=torch.float32, fmt="nchw") -> tuple[torch.Tensor, int, tuple[int, int]]:
    batch, depth, heads, height, width, patch = shape
    return torch.randn(batch, 3 * depth * heads, height, width).to(dtype).contiguous(memory_format=FORMATS[fmt]), heads, patch


def exact_gradient(qkv: torch.Tensor, dy: torch.Tensor, *arguments) -> torch.Tensor:
    leaf = qkv.detach().double().requires_grad_()
    reference.patch_attention(leaf, *arguments).backward(dy.double())
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, fmt: str, dtype: torch.dtype, isa: str, poison) -> None:
    qkv, heads, patch = make(shape, dtype, fmt)
    for scale in (None, 0.7):
        y = mk.ops.patch_attention(qkv, heads, patch, scale, backend="cpu")
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=FORMATS[fmt])
        plain = reference.patch_attention(qkv, heads, patch, scale)
        assert_float_rule(y, plain, reference.patch_attention(qkv.double(), heads, patch, scale))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(shape, fmt: str, dtype: torch.dtype, isa: str, poison) -> None:
    qkv, heads, patch = make(shape, dtype, fmt)
    qkv.requires_grad_()
    y = mk.ops.patch_attention(qkv, heads, patch, backend="cpu")
    dy = torch.randn_like(y)
    y.backward(dy)
    plain = qkv.detach().clone().requires_grad_()
    reference.patch_attention(plain, heads, patch).backward(dy)
    assert_float_rule(qkv.grad, plain.grad, exact_gradient(qkv, dy, heads, patch))
    assert qkv.grad.is_contiguous(memory_format=FORMATS[fmt])


def test_definition() -> None:
    """The reference against torch's own attention, phase by phase and head by head."""
    qkv = torch.randn(2, 3 * 10, 4, 6, dtype=torch.float64)
    expected = torch.empty(2, 10, 4, 6, dtype=torch.float64)
    for row in range(2):
        for column in range(3):
            for head in range(2):
                part = qkv[:, :, row::2, column::3].reshape(2, 3, 2, 5, -1)[:, :, head].mT.unbind(1)
                y = torch.nn.functional.scaled_dot_product_attention(*part, scale=0.3)
                expected[:, 5 * head : 5 * head + 5, row::2, column::3] = y.mT.reshape(2, 5, 2, 2)
    for attention in (reference.patch_attention, reference.patch_attention_fused):
        assert torch.allclose(attention(qkv, 2, (2, 3), 0.3), expected)
        assert torch.allclose(attention(qkv, 2, (2, 3)), attention(qkv, 2, (2, 3), 5**-0.5))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_any_strides(backend: str, isa: str) -> None:
    big = torch.randn(3, 3 * 10, 8, 14)
    views = {
        "batch slice": big[1:],
        "rows": big[:, :, 2:6],
        "columns": big[..., 2:12],
        "every other column": big[..., ::2][..., :6],
        "transposed": big.transpose(2, 3),
        "channels last, columns": big.contiguous(memory_format=torch.channels_last)[..., 2:12],
        "channels last, channels": torch.randn(3, 50, 8, 14).contiguous(memory_format=torch.channels_last)[:, 7:37],
        "permuted": torch.randn(8, 3, 14, 3 * 10).permute(1, 3, 0, 2),
        "expanded": big[:1].expand(3, -1, -1, -1),
        "expanded channels last": big[:1].contiguous(memory_format=torch.channels_last).expand(3, -1, -1, -1),
        "one channel repeated": torch.randn(2, 1, 4, 6).expand(2, 30, 4, 6),
        "one phase of one pixel": torch.randn(2, 2, 2, 30).permute(0, 3, 1, 2),
    }
    for name, qkv in views.items():
        y = mk.ops.patch_attention(qkv, 2, backend=backend)
        expected = reference.patch_attention(qkv.double(), 2)
        assert (y - expected).abs().max() < 1e-5, name
        leaf = qkv.detach().requires_grad_()
        mk.ops.patch_attention(leaf, 2, backend=backend).sum().backward()  # the gradient arrives expanded
        assert (leaf.grad - exact_gradient(qkv, torch.ones_like(expected), 2)).abs().max() < 1e-5, name


@needs_native
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_long_sums_stay_exact(mean: float) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        qkv = torch.randn(1, 12, 40, 64)
        qkv[:, 8:] += mean
        exact = reference.patch_attention(qkv.double(), 1, (1, 1))
        assert_float_rule(mk.ops.patch_attention(qkv, 1, (1, 1), backend="cpu"), reference.patch_attention(qkv, 1, (1, 1)), exact)
        dy = torch.randn_like(exact).float()
        grad = torch.ops.mvit_kernels.patch_attention_backward(dy, qkv, 1, (1, 1), None, "cpu")
        plain = reference.patch_attention_backward(dy, qkv, 1, (1, 1))
        assert_float_rule(grad, plain, reference.patch_attention_backward(dy.double(), qkv.double(), 1, (1, 1)))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("ascending", [False, True])
def test_large_scores(ascending: bool, fmt: str, isa: str) -> None:
    """Scores of +-1e4: the weights are 0 and 1, but for a few equal scores; the largest is in the first block of keys or in the last."""
    qkv = torch.zeros(1, 9, 8, 80)
    order = torch.arange(640.0).sub(320).reshape(8, 80)
    qkv[:, 0] = 32.0
    qkv[:, 3] = order if ascending else -order
    qkv[:, 6:] = torch.randn(3, 8, 80)
    exact = reference.patch_attention(qkv.double(), 1, (1, 1), 1.0)
    qkv = qkv.contiguous(memory_format=FORMATS[fmt])
    assert (mk.ops.patch_attention(qkv, 1, (1, 1), 1.0, backend="cpu") - exact).abs().max() < 1e-6
    grad = torch.ops.mvit_kernels.patch_attention_backward(qkv[:, 6:], qkv, 1, (1, 1), 1.0, "cpu")
    expected = exact_gradient(qkv, qkv[:, 6:], 1, (1, 1), 1.0)
    assert (grad - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.allclose(exact[0, :, 0, 0], qkv[0, 6:, -1, -1].double() if ascending else qkv[0, 6:, 0, 0].double())


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("channel", [1, 7, 12])
def test_not_finite_values_stay_where_torch_has_them(channel: int, value: float, fmt: str, isa: str) -> None:
    """In a query, in a key and in a value, which make one pixel or one phase of one head infinite or NaN."""
    qkv = torch.randn(2, 15, 6, 42).contiguous(memory_format=FORMATS[fmt])
    qkv[1, channel, 2, 3] = value
    expected = reference.patch_attention(qkv, 1)
    actual = mk.ops.patch_attention(qkv, 1, backend="cpu")
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)
    dy = torch.randn(2, 5, 6, 42)
    grad = torch.ops.mvit_kernels.patch_attention_backward(dy, qkv, 1, (2, 2), None, "cpu")
    expected = reference.patch_attention_backward(dy, qkv, 1)
    assert torch.equal(grad[0].isnan(), expected[0].isnan())
    assert torch.allclose(grad[1, :, 1::2], expected[1, :, 1::2], atol=1e-5)  # other phases


@pytest.mark.parametrize("whole", [False, True])
def test_scores_of_minus_infinity(whole: bool, isa: str) -> None:
    """Blocks of keys that count for nothing before, between and after others; where no key is left, NaN as in torch."""
    qkv = torch.rand(1, 3, 1, 1000) + 1
    qkv[0, 1] = float("-inf")
    if not whole:
        qkv[0, 1, 0, 300:310] = torch.rand(10)
        qkv[0, 1, 0, 800] = 0.5
    expected = reference.patch_attention(qkv, 1, (1, 1))
    assert expected.isnan().all() == whole
    assert torch.allclose(mk.ops.patch_attention(qkv, 1, (1, 1), backend="cpu"), expected, equal_nan=True)


@needs_native
@pytest.mark.parametrize("fmt", FORMATS)
def test_same_bits_on_any_number_of_threads(fmt: str, threads) -> None:
    for shape in ((3, 24, 4, 16, 16, (2, 2)), (1, 9, 2, 40, 40, (1, 1))):
        qkv, heads, patch = make(shape, fmt=fmt)
        dy = torch.randn(shape[0], qkv.shape[1] // 3, *shape[3:5]).contiguous(memory_format=FORMATS[fmt])
        results = []
        for count in (1, 2, 3, 7):
            threads(count)
            leaf = qkv.clone().requires_grad_()
            y = mk.ops.patch_attention(leaf, heads, patch, backend="cpu")
            y.backward(dy)
            results.append((y.detach(), leaf.grad))
        for y, grad in results[1:]:
            assert torch.equal(y, results[0][0])
            assert torch.equal(grad, results[0][1])


@needs_native
def test_same_bits_in_any_batch() -> None:
    """The cut of the queries depends on the batch, the result of an image does not."""
    qkv, heads, patch = make((9, 9, 2, 20, 20, (1, 1)))
    alone = torch.cat([mk.ops.patch_attention(image, heads, patch, backend="cpu") for image in qkv.split(1)])
    assert torch.equal(mk.ops.patch_attention(qkv, heads, patch, backend="cpu"), alone)


@needs_native
def test_many_threads_call_at_once() -> None:
    # Large enough for parallel regions of their own in every call.
    inputs = [make((2, 20, 4, 32, 32, (2, 2)), fmt=fmt)[0] for fmt in FORMATS for _ in range(4)]

    def both(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = qkv.clone().requires_grad_()
        y = mk.ops.patch_attention(leaf, 4, backend="cpu")
        y.sum().backward()
        return y.detach(), leaf.grad

    alone = [both(qkv) for qkv in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for (y, grad), (y0, grad0) in zip(pool.map(both, inputs), alone, strict=True):
                assert torch.equal(y, y0)
                assert torch.equal(grad, grad0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("shape", [(0, 9, 4, 4), (2, 0, 4, 4), (2, 9, 0, 4), (2, 9, 4, 0)])
def test_empty(shape, backend: str) -> None:
    if backend == "cpu" and native is None:
        pytest.skip("the native kernels are not built")
    qkv = torch.randn(shape, requires_grad=True)
    y = mk.ops.patch_attention(qkv, 3, backend=backend)
    assert y.shape == (shape[0], shape[1] // 3, *shape[2:])
    y.sum().backward()
    assert torch.equal(qkv.grad, torch.zeros(shape))


@needs_native
@pytest.mark.parametrize("backward", [False, True])
def test_writes_only_its_output(backward: bool, isa: str) -> None:
    """The raw kernels, on a tensor inside a larger buffer: the bytes around and between stay as they were."""

    def inside(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        buffer = torch.full((2 + 4, 4 + 4, 6 + 4, channels + 4), 7.0)
        return buffer, buffer[2:-2, 2:-2, 2:-2, 2:-2].permute(0, 3, 1, 2)

    _, qkv = inside(30)
    qkv.normal_()
    buffer, y = inside(10)
    pointers = (qkv.data_ptr(), qkv.stride(), y.data_ptr(), y.stride())
    if backward:
        y.normal_()
        buffer, out = inside(30)
        status = native.patch_attention_backward(0, qkv.shape, 2, (2, 2), 0.5, *pointers, out.data_ptr(), out.stride(), 2)
        expected = exact_gradient(qkv, y, 2, (2, 2), 0.5)
    else:
        out = y
        status = native.patch_attention(0, qkv.shape, 2, (2, 2), 0.5, *pointers, 2)
        expected = reference.patch_attention(qkv.double(), 2, (2, 2), 0.5)
    assert status == 0
    assert (out - expected).abs().max() < 1e-5
    out.fill_(7.0)
    assert (buffer == 7.0).all()


def test_reference_gradient() -> None:
    qkv = torch.randn(2, 12, 4, 6, dtype=torch.float64, requires_grad=True)
    for arguments in ((1, (1, 1)), (2, (2, 2)), (4, (2, 3), 0.3)):
        assert torch.autograd.gradcheck(lambda x, arguments=arguments: mk.ops.patch_attention(x, *arguments), (qkv,))
        dy = torch.randn(2, 4, 4, 6, dtype=torch.float64)
        backward = reference.patch_attention_backward(dy, qkv.detach(), *arguments)
        assert torch.allclose(backward, exact_gradient(qkv, dy, *arguments), rtol=1e-12, atol=1e-12)


def test_second_derivative() -> None:
    qkv = torch.randn(1, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: mk.ops.patch_attention(x, 2), (qkv,))
    single = qkv.detach().float().requires_grad_()
    (grad,) = torch.autograd.grad(mk.ops.patch_attention(single, 2).square().sum(), single, create_graph=True)
    grad.square().sum().backward()
    (exact,) = torch.autograd.grad(reference.patch_attention(qkv, 2).square().sum(), qkv, create_graph=True)
    exact.square().sum().backward()
    assert torch.allclose(single.grad.double(), qkv.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fmt", [slow("nchw"), "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype, fmt: str) -> None:
    qkv, heads, patch = make((2, 5, 2, 4, 6, (2, 2)), dtype, fmt)
    op = torch.ops.mvit_kernels.patch_attention
    for requires_grad in (False, True):
        torch.library.opcheck(op, (qkv.detach().requires_grad_(requires_grad), heads))
        torch.library.opcheck(op, (qkv.detach().requires_grad_(requires_grad), heads, (1, 2), 0.5))
    dy = torch.randn(2, 10, 4, 6, dtype=dtype)
    torch.library.opcheck(torch.ops.mvit_kernels.patch_attention_backward, (dy, qkv.detach(), heads, patch, None, None))


def test_compiles_without_graph_break() -> None:
    qkv, *_ = make((2, 5, 2, 4, 6, (2, 2)))

    def function(x: torch.Tensor) -> torch.Tensor:
        return mk.ops.patch_attention(x * 2, 2, (2, 2), 0.4) + mk.ops.patch_attention(x, 2)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3):
        leaf, plain = (qkv[:1].expand(batch, -1, -1, -1).clone().requires_grad_() for _ in range(2))
        y, expected = compiled(leaf), function(plain)
        assert torch.equal(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        assert torch.allclose(leaf.grad, plain.grad, atol=1e-6)


def test_exports_with_dynamic_batch_and_size() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mk.ops.patch_attention(x, 2)

    dims = {0: torch.export.Dim("batch"), 2: 2 * torch.export.Dim("rows", min=2), 3: 2 * torch.export.Dim("columns", min=2)}
    program = torch.export.export(Module(), (torch.randn(2, 12, 8, 12),), dynamic_shapes=(dims,))
    x = torch.randn(5, 12, 4, 6)
    assert torch.equal(program.module()(x), mk.ops.patch_attention(x, 2))


def test_forward_mode_and_function_transforms() -> None:
    qkv, tangent = torch.randn(1, 12, 4, 4), torch.randn(1, 12, 4, 4)
    results = []
    for attention in (mk.ops.patch_attention, reference.patch_attention):

        def loss(x: torch.Tensor, attention=attention) -> torch.Tensor:
            return attention(x, 2).square().sum()

        def norm(x: torch.Tensor, loss=loss) -> torch.Tensor:
            return torch.func.grad(loss)(x).square().sum()

        results.append(
            (
                *torch.func.jvp(loss, (qkv,), (tangent,)),
                torch.func.grad(loss)(qkv),
                torch.func.grad(norm)(qkv),
                torch.vmap(torch.func.grad(loss))(torch.stack([qkv, tangent])),
                torch.vmap(lambda x, attention=attention: attention(x, 2))(torch.stack([qkv, tangent])),
            )
        )
    for ours, plain in zip(*results, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda op: op([1.0], 1), TypeError, "patch_attention: qkv: expected a tensor, got list"),
        (lambda op: op(torch.zeros(3, 4, 4), 1), ValueError, r"qkv: expected 4 dimensions, got shape \(3, 4, 4\)"),
        (lambda op: op(torch.zeros(1, 3, 4, 4, dtype=torch.int32), 1), TypeError, "qkv: expected dtype float32, .*, got int32"),
        (lambda op: op(torch.zeros(1, 3, 4, 4).to_sparse(), 1), TypeError, "qkv: expected a dense tensor, got torch.sparse_coo"),
        (lambda op: op(torch.zeros(1, 9, 4, 4), 2), ValueError, r"qkv: expected channels that are a multiple of 3 \* heads = 6, got 9"),
        (lambda op: op(torch.zeros(1, 9, 4, 4), 0), ValueError, "heads: expected at least 1, got 0"),
        (lambda op: op(torch.zeros(1, 9, 4, 4), 1.0), TypeError, "heads: expected an integer, got 1.0"),
        (lambda op: op(torch.zeros(1, 9, 4, 4), True), TypeError, "heads: expected an integer, got True"),
        (lambda op: op(torch.zeros(1, 3, 4, 5), 1), ValueError, r"qkv: expected height and width that are multiples of \(2, 2\)"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), 1, (2,)), TypeError, r"patch_size: expected two integers, got \(2,\)"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), 1, None), TypeError, "patch_size: expected two integers, got None"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), 1, (2, 0)), ValueError, r"patch_size: expected two positive integers, got \(2, 0\)"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), 1, scale="1"), TypeError, "scale: expected a number or None, got '1'"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), 1, scale=float("nan")), ValueError, "scale: expected a finite number, got nan"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), 1, backend=3), TypeError, "backend: expected a name or None, got 3"),
        (lambda op: op(torch.zeros(1, 3, 4, 4), 1, backend="triton"), ValueError, "backend 'triton' was requested and cannot take"),
        (
            lambda op: op(torch.zeros(1, 3, 4, 4, dtype=torch.float64), 1, backend="cpu"),
            ValueError,
            "patch_attention: backend 'cpu' was requested and cannot take this call: it has no kernel for torch.float64",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call(mk.ops.patch_attention)
