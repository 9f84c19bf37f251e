"""The sum of two quantized maps, with an activation: schema, checks, fake and backends."""

from __future__ import annotations

from typing import Any

import torch

from mvit_kernels import reference

from . import checks, qchecks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .library import dense, dense_in_own_format, direct, empty_in_own_format, in_format_of, raise_status, register
from .qgemm import SEGMENTS, activation_code, segments_on

OP = "qadd"
Tensor = torch.Tensor
_kernels = triton_support.Kernels(OP)


def qadd(
    a: Tensor, b: Tensor, *, a_scale: Any, a_zero_point: Any, b_scale: Any, b_zero_point: Any, out_scale: Any, out_zero_point: Any,
    activation: str | None = None, out_bits: int = 8, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """The byte of act(a_scale float(a - a_zero_point) + b_scale float(b - b_zero_point)): float32 operations in this order, each rounded
    once, and then as `quantize` by out_scale and out_zero_point.

    Args:
        a, b: uint8 of the same shape. Dense NCHW and channels_last maps are read in place; b in another memory format than a is copied.
        a_scale, b_scale, out_scale: a number each, between 2^-126 and 2^126.
        a_zero_point, b_zero_point: any int32.
        out_zero_point: |out_zero_point| <= 2^20.
        activation: None, "relu", or "silu", "gelu" or "hard_swish" by `reference.qactivate`.
        out_bits: 8 or 6.
        backend: None for automatic choice, or the name of one.

    Returns:
        uint8, shape and memory format of a.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take them.
    """
    checks.all_tensors(OP, a=a, b=b)
    checks.backend(OP, backend)
    return _call(
        a, b, qchecks.scale(OP, "a_scale", a_scale), qchecks.zero_point(OP, "a_zero_point", a_zero_point),
        qchecks.scale(OP, "b_scale", b_scale), qchecks.zero_point(OP, "b_zero_point", b_zero_point),
        qchecks.scale(OP, "out_scale", out_scale), qchecks.zero_point(OP, "out_zero_point", out_zero_point, near=True),
        activation or "none", qchecks.bits(OP, "out_bits", out_bits), backend=backend,
    )  # fmt: skip


def _check(a: Tensor, b: Tensor, activation: str, out_bits: int) -> None:
    qchecks.bits(OP, "out_bits", out_bits)
    checks.tensor(OP, "a", a, a.ndim, (torch.uint8,))
    checks.tensor(OP, "b", b, b.ndim, (torch.uint8,))
    if b.shape != a.shape or b.device != a.device:
        raise ValueError(f"{OP}: b: expected shape {tuple(a.shape)} on {a.device}, got {tuple(b.shape)} on {b.device}")
    qchecks.activation(OP, activation)


# --- backends ---


def _cpu_forward(
    a: Tensor, b: Tensor, a_scale: float, a_zero_point: int, b_scale: float, b_zero_point: int, out_scale: float, out_zero_point: int,
    activation: str, out_bits: int,
) -> Tensor:  # fmt: skip
    y = empty_in_own_format(a, torch.uint8)
    a, channels_last = dense_in_own_format(a)
    b = dense(b, channels_last)
    status = native.qadd(
        a.numel(), a.data_ptr(), b.data_ptr(), a_scale, a_zero_point, b_scale, b_zero_point, *activation_code(activation), out_scale,
        out_zero_point, out_bits, y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse(x, (torch.uint8,))


def _triton_forward(a: Tensor, b: Tensor, *settings: Any) -> Tensor:
    *numbers, activation, out_bits = settings
    y = empty_in_own_format(a, torch.uint8)
    a, channels_last = dense_in_own_format(a)
    segments = segments_on(activation, a.device) if activation in SEGMENTS else None
    _kernels.qadd(a, dense(b, channels_last), *numbers, activation, segments, out_bits, y)
    return y


def _reference_forward(a: Tensor, b: Tensor, *settings: Any) -> Tensor:
    return in_format_of(a, reference.qadd(a, b, *settings))


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(
    a: Tensor, b: Tensor, a_scale: float, a_zero_point: int, b_scale: float, b_zero_point: int, out_scale: float, out_zero_point: int,
    activation: str, out_bits: int, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(a, b, activation, out_bits)
    return choose(backend, a).forward(
        a, b, a_scale, a_zero_point, b_scale, b_zero_point, out_scale, out_zero_point, activation, out_bits
    )  # fmt: skip


def _forward_fake(
    a: Tensor, b: Tensor, a_scale: float, a_zero_point: int, b_scale: float, b_zero_point: int, out_scale: float, out_zero_point: int,
    activation: str, out_bits: int, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(a, b, activation, out_bits)
    return empty_in_own_format(a, torch.uint8)


_op = register(
    OP,
    "(Tensor a, Tensor b, float a_scale, int a_zero_point, float b_scale, int b_zero_point, float out_scale, int out_zero_point,"
    " str activation, int out_bits, *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
)
_call = direct(_op, _forward, tensors=2)
