"""qavg_pool: equal bits on every instruction set, in plain torch and to a loop of numpy."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from op_checks import FORMATS, assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, axes, random_bytes

from mvit_kernels import ops

Tensor = torch.Tensor
SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 16, 8, 8), (2, 65, 7, 3), (3, 130, 1, 9), (0, 5, 2, 2), (1, 640, 8, 8)]


def oracle(
    x: Tensor, a_scale: float, a_zero_point: int, out_scale: float = 1.0, out_zero_point: int | None = None, bits: int = 8
) -> Tensor:
    f = np.float32
    pixels = x.shape[2] * x.shape[3]
    sums = x.numpy().astype(np.int64).sum((2, 3)) - pixels * a_zero_point
    t = sums.astype(f) * f(float(f(a_scale)) / (pixels * float(f(out_scale))))
    if out_zero_point is None:
        return torch.from_numpy(t)
    return torch.from_numpy(np.clip(np.rint(t).astype(np.int64) + out_zero_point, 0, 2**bits - 1).astype(np.uint8))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pool(size, fmt: str, backend: str, poison) -> None:
    x = random_bytes(*size).contiguous(memory_format=FORMATS[fmt])
    for a_zero_point in (0, 117, -300, 2**31 // size[2] // size[3] - 1, -(2**31) // size[2] // size[3] + 256):
        for out_zero_point, bits in ((0, 8), (100, 6), (-(2**20), 8)):
            y = ops.qavg_pool(
                x, a_scale=0.03, a_zero_point=a_zero_point, out_scale=0.017, out_zero_point=out_zero_point, out_bits=bits, backend=backend
            )
            assert torch.equal(y, oracle(x, 0.03, a_zero_point, 0.017, out_zero_point, bits))
        y = ops.qavg_pool(x, a_scale=0.03, a_zero_point=a_zero_point, out_dtype=torch.float32, backend=backend)
        assert torch.equal(y, oracle(x, 0.03, a_zero_point))


def test_is_the_mean() -> None:
    x = random_bytes(2, 5, 6, 7)
    y = ops.qavg_pool(x, a_scale=0.1, a_zero_point=30, out_dtype=torch.float32)
    torch.testing.assert_close(y, (0.1 * (x.float() - 30)).mean((2, 3)))


def test_any_strides(backend: str) -> None:
    big = random_bytes(4, 6, 8, 10)
    for x in (big[1:, ::2], big[..., ::2], big.transpose(2, 3), big.permute(0, 3, 1, 2), big[:, :1].expand(-1, 3, -1, -1)):
        assert torch.equal(ops.qavg_pool(x, a_scale=0.1, a_zero_point=5, out_dtype=torch.float32, backend=backend), oracle(x, 0.1, 5))


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    x = random_bytes(3, 200, 30, 30)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_same_bits_with_any_threads(
        lambda: [ops.qavg_pool(each, a_scale=0.1, a_zero_point=3, out_dtype=torch.float32, backend="cpu") for each in (x, last)], threads
    )


def test_opcheck() -> None:
    x = random_bytes(2, 3, 4, 5)
    for each in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(torch.ops.mvit_kernels.qavg_pool, (each, 0.1, 3, 0.2, 5, torch.uint8, 8))
        torch.library.opcheck(torch.ops.mvit_kernels.qavg_pool, (each, 0.1, 3, 1.0, 0, torch.float32, 8))


def test_compiles_and_exports() -> None:
    pool = functools.partial(ops.qavg_pool, a_scale=0.1, a_zero_point=7, out_scale=0.05, out_zero_point=3)
    assert_compiles_and_exports(pool, [random_bytes(2, 3, 4, 5)], [random_bytes(5, 3, 4, 5)], dynamic=[axes(0)])


def bad(**changes: object):
    good = {"x": torch.zeros(1, 2, 4, 4, dtype=torch.uint8), "a_scale": 1.0, "a_zero_point": 0, "out_scale": 1.0, "out_zero_point": 0}
    return lambda: ops.qavg_pool(**(good | changes))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (bad(x=None), TypeError, "qavg_pool: x: expected a tensor, got NoneType"),
        (bad(x=torch.zeros(1, 2, 4, 4)), TypeError, "qavg_pool: x: expected dtype uint8, got float32"),
        (bad(x=torch.zeros(2, 4, dtype=torch.uint8)), ValueError, r"qavg_pool: x: expected 4 dimensions, got shape \(2, 4\)"),
        (bad(x=torch.zeros(1, 2, 0, 4, dtype=torch.uint8)), ValueError, "qavg_pool: x: expected at least one channel and one pixel"),
        (
            bad(a_zero_point=2**27),
            ValueError,
            r"a_zero_point: expected sums below 2\^31, got up to 2147483648 with 134217728 and 16 pixels",
        ),
        (bad(a_zero_point=255 - 2**27), ValueError, r"a_zero_point: expected sums below 2\^31, got up to 2147483648"),
        (bad(out_scale=None), TypeError, "qavg_pool: out_scale: expected a number, got None"),
        (bad(out_zero_point=None), TypeError, "qavg_pool: out_zero_point: expected an integer, got None"),
        (bad(out_zero_point=-(2**20) - 1), ValueError, r"qavg_pool: out_zero_point: expected \|zero_point\| <= 2\^20"),
        (bad(a_scale=float("nan")), ValueError, "qavg_pool: a_scale: expected a positive finite value"),
        (bad(out_dtype=torch.float32), ValueError, "qavg_pool: out_scale: expected None for out_dtype torch.float32, got 1.0"),
        (bad(out_dtype=torch.float16), TypeError, "qavg_pool: out_dtype: expected torch.uint8 or torch.float32, got torch.float16"),
        (bad(out_bits=9), ValueError, "qavg_pool: out_bits: expected 8 or 6, got 9"),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
