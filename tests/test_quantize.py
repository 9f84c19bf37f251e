"""quantize, dequantize and quantize_rows: equal bits on every instruction set, in plain torch and to a loop of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_checks import FLOATS, FORMATS, assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, axes, random_bytes, random_weight

import mvit_kernels as mk
from mvit_kernels import ops, reference

SPECIAL = [0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]


def along(values, ndim: int, axis: int) -> np.ndarray:
    values = np.asarray(values).reshape(-1)
    return values if values.size == 1 else values.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])


def oracle(x: torch.Tensor, scale, zero_point, bits: int, axis: int) -> torch.Tensor:
    x = x.float().numpy()
    scale, zero_point = along(np.float32(scale), x.ndim, axis), along(np.int64(zero_point), x.ndim, axis)
    with np.errstate(all="ignore"):
        t = x * (1.0 / scale.astype(np.float64)).astype(np.float32)
    assert t.dtype == np.float32
    q = np.rint(np.clip(np.where(np.isnan(t), -np.inf, t.astype(np.float64)), -(2.0**40), 2.0**40)).astype(np.int64) + zero_point
    return torch.from_numpy(np.clip(q, 0, 2**bits - 1).astype(np.uint8))


def real_oracle(q: torch.Tensor, scale, zero_point, dtype: torch.dtype, axis: int) -> torch.Tensor:
    q = q.numpy().astype(np.int64)
    scale, zero_point = along(np.float32(scale), q.ndim, axis), along(np.int64(zero_point), q.ndim, axis)
    return torch.from_numpy((q - zero_point).astype(np.float32) * scale).to(dtype)


def values(size: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    x = torch.randn(size) * scale
    flat = x.view(-1)
    flat[1::17] = torch.tensor(SPECIAL).repeat(flat.numel())[: flat[1::17].numel()]
    flat[2::5] = (flat[2::5] / 0.5).round() * 0.5  # ties, where the scale is one
    return x


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bits", [8, 6])
def test_one_scale(dtype: torch.dtype, bits: int, backend: str) -> None:
    for size in ((), (1,), (5,), (3, 67), (2, 3, 40), (2, 5, 4, 7), (1, 2, 3, 4, 5)):
        x = values(size or (1,)).reshape(size).to(dtype)
        for scale, zero_point in ((1.0, 3), (0.1, 128), (0.017, 255), (2.0**-126, -7), (2.0**126, 0), (0.01, -(2**20)), (0.01, 2**20)):
            q = ops.quantize(x, scale, zero_point, bits=bits, backend=backend)
            assert torch.equal(q, oracle(x, scale, zero_point, bits, -1).reshape(size))
            for z in (zero_point, -(2**31), 2**31 - 1, -(2**31) + 100, 2**24 + 1):
                back = ops.dequantize(q, scale, z, dtype, backend=backend)
                assert torch.equal(back, real_oracle(q, scale, z, dtype, -1).reshape(size))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_scale_a_channel(fmt: str, dtype: torch.dtype, backend: str, poison) -> None:
    for size in ((2, 3, 5, 6), (1, 16, 3, 3), (2, 33, 1, 4), (2, 17, 4, 1), (3, 1, 2, 2), (1, 40, 1, 1)):
        for axis in (None, 0, 1, 2, 3, -1, -3):
            at = 1 if axis is None else axis
            channels = size[at]
            x = values(size).to(dtype).contiguous(memory_format=FORMATS[fmt])
            scale, zero_point = torch.rand(channels) + 0.01, torch.randint(-300, 300, (channels,), dtype=torch.int32)
            for s, z in ((scale, zero_point), (scale, 7), (0.02, zero_point), (scale[:1], zero_point[0])):
                q = ops.quantize(x, s, z, axis=axis, backend=backend)
                assert torch.equal(q, oracle(x, s, z, 8, at))
                assert q.is_contiguous(memory_format=FORMATS[fmt])
                back = ops.dequantize(q, s, z, dtype, axis=axis, backend=backend)
                assert torch.equal(back, real_oracle(q, s, z, dtype, at))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bytes_in_channels_last(fmt: str, dtype: torch.dtype, backend: str, poison) -> None:
    for size in ((2, 3, 17, 33), (1, 70, 5, 3), (3, 1, 2, 2), (2, 5, 1, 1), (0, 3, 4, 4), (1, 0, 2, 2)):
        x = values(size).to(dtype).contiguous(memory_format=FORMATS[fmt])
        scale = torch.rand(size[1]) + 0.01
        for s, axis in ((0.1, 1), (scale, None), (torch.rand(size[3]) + 0.01, 3)):
            q = ops.quantize(x, s, 7, axis=axis, channels_last=True, backend=backend)
            assert torch.equal(q, oracle(x, s, 7, 8, 1 if axis is None else axis))
            assert q.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"channels_last: expected False of x that is no map \(B, C, H, W\), got True and shape \(3,\)"):
        ops.quantize(torch.ones(3), 0.1, 7, channels_last=True, backend=backend)


def test_the_axis_of_what_is_no_map_is_the_last(backend: str) -> None:
    x, scale = torch.randn(4, 5, 6), torch.rand(6) + 0.1
    assert torch.equal(ops.quantize(x, scale, 10, backend=backend), oracle(x, scale, 10, 8, -1))
    assert torch.equal(ops.quantize(x, scale[:5], 10, axis=1, backend=backend), oracle(x, scale[:5], 10, 8, 1))


def test_any_strides(backend: str) -> None:
    big, scale = torch.randn(4, 6, 8, 10), torch.rand(6) + 0.01
    for x in (big[1:], big[..., ::2], big.transpose(2, 3), big[:, :, 1:, 3:], big[:, :1].expand(-1, 6, -1, -1)):
        assert torch.equal(ops.quantize(x, scale, 5, backend=backend), oracle(x, scale, 5, 8, 1))
    q = random_bytes(4, 6, 8, 10)
    assert torch.equal(
        ops.dequantize(q.permute(0, 3, 1, 2), 0.1, 5, backend=backend), real_oracle(q.permute(0, 3, 1, 2), 0.1, 5, torch.float32, 1)
    )
    assert ops.quantize(big.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0), 0.1, 5).is_contiguous()


def test_empty() -> None:
    for size in ((0,), (2, 0, 3, 3), (0, 4)):
        x = torch.zeros(size)
        assert ops.quantize(x, 0.1, 5).shape == size
        assert ops.dequantize(ops.quantize(x, 0.1, 5), torch.full((size[-1],), 0.1), 5, axis=-1).shape == size
    rows = ops.quantize_rows(torch.zeros(0, 4))
    assert rows.q.shape == (0, 4)
    rows = ops.quantize_rows(torch.zeros(3, 0))
    assert rows.q.shape == (3, 0)
    assert rows.zero_point.tolist() == [0, 0, 0]
    assert torch.equal(rows.scale, reference.quantize_rows(torch.zeros(3, 0)).scale)


def test_back_and_forth() -> None:
    q = torch.arange(256, dtype=torch.uint8)
    for z in (-1000, 0, 7, 255, 2**20):
        assert torch.equal(ops.quantize(ops.dequantize(q, 0.0137, z), 0.0137, z), q)


# --- rows ---


def degenerate_rows(depth: int) -> torch.Tensor:
    x = torch.randn(40, depth)
    x[1], x[2], x[3] = 0.0, 5.0, -5.0
    x[4], x[5] = x[4].abs(), -x[5].abs()
    x[6] *= 1e-40
    x[7] = torch.where(x[7] > 0, 3.4e38, -3.4e38)
    x[8] *= 1e-30
    x[9, 0], x[10, 0], x[11, 0], x[12, 0] = float("nan"), float("inf"), float("-inf"), 1e30
    x[13], x[14] = float("nan"), -0.0
    x[15, :] = torch.tensor([float("inf"), float("-inf")]).repeat(depth)[:depth]
    return x


def rows_oracle(x: torch.Tensor, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero-points."""
    v = np.nan_to_num(x.float().numpy(), nan=0.0, posinf=np.inf, neginf=-np.inf)
    low, high = np.minimum(v.min(1), np.float32(0)), np.maximum(v.max(1), np.float32(0))
    step = np.float32(1 / (2**bits - 1))
    with np.errstate(all="ignore"):
        scale = np.maximum(high * step - low * step, np.float32(2.0**-100))
        z = np.nan_to_num(-low / scale, nan=0.0)
    return scale, np.clip(np.rint(z), 0, 2**bits - 1).astype(np.int32)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bits", [8, 6])
