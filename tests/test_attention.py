"""attention against plain torch: forward and gradients, bias and talking heads, odd shapes."""

from __future__ import annotations

import functools

import pytest
import torch
from op_checks import FLOATS, assert_forward_and_gradients, assert_reference_gradients, assert_same_bits_with_any_threads, needs_native

from mvit_kernels import ops, reference

Tensor = torch.Tensor
# (B, N, M, H, c, d): EfficientFormer, its V2 between stages, Mobile-Former both ways, and the smallest.
SIZES = [
    (1, 49, 49, 8, 32, 128),
    (2, 49, 196, 8, 16, 64),
    (2, 6, 300, 2, 6, 6),
    (1, 70, 3, 2, 44, 44),
    (1, 33, 129, 3, 7, 17),
    (1, 1, 1, 1, 1, 1),
]
MIXTURES = {
    "none": (), "bias": ("bias",), "all": ("bias", "mix_scores", "mix_weights", "mix_bias"), "shift": ("mix_bias",),
    "scores": ("mix_scores",), "weights": ("bias", "mix_weights"),
}  # fmt: skip


def make(size: tuple[int, ...], mixed: tuple[str, ...], dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    batch, queries, keys, heads, depth, wide = size
    q, k, v = torch.randn(batch, queries, heads * depth), torch.randn(batch, keys, heads * depth), torch.randn(batch, keys, heads * wide)
    shapes = {"bias": (heads, queries, keys), "mix_scores": (heads, heads), "mix_weights": (heads, heads), "mix_bias": (heads,)}
    parameters = [torch.randn(shape) / heads**0.5 if name in mixed else None for name, shape in shapes.items()]
    return [None if each is None else each.to(dtype) for each in (q, k, v, *parameters)]


def attend(
    q,
    k,
    v,
    bias,
    mix_scores,
    mix_weights,
    mix_bias,
    residual=None,
    *,
    heads: int,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    return ops.attention(
        q, k, v, heads, bias=bias, mix_scores=mix_scores, mix_weights=mix_weights, mix_bias=mix_bias, residual=residual,
        activation=activation, backend=backend,
    )  # fmt: skip


def plain(q, k, v, bias, mix_scores, mix_weights, mix_bias, residual=None, *, heads: int, activation: str | None = None) -> Tensor:
    query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = query @ key.mT * query.shape[3] ** -0.5
    if mix_scores is not None:
        scores = torch.einsum("hg,bgnm->bhnm", mix_scores, scores)
    weights = (scores if bias is None else scores + bias).softmax(-1)
    if mix_weights is not None:
        weights = torch.einsum("hg,bgnm->bhnm", mix_weights, weights)
    if mix_bias is not None:
        weights = weights + mix_bias[:, None, None]
    y = (weights @ value).transpose(1, 2).flatten(2)
    return reference.activate(y if residual is None else y + residual, activation or "none")


def with_residual(inputs: list[Tensor | None], strided: bool = False) -> list[Tensor | None]:
    q, _, v = inputs[:3]
    size = q.shape[0], q.shape[1], v.shape[2]
    return [*inputs, (torch.randn(size[0], size[2], size[1]).mT if strided else torch.randn(size)).to(q.device, q.dtype)]


@pytest.mark.parametrize("mixed", MIXTURES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_and_gradients(size, mixed: str, isa: str, poison) -> None:
    heads = size[3]
    draws = [make(size, MIXTURES[mixed]) for _ in range(3)]
    assert_forward_and_gradients(functools.partial(attend, heads=heads, backend="cpu"), functools.partial(plain, heads=heads), *draws)


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("mixed", ["none", "all"])
def test_residual_and_activation(mixed: str, activation: str | None, isa: str, poison) -> None:
    for strided in (False, True):
        draws = [with_residual(make(SIZES[4], MIXTURES[mixed]), strided) for _ in range(3)]
        how = {"heads": 3, "activation": activation}
        assert_forward_and_gradients(functools.partial(attend, **how, backend="cpu"), functools.partial(plain, **how), *draws)


@pytest.mark.parametrize("activation", ["relu", "silu", "relu6", "hard_swish"])
def test_an_activation_alone(activation: str, backend: str) -> None:
    inputs = make(SIZES[4], MIXTURES["bias"])
    y, right = attend(*inputs, heads=3, activation=activation, backend=backend), plain(*inputs, heads=3, activation=activation)
    torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize("mixed", ["bias", "all"])
def test_sixteen_bits(dtype: torch.dtype, mixed: str, isa: str) -> None:
    inputs = make(SIZES[1], MIXTURES[mixed], dtype)
    y = attend(*inputs, heads=8, backend="cpu")
    exact = plain(*(None if each is None else each.double() for each in inputs), heads=8)
    assert y.dtype == dtype
    assert (y.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()


def test_any_strides(backend: str) -> None:
    """Maps as tokens, parts of one tensor, one row of queries for all images."""
    maps = torch.randn(2, 24, 5, 7).contiguous(memory_format=torch.channels_last)
    tokens = maps.flatten(2).transpose(1, 2)
    q, k, v = tokens[..., :8], tokens[:, ::2, 8:16], tokens[:, ::2, 16:]
    for query in (q, q[:1, :3].expand(2, -1, -1), torch.randn(2, 8, 9).mT):
        y = ops.attention(query, k, v, 2, backend=backend)
        exact = plain(query.double(), k.double(), v.double(), None, None, None, None, heads=2)
        assert y.is_contiguous()
        assert (y - exact).abs().max() < 1e-5


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    draws = [make((3, 70, 150, 4, 8, 24), MIXTURES[mixed]) for mixed in ("bias", "all")]
    assert_same_bits_with_any_threads(lambda: [attend(*inputs, heads=4, backend="cpu") for inputs in draws], threads)


def test_reference_gradients() -> None:
    assert_reference_gradients(functools.partial(attend, heads=2, backend="reference"), make((2, 3, 4, 2, 3, 2), MIXTURES["all"]))
    ended = functools.partial(attend, heads=2, activation="gelu", backend="reference")
    assert_reference_gradients(ended, with_residual(make((2, 3, 4, 2, 3, 2), MIXTURES["none"])))


@pytest.mark.parametrize("mixed", ["none", "all"])
def test_far_scores_nan_and_infinity(mixed: str, backend: str) -> None:
    inputs = make((1, 20, 40, 2, 4, 5), MIXTURES[mixed])
    inputs[0] = 100 * inputs[0]
    y = attend(*inputs, heads=2, backend=backend)
    assert (y - plain(*inputs, heads=2)).abs().max() <= 1e-4 * y.abs().max()
    inputs[0][0, 3, 1] = float("nan")
    y = attend(*inputs, heads=2, backend=backend)
    assert y[0, 3, :5].isnan().all()
    assert y[0, [0, 1, 2, 4]].isfinite().all()


def test_empty(backend: str) -> None:
    for size in ((0, 3, 4, 2, 3, 2), (2, 0, 4, 2, 3, 2)):
        assert attend(*make(size, MIXTURES["all"]), heads=2, backend=backend).shape == (size[0], size[1], 4)


def test_opcheck() -> None:
    for mixed in ("none", "all"):
        inputs = [None if each is None else each.requires_grad_() for each in make((2, 3, 4, 2, 3, 2), MIXTURES[mixed])]
        torch.library.opcheck(torch.ops.mvit_kernels.attention, (*inputs, None, 2))
        torch.library.opcheck(torch.ops.mvit_kernels.attention, (*with_residual(inputs), 2, 0.5, "silu"))


def test_compiles_and_exports() -> None:
    inputs = make((2, 5, 6, 2, 3, 4), MIXTURES["all"])

    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, *inputs[3:], heads=2)

    expected = Module()(*inputs[:3])
    assert torch.equal(torch.compile(Module(), fullgraph=True, backend="aot_eager")(*inputs[:3]), expected)
    assert torch.equal(torch.export.export(Module(), tuple(inputs[:3])).module()(*inputs[:3]), expected)


def bad(**changes: object):
    q, k, v, *_ = make((1, 3, 4, 2, 3, 2), ())
    good = {"q": q, "k": k, "v": v, "heads": 2}
    return lambda: ops.attention(**(good | changes))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (bad(q=None), TypeError, "attention: q: expected a tensor, got NoneType"),
        (bad(heads=4), ValueError, "attention: heads: expected a number that divides the 6 channels of q, got 4"),
        (bad(k=torch.zeros(1, 4, 5)), ValueError, r"attention: k: expected shape \(1, M, 6\) with M >= 1, got \(1, 4, 5\)"),
        (bad(k=torch.zeros(1, 0, 6)), ValueError, "attention: k: expected shape"),
        (bad(k=torch.zeros(1, 4, 6).double()), TypeError, "attention: k: expected dtype float32, got float64"),
        (bad(v=torch.zeros(1, 5, 4)), ValueError, r"attention: v: expected shape \(1, 4, a multiple of 2\), got \(1, 5, 4\)"),
        (bad(bias=torch.zeros(2, 3, 5)), ValueError, r"attention: bias: expected shape \(2, 3, 4\), got \(2, 3, 5\)"),
        (bad(mix_scores=torch.zeros(2, 3)), ValueError, r"attention: mix_scores: expected shape \(2, 2\)"),
        (bad(scale=float("inf")), ValueError, "attention: scale: expected a finite number, got inf"),
        (bad(scale="1"), TypeError, "attention: scale: expected a number or None, got '1'"),
        (bad(residual=torch.zeros(1, 3, 5)), ValueError, r"attention: residual: expected torch.float32 of shape \(1, 3, 4\)"),
        (bad(activation="tanh"), ValueError, "attention: activation: expected one of none, relu, .*, got 'tanh'"),
        (bad(backend=3), TypeError, "attention: backend: expected a name or None, got 3"),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
