"""Bits of the Triton kernels are those of plain torch."""

from __future__ import annotations

import pytest
import torch
from triton_checks import DEVICE, DTYPES, FORMATS, randn, views

from mvit_kernels import ops

Tensor = torch.Tensor
SPECIAL = torch.tensor([0.0, -0.0, 1e-42, 3e38, -3e38, 32767.5, -32768.5, 0.5, 1.5, float("inf"), float("-inf"), float("nan")])


def check(x: Tensor, scale: float) -> None:
    q, expected = (ops.quantize_stream(x, scale, backend=backend) for backend in ("triton", "reference"))
    assert torch.equal(q, expected)
    assert q.stride() == expected.stride()
    back, expected = (ops.dequantize_stream(q, scale, backend=backend) for backend in ("triton", "reference"))
    assert torch.equal(back, expected)
    assert back.stride() == expected.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_there_and_back(dtype: torch.dtype) -> None:
    x = torch.cat([SPECIAL, 2000 * torch.randn(3000)]).to(DEVICE, dtype)
    for scale in (1.0, 0.0071, 2.0**-126, 2.0**126):
        check(x, scale)


def test_any_strides_and_empty() -> None:
    for x in (*views(5, 4, 6).values(), *(randn(2, 3, 4, 5, fmt=fmt) for fmt in FORMATS), randn(0, 4), randn(1).reshape(())):
        check(x, 0.01)


def test_every_int16_comes_back() -> None:
    q = torch.arange(-(2**15), 2**15, device=DEVICE).to(torch.int16)
    check(q.float() * 0.0371, 0.0371)
    assert torch.equal(ops.quantize_stream(ops.dequantize_stream(q, 0.0371, backend="triton"), 0.0371, backend="triton"), q)
