"""quantize_stream and dequantize_stream: both ends of an int16 residual stream, on processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from q_checks import assert_compiles_and_exports, axes, both_backends

from mvit_kernels import ops

Tensor = torch.Tensor


@both_backends
def test_against_numpy(backend: str) -> None:
    x = torch.cat([torch.randn(5000) * 300, torch.tensor([0.5, -0.5, 1.5, 2.5, 1e38, -1e38, float("inf"), -float("inf")])])
    for scale in (1.0, 0.0371, 2.0**-126):
        q = ops.quantize_stream(x, scale, backend=backend)
        with np.errstate(over="ignore"):
            expected = np.rint(np.clip(x.numpy() * np.float32(1 / np.float64(np.float32(scale))), -32768, 32767))
        assert np.array_equal(q.numpy(), expected.astype(np.int16))
        back = ops.dequantize_stream(q, scale, backend=backend)
        assert np.array_equal(back.numpy(), q.numpy().astype(np.float32) * np.float32(scale))
    assert ops.quantize_stream(torch.tensor(float("nan")), 0.1, backend=backend) == -32768


def test_memory_formats() -> None:
    x = torch.randn(2, 3, 4, 5)
    for each in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), x[:, :, ::2]):
        q = ops.quantize_stream(each, 0.01)
        assert q.is_contiguous(memory_format=torch.channels_last if each.stride(1) == 1 else torch.contiguous_format)
        assert ops.dequantize_stream(q, 0.01).stride() == q.stride()


def test_opcheck_compile_and_export() -> None:
    x = torch.randn(2, 3, 4, 5)
    torch.library.opcheck(torch.ops.mvit_kernels.quantize_stream.default, (x, 0.01))
    torch.library.opcheck(torch.ops.mvit_kernels.dequantize_stream.default, (x.to(torch.int16), 0.01))

    def there_and_back(x: Tensor) -> Tensor:
        return ops.dequantize_stream(ops.quantize_stream(x, 0.01), 0.01)

    assert_compiles_and_exports(there_and_back, *((torch.randn(rows, 7),) for rows in (2, 5)), dynamic=[axes(0)])


def test_bad_input() -> None:
    x = torch.randn(3)
    for call, error, message in (
        (lambda: ops.quantize_stream([1.0], 0.1), TypeError, "quantize_stream: x: expected a tensor, got list"),
        (lambda: ops.quantize_stream(x.double(), 0.1), TypeError, "x: expected dtype float32, bfloat16, float16, got float64"),
        (lambda: ops.quantize_stream(x, 0.0), ValueError, "quantize_stream: scale: expected a positive finite value"),
        (lambda: ops.dequantize_stream(x, 0.1), TypeError, "dequantize_stream: q: expected dtype int16, got float32"),
        (lambda: ops.quantize_stream(x, 0.1, backend="triton"), ValueError, "backend 'triton' was requested and cannot take this call"),
    ):
        with pytest.raises(error, match=message):
            call()
