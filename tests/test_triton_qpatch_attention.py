"""Bits of the Triton kernel are those of plain torch (which test_qpatch_attention.py holds against NumPy)."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from q_checks import random_bytes
from triton_checks import DEVICE

from mvit_kernels import ops

Tensor = torch.Tensor
# (B, H, W), heads, depth of a head, patch: one pixel, tails of every block, several blocks of queries and of keys.
MAPS = [
    ((1, 2, 2), 1, 1, (2, 2)),
    ((2, 4, 6), 2, 7, (2, 2)),
    slow(((2, 3, 4), 1, 33, (3, 1))),
    ((1, 2, 8), 2, 36, (1, 4)),
    slow(((1, 9, 15), 2, 60, (1, 1))),
    ((1, 20, 17), 1, 20, (1, 1)),
    slow(((1, 9, 38), 1, 130, (1, 1))),
]
SETTINGS = {
    "q_scale": 0.03, "q_zero_point": 120, "k_scale": 0.021, "v_scale": 0.017, "v_zero_point": 101, "out_scale": 0.011, "out_zero_point": 90,
}  # fmt: skip


def draw(size, heads: int, depth: int) -> Tensor:
    return random_bytes(*size, 3 * heads * depth).to(DEVICE)


def check(qkv: Tensor, heads: int, **changes) -> None:
    settings = {**SETTINGS, **changes}
    y, expected = (ops.qpatch_attention(qkv, heads, backend=backend, **settings) for backend in ("triton", "reference"))
    assert torch.equal(y, expected)
    assert y.is_contiguous()


@pytest.mark.parametrize("kind", MAPS, ids=str)
def test_maps(kind) -> None:
    size, heads, depth, patch = kind
    qkv = draw(size, heads, depth)
    for scale, bits in ((None, 8), (0.01, 6)):
        check(qkv, heads, patch_size=patch, scale=scale, out_bits=bits)


@pytest.mark.slow
def test_blocks_of_many_queries() -> None:
    check(draw((16, 32, 34), 1, 9), 1)


@pytest.mark.parametrize("scale", [1e-12, 0.1, 1e12])
def test_extremes(scale: float) -> None:
    """Bytes at their ends, scores that are all equal or far apart, zero-points far away."""
    for q, k in ((0, 255), (255, 255)):
        qkv = draw((1, 4, 12), 1, 18)
        qkv[..., :18], qkv[:, ::3, ::5, 18:36] = q, k
        for far in (-(2**17), 0, 255, 2**17):
            check(qkv, 1, scale=scale, q_zero_point=far, v_zero_point=far, out_zero_point=far)


def test_sums_near_the_ends_of_int32() -> None:
    """As many channels and keys as fit, at the ends of bytes: what the tensor cores add up never saturates."""
    for zero_point in (2**20, -(2**20)):
        qkv = torch.zeros(1, 2, 4, 24, dtype=torch.uint8, device=DEVICE)
        qkv[..., ::2, :] = 255
        check(qkv, 1, q_zero_point=zero_point, v_zero_point=zero_point, patch_size=(1, 1), scale=1e-9)


def test_any_strides_and_empty() -> None:
    big = draw((2, 2, 4), 1, 10)
    for x in (big[::2], big[:, :, ::2], big[..., ::2], big.transpose(1, 2), big[..., 9:], big.movedim(3, 1).contiguous().movedim(1, 3)):
        check(x, 1)
    for x in (big[:0], big[:, :0], big[..., :0]):
        check(x, 1)


def test_wide_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="it takes heads of at most 256 channels, got 257"):
        ops.qpatch_attention(draw((1, 2, 2), 1, 257), 1, backend="triton", **SETTINGS)
