"""Global average pooling of a quantized map: schema, checks, fake and backends."""

from __future__ import annotations

from typing import Any

import torch

from mvit_kernels import reference
from mvit_kernels.messages import shown

from . import checks, qchecks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .library import dense_in_own_format, direct, raise_status, register

OP = "qavg_pool"
Tensor = torch.Tensor
_kernels = triton_support.Kernels(OP)


def qavg_pool(
    x: Tensor, *, a_scale: Any, a_zero_point: Any, out_scale: Any = None, out_zero_point: Any = None, out_dtype: torch.dtype = torch.uint8,
    out_bits: int = 8, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """The mean of each channel of a quantized map: t = float(sum of x - H W a_zero_point) * float32(a_scale / (H W out_scale)).

    Args:
        x: (B, C, H, W) uint8, at least one channel and pixel. Dense NCHW and channels_last are read in place, other strides are copied.
        a_scale, a_zero_point: a number and an int32 with H W max(|a_zero_point|, |255 - a_zero_point|) < 2^31: sums are exact int32.
        out_scale, out_zero_point: for out_dtype uint8, a number and an integer, |out_zero_point| <= 2^20; None for float32.
        out_dtype: uint8, rint(t) + out_zero_point clamped to 0 .. 2^out_bits - 1; or float32, t itself with an out_scale of 1.
        out_bits: 8 or 6.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C), contiguous.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take them.
    """
    checks.is_tensor(OP, "x", x)
    checks.backend(OP, backend)
    a_scale, a_zero_point = qchecks.scale(OP, "a_scale", a_scale), qchecks.zero_point(OP, "a_zero_point", a_zero_point)
    if out_dtype == torch.uint8:
        out_scale = qchecks.scale(OP, "out_scale", out_scale)
        out_zero_point = qchecks.zero_point(OP, "out_zero_point", out_zero_point, near=True)
    elif out_dtype == torch.float32:
        for name, value in (("out_scale", out_scale), ("out_zero_point", out_zero_point)):
            if value is not None:
                raise ValueError(f"{OP}: {name}: expected None for out_dtype {out_dtype}, got {shown(value)}")
        out_scale, out_zero_point = 1.0, 0
    else:
        raise TypeError(f"{OP}: out_dtype: expected torch.uint8 or torch.float32, got {out_dtype}")
    bits = qchecks.bits(OP, "out_bits", out_bits)
    return _call(x, a_scale, a_zero_point, out_scale, out_zero_point, out_dtype, bits, backend=backend)


def _check(x: Tensor, a_zero_point: int, out_dtype: torch.dtype, out_bits: int) -> None:
    qchecks.bits(OP, "out_bits", out_bits)
    checks.image(OP, "x", x, (torch.uint8,))
    if out_dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"{OP}: out_dtype: expected torch.uint8 or torch.float32, got {out_dtype}")
    pixels = x.shape[2] * x.shape[3]
    most = pixels * (a_zero_point if a_zero_point > 127 else 255 - a_zero_point)
    if most >= reference.OVERFLOW:
        raise ValueError(f"{OP}: a_zero_point: expected sums below 2^31, got up to {most} with {a_zero_point} and {pixels} pixels")


# --- backends ---


def _cpu_forward(
    x: Tensor, a_scale: float, a_zero_point: int, out_scale: float, out_zero_point: int, out_dtype: torch.dtype, out_bits: int
) -> Tensor:  # fmt: skip
    x, channels_last = dense_in_own_format(x)
    batch, channels, height, width = x.shape
    y = torch.empty(batch, channels, dtype=out_dtype)
    status = native.qavg_pool(
        batch, channels, height * width, channels_last, x.data_ptr(), a_scale, a_zero_point, out_dtype == torch.float32, out_scale,
        out_zero_point, out_bits, y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse(x, (torch.uint8,))


def _triton_forward(
    x: Tensor, a_scale: float, a_zero_point: int, out_scale: float, out_zero_point: int, out_dtype: torch.dtype, out_bits: int
) -> Tensor:  # fmt: skip
    x, channels_last = dense_in_own_format(x)
    y = x.new_empty(x.shape[0], x.shape[1], dtype=out_dtype)
    scale = a_scale / (x.shape[2] * x.shape[3] * out_scale)
    _kernels.qavg_pool(x, channels_last, a_zero_point, scale, out_zero_point, out_bits, y)
    return y


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(reference.qavg_pool),
)


# --- registration ---


def _forward(
    x: Tensor, a_scale: float, a_zero_point: int, out_scale: float, out_zero_point: int, out_dtype: torch.dtype, out_bits: int, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, a_zero_point, out_dtype, out_bits)
    return choose(backend, x).forward(x, a_scale, a_zero_point, out_scale, out_zero_point, out_dtype, out_bits)


def _forward_fake(
    x: Tensor, a_scale: float, a_zero_point: int, out_scale: float, out_zero_point: int, out_dtype: torch.dtype, out_bits: int, *,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, a_zero_point, out_dtype, out_bits)
    return x.new_empty(x.shape[0], x.shape[1], dtype=out_dtype)


_op = register(
    OP,
    "(Tensor x, float a_scale, int a_zero_point, float out_scale, int out_zero_point, ScalarType out_dtype, int out_bits, *,"
    " str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
)
_call = direct(_op, _forward)