def test_rows(dtype: torch.dtype, bits: int, backend: str) -> None:
    for depth in (1, 2, 15, 16, 17, 63, 64, 65, 200):
        x = degenerate_rows(depth).to(dtype)
        q, scale, zero_point = ops.quantize_rows(x, bits=bits, backend=backend)
        expected = rows_oracle(x, bits)
        assert np.array_equal(scale.numpy(), expected[0])
        assert np.array_equal(zero_point.numpy(), expected[1])
        finite = scale.isfinite()  # np.float32 has no division by infinity in `oracle`
        assert torch.equal(q[finite], oracle(x[finite], scale[finite], zero_point[finite], bits, 0))
        assert not q[~finite].any()
        good = x.isfinite().all(1)
        error = (scale[:, None] * (q.int() - zero_point[:, None]) - x.float())[good].abs()
        assert (error <= 0.51 * scale[good][:, None]).all()


def test_rows_feed_qgemm() -> None:
    x, w = torch.randn(9, 32) + 3, random_weight(5, 32)
    q, scale, zero_point = ops.quantize_rows(x)
    y = ops.qgemm(q, ops.pack_weight(w), a_scale=scale, a_zero_point=zero_point, w_scale=0.01)
    exact = x.double() @ (0.01 * w.double()).T
    assert (y - exact).abs().max() < 0.02 * exact.abs().max()


