"""The int16 residual stream of a transformer, from real numbers and back: schemas, checks, fakes and backends."""

from __future__ import annotations

from typing import Any

import torch

from mvit_kernels import reference

from . import checks, qchecks, triton_support
from .backend import Choice, Implementation, refuse_off_cpu
from .library import FLOAT_CODES, dense_in_own_format, direct, empty_in_own_format, in_format_of, register

QUANTIZE, DEQUANTIZE = "quantize_stream", "dequantize_stream"
Tensor = torch.Tensor
FLOATS = tuple(FLOAT_CODES)
_kernels = triton_support.Kernels("stream")


def quantize_stream(x: Tensor, scale: Any, *, backend: str | None = None) -> Tensor:
    """q = min(max(rint(x * float32(1 / scale)), -32768), 32767), in float32, ties to even.

    Args:
        x: float32, bfloat16 or float16 of any shape. Dense NCHW and channels_last maps are read in place, other strides are copied.
        scale: a number between 2^-126 and 2^126.
        backend: None for automatic choice, or the name of one.

    Returns:
        int16, shape and memory format of x. NaN becomes -32768.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take them.
    """
    checks.is_tensor(QUANTIZE, "x", x)
    checks.backend(QUANTIZE, backend)
    return _quantize_call(x, qchecks.scale(QUANTIZE, "scale", scale), backend=backend)


def dequantize_stream(q: Tensor, scale: Any, *, backend: str | None = None) -> Tensor:
    """float(q) * scale in float32.

    Args:
        q: int16 of any shape; as x of `quantize_stream`.
        scale, backend: as of `quantize_stream`.
    """
    checks.is_tensor(DEQUANTIZE, "q", q)
    checks.backend(DEQUANTIZE, backend)
    return _dequantize_call(q, qchecks.scale(DEQUANTIZE, "scale", scale), backend=backend)


# --- backends ---


def _reference_quantize(x: Tensor, scale: float) -> Tensor:
    return in_format_of(x, reference.quantize_stream(x, scale))


def _reference_dequantize(q: Tensor, scale: float) -> Tensor:
    return in_format_of(q, reference.dequantize_stream(q, scale))


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse(x, (torch.int16, *FLOATS))


def _triton_quantize(x: Tensor, scale: float) -> Tensor:
    y = empty_in_own_format(x, torch.int16)
    _kernels.quantize_stream(dense_in_own_format(x)[0], scale, y)
    return y


def _triton_dequantize(q: Tensor, scale: float) -> Tensor:
    y = empty_in_own_format(q, torch.float32)
    _kernels.dequantize_stream(dense_in_own_format(q)[0], scale, y)
    return y


# On processors plain torch is quick enough for both ends of a stream; compiled networks have them as steps of their own.
choose_quantize = Choice(
    QUANTIZE,
    triton=Implementation(_triton_quantize, refuse=_triton_refuse),
    cpu=Implementation(_reference_quantize, refuse=refuse_off_cpu),
    reference=Implementation(_reference_quantize),
)
choose_dequantize = Choice(
    DEQUANTIZE,
    triton=Implementation(_triton_dequantize, refuse=_triton_refuse),
    cpu=Implementation(_reference_dequantize, refuse=refuse_off_cpu),
    reference=Implementation(_reference_dequantize),
)


# --- registration ---


def _quantize(x: Tensor, scale: float, *, backend: str | None = None) -> Tensor:
    checks.tensor(QUANTIZE, "x", x, x.ndim, FLOATS)
    return choose_quantize(backend, x).forward(x, scale)


def _quantize_fake(x: Tensor, scale: float, *, backend: str | None = None) -> Tensor:
    checks.tensor(QUANTIZE, "x", x, x.ndim, FLOATS)
    return empty_in_own_format(x, torch.int16)


def _dequantize(q: Tensor, scale: float, *, backend: str | None = None) -> Tensor:
    checks.tensor(DEQUANTIZE, "q", q, q.ndim, (torch.int16,))
    return choose_dequantize(backend, q).forward(q, scale)


def _dequantize_fake(q: Tensor, scale: float, *, backend: str | None = None) -> Tensor:
    checks.tensor(DEQUANTIZE, "q", q, q.ndim, (torch.int16,))
    return empty_in_own_format(q, torch.float32)


_quantize_op = register(QUANTIZE, "(Tensor x, float scale, *, str? backend=None) -> Tensor", _quantize, _quantize_fake)
_quantize_call = direct(_quantize_op, _quantize)
_dequantize_op = register(DEQUANTIZE, "(Tensor q, float scale, *, str? backend=None) -> Tensor", _dequantize, _dequantize_fake)
_dequantize_call = direct(_dequantize_op, _dequantize)
