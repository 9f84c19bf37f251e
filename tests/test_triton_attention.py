from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from marks import slow
from test_attention import MIXTURES, SIZES, attend, make, plain, with_residual
from triton_checks import DEVICE, DTYPES, assert_gradients, assert_rule, randn

from mvit_kernels import ops

Tensor = torch.Tensor


def on_device(inputs: list[Tensor | None]) -> list[Tensor | None]:
    return [None if each is None else each.to(DEVICE) for each in inputs]


def check(inputs: list[Tensor | None], heads: int, activation: str | None = None) -> Tensor:
    inputs, how = on_device(inputs), {"heads": heads, "activation": activation}
    y = attend(*inputs, **how, backend="triton")
    exact = plain(*(None if each is None else each.double() for each in inputs), **how)
    assert_rule(y, attend(*inputs, **how, backend="reference"), exact)
    assert y.dtype == inputs[0].dtype
    assert y.is_contiguous()
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixed", MIXTURES)
def test_mixtures(mixed: str, dtype: torch.dtype, poison) -> None:
    check(make((2, 19, 40, 3, 5, 17), MIXTURES[mixed], dtype), 3)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("mixed", ["none", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual_and_activation(dtype: torch.dtype, mixed: str, parts: int, monkeypatch, poison) -> None:
    from mvit_kernels.triton_kernels import attention

    monkeypatch.setattr(attention, "shares", lambda *_: parts)
    inputs = make((2, 19, 80, 3, 5, 17), MIXTURES[mixed], dtype)
    check(with_residual(inputs), 3)
    check(with_residual(inputs, strided=True), 3, "gelu")
    check(inputs, 3, "hard_swish")


@pytest.mark.slow
@pytest.mark.parametrize("mixed", ["bias", "all"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, mixed: str, poison) -> None:
    check(make(size, MIXTURES[mixed]), size[3])


@pytest.mark.parametrize("parts", [2, 3, slow(7)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_programs_share_keys(dtype: torch.dtype, parts: int, monkeypatch, poison) -> None:
    """Also where the last of them has fewer keys, and where fewer programs do."""
    from mvit_kernels.triton_kernels import attention

    monkeypatch.setattr(attention, "shares", lambda *_: parts)
    check(make((2, 6, 300, 2, 6, 6), ("bias",), dtype), 2)


def test_how_many_share_keys() -> None:
    from mvit_kernels.triton_kernels.attention import shares

    assert shares(2, 49, 132) == 24  # two blocks of keys each
    assert shares(12, 49, 132) == 11  # all multiprocessors
    assert shares(500, 49, 132) == shares(2, 1, 132) == 1


def test_any_strides_and_empty() -> None:
    """Maps as tokens, parts of one tensor, one row of queries for all images, channels apart, a bias across."""
    tokens = randn(2, 24, 5, 7, fmt="nhwc").flatten(2).transpose(1, 2)
    q, k, v = tokens[..., :8], tokens[:, ::2, 8:16], tokens[:, ::2, 16:]
    for query in (q, q[:1, :3].expand(2, -1, -1), randn(2, 8, 9).mT):
        bias = randn(2, k.shape[1], query.shape[1]).mT
        check([query, k, v, bias, None, None, None], 2)
        check([query, k, v, bias[:1, :, :1].expand(2, -1, k.shape[1]), None, None, None], 2)
    for size in ((0, 3, 4, 2, 3, 2), (2, 0, 4, 2, 3, 2), (2, 3, 4, 2, 3, 0)):
        for mixed in ("none", "all"):
            check(make(size, MIXTURES[mixed]), 2)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("mixed", ["bias", "all"])
def test_far_scores_masks_nan_and_infinity(mixed: str, parts: int, monkeypatch) -> None:
    from mvit_kernels.triton_kernels import attention

    monkeypatch.setattr(attention, "shares", lambda *_: parts)
    inputs = on_device(make((1, 20, 80, 2, 4, 5), MIXTURES[mixed]))
    inputs[0] = 100 * inputs[0]
    inputs[3][0, :, :70] = float("-inf")  # whole blocks of keys
    y, right = attend(*inputs, heads=2, backend="triton"), plain(*inputs, heads=2)
    assert (y - right).abs().max() <= 1e-4 * right.abs().max()
    inputs[0][0, 3, 1] = float("nan")
    inputs[3][0, 5] = float("-inf")
    inputs[3][1, 7, 2] = float("inf")
    y, right = attend(*inputs, heads=2, backend="triton"), plain(*inputs, heads=2)
    assert torch.equal(y.isnan(), right.isnan())
    assert right.isnan().any()
    assert right.isfinite().any()


@pytest.mark.parametrize("mixed", ["bias", "all"])
def test_offsets_beyond_32_bits(mixed: str, monkeypatch) -> None:
    from mvit_kernels.triton_kernels import attention

    inputs, results = on_device(make((1, 20, 20, 2, 4, 5), MIXTURES[mixed])), []
    for _ in range(2):
        results.append(attend(*inputs, heads=2, backend="triton"))
        monkeypatch.setattr(attention, "far", lambda *_: True)
    assert torch.equal(*results)


def test_gradients_arrive() -> None:
    results = []
    inputs = on_device(make((2, 3, 4, 2, 3, 2), MIXTURES["all"]))
    for backend in ("triton", "reference"):
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        attend(*leaves, heads=2, backend=backend).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    assert all(torch.allclose(ours, plain, atol=1e-4) for ours, plain in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mixed", ["none", "all"])
def test_gradients_in_sixteen_bits(mixed: str, dtype: torch.dtype) -> None:
    """Products are in that dtype there, as torch's own are."""
    inputs = on_device(with_residual(make((2, 20, 33, 2, 8, 12), MIXTURES[mixed], dtype)))
    there = [i for i, each in enumerate(inputs) if each is not None]

    def filled(function: Callable[..., Tensor], **how: object) -> Callable[..., Tensor]:
        def call(*tensors: Tensor) -> Tensor:
            arguments = dict(zip(there, tensors, strict=True))
            return function(*(arguments.get(i) for i in range(len(inputs))), heads=2, activation="gelu", **how)

        return call

    assert_gradients(filled(attend, backend="triton"), filled(plain), [inputs[i] for i in there])


def test_wide_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="it has no kernel for heads of more than 128 channels, got 129"):
        ops.attention(randn(1, 2, 2), randn(1, 3, 2), randn(1, 3, 258), 2, backend="triton")
