from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from op_checks import assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, both_backends, random_bytes

import mvit_kernels as mk
from mvit_kernels import reference
from mvit_kernels.reference import ATTENTION_TABLE

pytestmark = pytest.mark.usefixtures("one_thread")

# (B, H, W), heads, depth of a head, patch: tails of every vector, one pixel, keys that fill no panel, several blocks of queries.
MAPS = [
    ((1, 2, 2), 1, 1, (2, 2)),
    ((2, 4, 6), 2, 7, (2, 2)),
    ((1, 8, 8), 4, 16, (2, 2)),
    ((1, 16, 8), 4, 20, (2, 2)),
    ((1, 16, 16), 3, 24, (2, 2)),
    ((2, 3, 4), 1, 33, (3, 1)),
    ((1, 2, 8), 2, 36, (1, 4)),
    ((1, 9, 15), 2, 60, (1, 1)),
    ((1, 32, 32), 2, 48, (2, 2)),
    ((1, 34, 38), 1, 130, (1, 1)),
]
SETTINGS = {
    "q_scale": 0.03, "q_zero_point": 120, "k_scale": 0.021, "v_scale": 0.017, "v_zero_point": 101, "out_scale": 0.011, "out_zero_point": 90,
}  # fmt: skip
REGISTERED = torch.ops.mvit_kernels.qpatch_attention.default


def draw(size, heads: int, depth: int, most: int = 255) -> torch.Tensor:
    return random_bytes(*size, 3 * heads * depth, most=most)


def oracle(qkv: torch.Tensor, heads: int, patch: tuple[int, int], f: float, g: float, q_zero: int, v_zero: int, zero: int) -> torch.Tensor:
    """The formula query by query: numpy's int64, and float32 an operation at a time."""
    x = qkv.numpy().astype(np.int64)
    batch, height, width, channels = x.shape
    dim, depth = channels // 3, channels // 3 // heads
    y, table = np.zeros((batch, height, width, dim), np.uint8), ATTENTION_TABLE.numpy().astype(np.int64)
    for image in range(batch):
        for i, j in np.ndindex(height, width):
            phase = x[image, i % patch[0] :: patch[0], j % patch[1] :: patch[1]].reshape(-1, channels)
            for c in range(0, dim, depth):
                q = x[image, i, j, c : c + depth] - q_zero
                k, v = phase[:, dim + c : dim + c + depth], phase[:, 2 * dim + c : 2 * dim + c + depth] - v_zero
                scores = k @ q
                below = (scores.max() - scores).astype(np.float32) * np.float32(f)
                e = table[np.rint(np.minimum(below, np.float32(255))).astype(np.int64)]
                t = (e @ v).astype(np.float32) * (np.float32(g) / np.float32(e.sum()))
                y[image, i, j, c : c + depth] = np.rint(np.clip(t, -zero, 255 - zero)).astype(np.int64) + zero
    return torch.from_numpy(y)


@pytest.mark.parametrize(("size", "heads", "depth", "patch"), MAPS, ids=str)
def test_every_tail(size, heads, depth, patch, isa: str, poison) -> None:
    for most, bits in ((255, 8), (63, 6)):
        qkv = draw(size, heads, depth, most)
        attention = functools.partial(mk.ops.qpatch_attention, qkv, heads, patch_size=patch, out_bits=bits, **SETTINGS)
        for scale in (None, 0.01, 3.0):
            assert torch.equal(attention(scale=scale, backend="cpu"), attention(scale=scale, backend="reference"))


@both_backends
@pytest.mark.parametrize(("size", "heads", "depth", "patch"), MAPS[:8], ids=str)
def test_against_the_formula(size, heads, depth, patch, backend: str) -> None:
    qkv = draw(size, heads, depth)
    y = mk.ops.qpatch_attention(qkv, heads, patch_size=patch, scale=0.05, backend=backend, **SETTINGS)
    scales = [float(np.float32(SETTINGS[name])) for name in ("q_scale", "k_scale", "v_scale", "out_scale")]
    f, g = np.float32(scales[0] * scales[1] * float(np.float32(0.05)) * 40), np.float32(scales[2] / scales[3])
    assert torch.equal(y, oracle(qkv, heads, patch, f, g, 120, 101, 90))


def test_it_is_patch_attention() -> None:
    """Near `patch_attention` on the same real numbers."""
    qkv = draw((2, 16, 16), 4, 24)
    y = mk.ops.qpatch_attention(qkv, 4, **SETTINGS)
    q, k, v = (part.double() for part in qkv.split(96, 3))
    real = torch.cat([0.03 * (q - 120), 0.021 * (k - 77), 0.017 * (v - 101)], 3).permute(0, 3, 1, 2)
    exact = reference.patch_attention(real, 4).permute(0, 2, 3, 1)
    error = 0.011 * (y.double() - 90) - exact.clamp(-90 * 0.011, 165 * 0.011)
    assert error.abs().max() < 0.05
    assert error.square().mean().sqrt() < 0.01