def test_rows_of_any_stride(backend: str) -> None:
    big = torch.randn(40, 70)
    for x in (big[:, 3:50], big[::2], big.T, big[:1].expand(7, -1)):
        for ours, expected in zip(ops.quantize_rows(x, backend=backend), reference.quantize_rows(x), strict=True):
            assert torch.equal(ours, expected)


# --- how they are called ---


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    x, scale, zero_point = torch.randn(2, 50, 60, 60), torch.rand(50) + 0.1, torch.randint(0, 255, (50,), dtype=torch.int32)
    last = x.contiguous(memory_format=torch.channels_last)

    def run() -> list[torch.Tensor]:
        maps = [ops.quantize(each, scale, zero_point, backend="cpu") for each in (x, last)]
        one = ops.quantize(x, 0.03, 100, backend="cpu")
        reals = [ops.dequantize(each, scale, zero_point, backend="cpu") for each in (*maps, one)]
        return [*maps, one, *reals, *ops.quantize_rows(x.flatten(0, 2), backend="cpu")]

    assert_same_bits_with_any_threads(run, threads)


def test_opcheck() -> None:
    scale, zero_point = torch.rand(3) + 0.1, torch.randint(0, 255, (3,), dtype=torch.int32)
    for x in (
        torch.randn(2, 3, 4, 5),
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 4, 5)[..., ::2],
    ):
        torch.library.opcheck(torch.ops.mvit_kernels.quantize, (x, scale, zero_point, 1.0, 0, 1 if x.ndim == 4 else 2, 8))
        torch.library.opcheck(torch.ops.mvit_kernels.quantize, (x, None, None, 0.1, 5, 1, 6, x.ndim == 4))
        q = ops.quantize(x, 0.1, 128)
        torch.library.opcheck(torch.ops.mvit_kernels.dequantize, (q, None, None, 0.1, 5, 1, torch.bfloat16))
    torch.library.opcheck(torch.ops.mvit_kernels.quantize_rows, (torch.randn(5, 7), 8))


