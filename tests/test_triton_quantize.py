"""Bits of the Triton kernels are those of plain torch."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from triton_checks import DEVICE, DTYPES, FORMATS, randn, views

from mvit_kernels import ops

Tensor = torch.Tensor
SPECIAL = torch.tensor([0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, float("inf"), float("-inf"), float("nan")])


def values(*size: int, dtype: torch.dtype = torch.float32, fmt: str = "nchw") -> Tensor:
    x = randn(*size)
    flat = x.view(-1)
    flat[1::17] = SPECIAL.repeat(flat.numel())[: flat[1::17].numel()].to(DEVICE)
    flat[2::5] = (flat[2::5] * 2).round() / 2  # ties, where the scale is one
    return x.to(dtype).contiguous(memory_format=FORMATS[fmt]) if x.ndim == 4 else x.to(dtype)


def check(x: Tensor, scale, zero_point, bits: int = 8, axis: int | None = None) -> None:
    q = ops.quantize(x, scale, zero_point, bits=bits, axis=axis, backend="triton")
    expected = ops.quantize(x, scale, zero_point, bits=bits, axis=axis, backend="reference")
    assert torch.equal(q, expected)
    assert q.stride() == expected.stride()
    back = ops.dequantize(q, scale, zero_point, x.dtype, axis=axis, backend="triton")
    assert torch.equal(back, ops.dequantize(q, scale, zero_point, x.dtype, axis=axis, backend="reference"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("scale", "zero_point"), [(1.0, 3), (0.017, 255), (2.0**-126, -7), (2.0**126, 0), (0.01, -(2**20)), (0.01, 2**20)])
def test_one_scale(scale: float, zero_point: int, dtype: torch.dtype) -> None:
    for size in ((), (1,), (2, 3, 40), (3000,)):
        check(values(*size or (1,), dtype=dtype).reshape(size), scale, zero_point, bits=6 if len(size) == 3 else 8)


@pytest.mark.parametrize("fmt", FORMATS)
def test_many_scales(fmt: str) -> None:
    x = values(2, 5, 4, 7, fmt=fmt)
    scales, zero_points = torch.rand(5, device=DEVICE) + 0.01, torch.randint(-300, 300, (5,), device=DEVICE)
    for scale, zero_point in ((scales, zero_points), (0.1, zero_points), (scales, 7), (scales[:1], zero_points[:1])):
        check(x, scale, zero_point)
    check(x, torch.rand(4, device=DEVICE) + 0.01, 3, axis=2)
    check(values(6, 5), scales, zero_points)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(2, 3, 17, 33), (1, 70, 5, 3), (3, 1, 2, 2), (2, 33, 1, 1), (0, 3, 4, 4)], ids=str)
def test_bytes_in_channels_last(size, dtype: torch.dtype) -> None:
    scales, zero_points = torch.rand(size[1], device=DEVICE) + 0.01, torch.randint(-300, 300, (size[1],), device=DEVICE)
    maps = [values(*size, dtype=dtype, fmt=fmt) if 0 not in size else randn(*size, dtype=dtype) for fmt in FORMATS]
    for x in (*maps, maps[0].mT):
        columns = torch.rand(x.shape[3], device=DEVICE) + 0.01
        for scale, zero_point, axis in ((0.1, 7, 1), (scales, zero_points, 1), (scales[:1], 3, 1), (0.1, zero_points, -3), (columns, 3, 3)):
            q, expected = (
                ops.quantize(x, scale, zero_point, bits=6, axis=axis, channels_last=True, backend=backend)
                for backend in ("triton", "reference")
            )
            assert torch.equal(q, expected)
            assert q.is_contiguous(memory_format=torch.channels_last)


def test_any_strides() -> None:
    for x in views(5, 4, 6).values():
        check(x, torch.rand(5, device=DEVICE) + 0.01, 3)


def test_zero_points_of_int32_come_back() -> None:
    q = torch.arange(256, device=DEVICE).to(torch.uint8)
    for zero_point in (-(2**31), 2**31 - 1, 2**24 + 1):
        real = ops.dequantize(q, 0.3, zero_point, backend="triton")
        assert torch.equal(real, ops.dequantize(q, 0.3, zero_point, backend="reference"))


@pytest.mark.parametrize("bits", [8, slow(6)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), slow((70, 33)), (2, 2500), (3, 0), (0, 4)], ids=str)
def test_rows(size, bits: int) -> None:
    x = values(*size) if 0 not in size else randn(*size)
    x[x.isinf()] = 7.0
    if size == (5, 7):
        x[0], x[1], x[2], x[3, 0] = 0.0, 1e-40, 3.0, 3e38
    for rows in (x, x.half(), x.repeat(1, 2)[:, : size[1]]):
        for ours, theirs in zip(
            ops.quantize_rows(rows, bits=bits, backend="triton"), ops.quantize_rows(rows, bits=bits, backend="reference"), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_infinite_rows_do_what_plain_torch_does() -> None:
    x = torch.tensor([[1.0, float("inf"), -2.0], [float("-inf"), float("inf"), float("nan")]], device=DEVICE)
    for ours, theirs in zip(ops.quantize_rows(x, backend="triton"), ops.quantize_rows(x, backend="reference"), strict=True):
        assert torch.equal(ours, theirs)