def test_table() -> None:
    """No value is near a half, where machines could round apart; what is farthest away weighs nothing."""
    exact = 255 * torch.exp(-torch.arange(256, dtype=torch.float64) / 40)
    assert (ATTENTION_TABLE - exact).abs().max() <= 0.5
    assert ((exact % 1) - 0.5).abs().min() > 1e-5
    assert (int(ATTENTION_TABLE[0]), int(ATTENTION_TABLE[-1])) == (255, 0)


@needs_native
def test_extremes(isa: str) -> None:
    """Bytes at their ends, scores that are all equal or far apart, zero-points far away."""
    size = (1, 8, 12)
    for q, k in ((0, 0), (255, 0), (0, 255), (255, 255)):
        qkv = draw(size, 2, 18)
        qkv[..., :36], qkv[:, ::3, ::5, 36:72] = q, k
        for far in (-(2**17), -1, 0, 255, 2**17):
            settings = {**SETTINGS, "q_zero_point": far, "v_zero_point": far, "out_zero_point": far}
            for scale in (1e-12, 0.1, 1e12):
                a, b = (mk.ops.qpatch_attention(qkv, 2, scale=scale, backend=each, **settings) for each in ("cpu", "reference"))
                assert torch.equal(a, b)


@needs_native
def test_threads(threads) -> None:
    qkv, wide = draw((3, 32, 32), 4, 36), draw((1, 40, 40), 1, 20)

    def both() -> list[torch.Tensor]:
        return [
            mk.ops.qpatch_attention(qkv, 4, backend="cpu", **SETTINGS),
            mk.ops.qpatch_attention(wide, 1, patch_size=(1, 1), backend="cpu", **SETTINGS),
        ]

    assert_same_bits_with_any_threads(both, threads)


@both_backends
def test_any_strides_and_empty(backend: str) -> None:
    attention = functools.partial(mk.ops.qpatch_attention, heads=2, backend=backend, **SETTINGS)
    big = draw((4, 8, 12), 4, 10)
    for x in (big[::2], big[:, :, ::2], big[..., ::2], big.transpose(1, 2), big[..., 9:69], big.movedim(3, 1).contiguous().movedim(1, 3)):
        y = attention(x)
        assert torch.equal(y, attention(x.contiguous()))
        assert y.is_contiguous()
    assert attention(big[:0]).shape == (0, 8, 12, 40)
    assert attention(big[:, :0]).shape == (4, 0, 12, 40)
    assert attention(big[..., :0]).shape == (4, 8, 12, 0)


def test_opcheck() -> None:
    torch.library.opcheck(REGISTERED, (draw((2, 4, 4), 2, 5), 2, (2, 2), 0.02, 120, 0.02, 0.1, 99, None, 0.1, 9, 8))


def test_compile_and_export() -> None:
    def attention(qkv: torch.Tensor) -> torch.Tensor:
        return mk.ops.qpatch_attention(qkv, 3, **SETTINGS)

    assert_compiles_and_exports(attention, *([random_bytes(batch, 4, 6, 18)] for batch in (2, 3)))


def test_bad_input() -> None:
    qkv = draw((1, 4, 4), 2, 5)

    def attention(x=qkv, heads=2, **changes):
        return lambda: mk.ops.qpatch_attention(x, heads, **{**SETTINGS, **changes})

    for call, error, message in (
        (attention(None), TypeError, "qkv: expected a tensor"),
        (attention(qkv.float()), TypeError, "qkv: expected dtype uint8"),
        (attention(qkv[0]), ValueError, "qkv: expected 4 dimensions"),
        (attention(qkv[..., :28]), ValueError, r"qkv: expected channels that are a multiple of 3 \* heads = 6, got 28"),
        (attention(heads=2.0), TypeError, "heads: expected an integer, got 2.0"),
        (attention(heads=0), ValueError, "heads: expected at least 1, got 0"),
        (attention(patch_size=(3, 2)), ValueError, r"qkv: expected height and width that are multiples of \(3, 2\)"),
        (attention(patch_size=2), TypeError, "patch_size: expected two integers"),
        (attention(scale=-1.0), ValueError, "scale: expected a positive"),
        (attention(scale=1e-30), ValueError, r"q_scale: expected q_scale \* k_scale \* scale between 2\^-64 and 2\^64"),
        (attention(out_scale=1e-30), ValueError, r"out_scale: expected v_scale / out_scale between 2\^-64 and 2\^64"),
        (attention(q_scale=0.0), ValueError, "q_scale: expected a positive"),
        (attention(k_scale="x"), TypeError, "k_scale: expected a number"),
        (attention(v_zero_point=2**21), ValueError, r"v_zero_point: expected \|zero_point\| <= 2\^20"),
        (attention(q_zero_point=0.5), TypeError, "q_zero_point: expected an integer"),
        (attention(out_bits=4), ValueError, "out_bits: expected 8 or 6"),
        (attention(draw((1, 2, 80), 1, 3), 1, v_zero_point=2**18), ValueError, "v_zero_point: expected sums of 40 products that fit"),
        (attention(draw((1, 2, 2), 1, 40), 1, q_zero_point=2**18), ValueError, "q_zero_point: expected sums of 40 products that fit"),
    ):
        with pytest.raises(error, match=f"qpatch_attention: {message}"):
            call()
    with pytest.raises(ValueError, match=r"backend 'triton' was requested"):
        attention(backend="triton")()
