from __future__ import annotations

import pytest
import torch
from marks import slow
from triton_checks import DEVICE, DTYPES, FORMATS, assert_rule, randn, views

import mvit_kernels as mk
from mvit_kernels import reference

# (batch, d, axis 2, axis 3, patch): one pixel, tails of tiles, phases that share rows and phases that do not, several tiles of a phase.
SHAPES = [
    slow((1, 1, 1, 1, None)),
    (2, 3, 2, 33, None),
    slow((1, 37, 2, 300, None)),
    (1, 6, 6, 10, (2, 2)),
    slow((2, 65, 8, 8, (2, 2))),
    slow((1, 5, 6, 12, (3, 4))),
    slow((2, 5, 4, 9, (2, 3))),
    slow((1, 4, 6, 5, (2, 1))),
    slow((1, 3, 32, 24, (2, 2))),
]
Tensor = torch.Tensor


def backward(dy: Tensor, qkv: Tensor, patch) -> Tensor:
    return torch.ops.mvit_kernels.separable_attention_backward(dy, qkv, patch, "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, fmt: str, dtype: torch.dtype, poison) -> None:
    batch, dim, height, width, patch = shape
    qkv = randn(batch, 1 + 2 * dim, height, width, dtype=dtype, fmt=fmt)
    y = mk.ops.separable_attention(qkv, patch, backend="triton")
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=FORMATS[fmt])
    assert_rule(y, reference.separable_attention(qkv, patch), reference.separable_attention(qkv.double(), patch))
    dy = randn(*y.shape, dtype=dtype)  # of the other format, at times
    grad = backward(dy, qkv, patch)
    assert grad.is_contiguous(memory_format=FORMATS[fmt])
    exact = reference.separable_attention_backward(dy.double(), qkv.double(), patch)
    assert_rule(grad, reference.separable_attention_backward(dy, qkv, patch), exact)


@pytest.mark.parametrize("patch", [slow(None), (2, 2)])
def test_any_strides(patch) -> None:
    for name, qkv in views(5, 4, 6).items():
        exact = reference.separable_attention(qkv.double(), patch)
        assert (mk.ops.separable_attention(qkv, patch, backend="triton") - exact).abs().max() < 1e-5, name
        dy = torch.ones_like(exact).float()[:1, :1, :1, :1].expand(exact.shape)
        gradient = reference.separable_attention_backward(dy.double(), qkv.double(), patch)
        assert (backward(dy, qkv, patch) - gradient).abs().max() < 1e-5, name


def test_gradients_reach_the_leaf_through_the_kernel() -> None:
    qkv = randn(2, 7, 4, 4).requires_grad_()
    mk.ops.separable_attention(qkv, (2, 2), backend="triton").square().sum().backward()
    plain = qkv.detach().clone().requires_grad_()
    reference.separable_attention(plain, (2, 2)).square().sum().backward()
    assert torch.allclose(qkv.grad, plain.grad, atol=1e-5)


def test_extreme_values_do_what_plain_torch_does() -> None:
    qkv = randn(1, 5, 4, 40)
    qkv[0, 0, 1] = float("-inf")  # no key at all
    qkv[0, 0, 2, 5] = float("inf")
    qkv[0, 0, 3, :39] = float("-inf")
    qkv[0, 3, 0, 0] = float("nan")  # a value
    expected = reference.separable_attention(qkv)
    y = mk.ops.separable_attention(qkv, backend="triton")
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.allclose(y, expected, equal_nan=True, atol=1e-5)


def test_large_keys_do_not_overflow_on_the_way() -> None:
    qkv = torch.ones(1, 3, 1, 64, device=DEVICE)
    qkv[:, 1], qkv[:, 2] = 1e38, 1e-5
    y = mk.ops.separable_attention(qkv, backend="triton")
    assert torch.allclose(y, torch.full_like(y, 1e33), rtol=1e-5)


@pytest.mark.parametrize("size", [(0, 3, 4, 4), (2, 1, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_empty(size) -> None:
    qkv = randn(*size)
    y = mk.ops.separable_attention(qkv, (2, 2), backend="triton")
    assert torch.equal(y, reference.separable_attention(qkv, (2, 2)))
    assert torch.equal(backward(y, qkv, (2, 2)), torch.zeros_like(qkv))


@pytest.mark.parametrize("fmt", ["nchw", slow("nhwc")])
def test_offsets_beyond_32_bits(fmt: str, monkeypatch) -> None:
    from mvit_kernels.triton_kernels import separable_attention

    qkv, expected = randn(1, 7, 4, 6, fmt=fmt), []
    dy = randn(1, 3, 4, 6, fmt=fmt)
    for _ in range(2):
        expected.append((mk.ops.separable_attention(qkv, (2, 2), backend="triton"), backward(dy, qkv, (2, 2))))
        monkeypatch.setattr(separable_attention, "far", lambda *_: True)
    for near, far in zip(*expected, strict=True):
        assert torch.equal(near, far)


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend 'triton' was requested .* it has no kernel for torch.float64"):
        mk.ops.separable_attention(randn(1, 3, 2, 2).double(), backend="triton")
