from __future__ import annotations

import pytest
import torch
from marks import slow
from triton_checks import DEVICE, DTYPES, FORMATS, assert_rule, randn, views

import mvit_kernels as mk
from mvit_kernels import reference

# (batch, heads, channels of a head, height, width, patch): heads that are no powers of two; tails; several blocks of keys.
SHAPES = [
    (2, 2, 5, 6, 8, (2, 2)),
    slow((1, 1, 1, 1, 1, (1, 1))),
    slow((1, 1, 36, 10, 14, (2, 1))),
    slow((1, 4, 20, 4, 4, (2, 2))),
    slow((1, 2, 60, 4, 4, (2, 2))),
    slow((1, 1, 100, 5, 9, (1, 1))),
]
Tensor = torch.Tensor


def backward(dy: Tensor, qkv: Tensor, heads: int, patch, scale: float | None = None) -> Tensor:
    return torch.ops.mvit_kernels.patch_attention_backward(dy, qkv, heads, patch, scale, "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, fmt: str, dtype: torch.dtype, poison) -> None:
    batch, heads, depth, height, width, patch = shape
    qkv = randn(batch, 3 * heads * depth, height, width, dtype=dtype, fmt=fmt)
    y = mk.ops.patch_attention(qkv, heads, patch, backend="triton")
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=FORMATS[fmt])
    exact = reference.patch_attention(qkv.double(), heads, patch)
    assert_rule(y, reference.patch_attention(qkv, heads, patch), exact)
    dy = randn(*y.shape, dtype=dtype)
    exact = reference.patch_attention_backward(dy.double(), qkv.double(), heads, patch)
    assert_rule(backward(dy, qkv, heads, patch), reference.patch_attention_backward(dy, qkv, heads, patch), exact)


def test_any_strides() -> None:
    for name, qkv in views(6, 2, 4).items():
        exact = reference.patch_attention(qkv.double(), 2, (2, 2), 0.3)
        assert (mk.ops.patch_attention(qkv, 2, (2, 2), 0.3, backend="triton") - exact).abs().max() < 1e-5, name
    dy = randn(1, 1, 1, 1).expand(qkv.shape[0], 2, 2, 4)
    exact = reference.patch_attention_backward(dy.double(), qkv.double(), 2, (2, 2), 0.3)
    assert (backward(dy, qkv, 2, (2, 2), 0.3) - exact).abs().max() < 1e-5


def test_large_scores_and_nan() -> None:
    qkv = randn(1, 6, 4, 4)
    qkv[:, :4] *= 300
    exact = reference.patch_attention(qkv.double(), 1, (2, 2))
    assert (mk.ops.patch_attention(qkv, 1, (2, 2), backend="triton") - exact).abs().max() < 1e-2 * exact.abs().max()
    qkv[0, 3, 0, 1] = float("nan")
    expected = reference.patch_attention(qkv, 1, (2, 2))
    assert torch.equal(mk.ops.patch_attention(qkv, 1, (2, 2), backend="triton").isnan(), expected.isnan())


def test_offsets_beyond_32_bits(monkeypatch) -> None:
    from mvit_kernels.triton_kernels import patch_attention

    qkv, dy, results = randn(1, 6, 4, 6), randn(1, 2, 4, 6), []
    for _ in range(2):
        results.append((mk.ops.patch_attention(qkv, 1, (2, 2), backend="triton"), backward(dy, qkv, 1, (2, 2))))
        monkeypatch.setattr(patch_attention, "far", lambda *_: True)
    for near, far in zip(*results, strict=True):
        assert torch.equal(near, far)


def test_empty_and_refused() -> None:
    for size in ((0, 6, 4, 4), (2, 6, 0, 4), (1, 0, 4, 4)):
        y = mk.ops.patch_attention(torch.zeros(size, device=DEVICE), 1, (2, 2), backend="triton")
        assert y.shape == (size[0], size[1] // 3, *size[2:])
    with pytest.raises(ValueError, match="it has no kernel for heads of more than 128 channels, got 300"):
        mk.ops.patch_attention(randn(1, 900, 2, 2), 1, (2, 2), backend="triton")