def test_compiles_and_exports() -> None:
    def there_and_back(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q = ops.quantize(x, scale, zero_point)
        return q, ops.dequantize(q, 0.3, 12, torch.float16), ops.dequantize(q, scale, zero_point), *ops.quantize_rows(x.flatten(1))

    scale, zero_point = torch.rand(3) + 0.1, torch.randint(0, 255, (3,), dtype=torch.int32)
    draws = [(torch.randn(batch, 3, 4, 5), scale, zero_point) for batch in (2, 5)]
    assert_compiles_and_exports(there_and_back, *draws, dynamic=(axes(0), None, None))


X, Q = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.quantize(None, 1.0, 0), TypeError, "quantize: x: expected a tensor, got NoneType"),
        (lambda: ops.quantize(Q, 1.0, 0), TypeError, "quantize: x: expected dtype float32, bfloat16, float16, got uint8"),
        (lambda: ops.quantize(X, "1", 0), TypeError, "quantize: scale: expected a number, got '1'"),
        (lambda: ops.quantize(X, 1.0, 0.5), TypeError, "quantize: zero_point: expected an integer, got 0.5"),
        (lambda: ops.quantize(X, 1.0, 2**20 + 1), ValueError, r"quantize: zero_point: expected \|zero_point\| <= 2\^20, got 1048577"),
        (lambda: ops.quantize(X, 1.0, 0, bits=7), ValueError, "quantize: bits: expected 8 or 6, got 7"),
        (lambda: ops.quantize(X, 1.0, 0, axis=4), ValueError, r"quantize: axis: expected an axis of shape \(2, 3, 4, 4\), got 4"),
        (lambda: ops.quantize(X, 1.0, 0, axis="1"), TypeError, "quantize: axis: expected an integer, got '1'"),
        (lambda: ops.quantize(X, 1.0, 0, backend=3), TypeError, "quantize: backend: expected a name or None, got 3"),
        (lambda: ops.quantize(X, torch.ones(4), 0), ValueError, r"quantize: scale: expected one value or 3 of axis 1, got shape \(4,\)"),
        (lambda: ops.quantize(X, torch.ones(3, 1), 0), ValueError, r"quantize: scale: expected one value or 3 of axis 1, got shape"),
        (lambda: ops.quantize(X, torch.ones(3, dtype=torch.int32), 0), TypeError, "quantize: scale: expected floats, got torch.int32"),
        (lambda: ops.quantize(X, 1.0, torch.ones(3)), TypeError, "quantize: zero_point: expected integers, got torch.float32"),
        (lambda: ops.quantize(X, 1.0, torch.tensor([0, 2**20 + 1, 0])), ValueError, r"zero_point: expected \|zero_point\| <= 2\^20"),
        (lambda: ops.quantize(X, torch.tensor([1.0, 0.0, 1.0]), 0), ValueError, "quantize: scale: expected positive finite .* got 0 to 1"),
        (lambda: ops.dequantize(X, 1.0, 0), TypeError, "dequantize: q: expected dtype uint8, got float32"),
        (lambda: ops.dequantize(Q, 1.0, 2**31), ValueError, "dequantize: zero_point: expected an int32, got 2147483648"),
        (lambda: ops.dequantize(Q, 1.0, torch.tensor(2**31)), ValueError, "dequantize: zero_point: expected an int32, got 2147483648"),
        (lambda: ops.dequantize(Q, 1.0, 0, torch.float64), TypeError, "dequantize: dtype: expected float32, .* got torch.float64"),
        (lambda: ops.quantize_rows(X), ValueError, r"quantize_rows: x: expected 2 dimensions, got shape \(2, 3, 4, 4\)"),
        (lambda: ops.quantize_rows(Q[0, 0]), TypeError, "quantize_rows: x: expected dtype float32, bfloat16, float16, got uint8"),
        (lambda: ops.quantize_rows(X[0, 0], bits=4), ValueError, "quantize_rows: bits: expected 8 or 6, got 4"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-39, 1e39])
def test_bad_scales(scale: float) -> None:
    for call in (lambda s: ops.quantize(X, s, 0), lambda s: ops.dequantize(Q, s, 0)):
        for given in (scale, torch.tensor(scale), torch.tensor([1.0, scale, 1.0])):
            with pytest.raises(ValueError, match=r"scale: expected .*between 2.-126 and 2.126"):
                call(given)


def test_report_of_backends() -> None:
    with mk.use_backend("reference"):
        assert torch.equal(ops.quantize(X, 0.1, 3), torch.full_like(Q, 3))
