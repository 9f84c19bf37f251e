"""GroupNorm with one group (arXiv 1803.08494, equation 2): schema, checks, fake, backward and backends."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    dense,
    empty_in_format,
    fresh,
    is_channels_last,
    raise_status,
    refuse_off_floats,
    single,
    wide,
)
from .norm_op import register_norm

OP = "group_norm"
_kernels = triton_support.Kernels(OP)


def group_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5, *, backend: str | None = None) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over all channels and positions of an image.

    Args:
        x: (B, C, H, W) float32, bfloat16, float16 or float64; contiguous, channels_last or any other strides.
        weight, bias: (C,), float32 or the dtype of x. Statistics and arithmetic are float32 (float64 of a float64 x).
        eps: added to the variance.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C, H, W), dtype and memory format of x.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.

    Source: Group Normalization, arXiv 1803.08494, equation 2, with one group; "layer_norm_2d" of MobileViTv2 (arXiv 2206.02680).
    """
    if type(x) is not torch.Tensor:
        checks.is_tensor(OP, "x", x)
    if type(weight) is not torch.Tensor:
        checks.is_tensor(OP, "weight", weight)
    if type(bias) is not torch.Tensor:
        checks.is_tensor(OP, "bias", bias)
    if type(eps) is not float or not eps >= 0:
        checks.not_negative(OP, "eps", eps)
    call = _call if type(eps) is float else _forward_op  # which converts what is like a number
    if backend is None:  # a keyword costs time
        return call(x, weight, bias, eps)
    checks.backend(OP, backend)
    return call(x, weight, bias, eps, backend=backend)


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    checks.tensor(OP, "x", x, 4, FLOAT_DTYPES)
    channels = x.shape[1]
    checks.channelwise(OP, "weight", weight, x, channels)
    if bias is not None:
        checks.channelwise(OP, "bias", bias, x, channels)


# --- backends ---


def _cpu_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    channels_last, size = is_channels_last(x), x.shape
    x, weight, bias = dense(x, channels_last), single(weight), single(bias)
    y = fresh(torch.empty_like(x))
    code, threads = FLOAT_CODES[x.dtype], torch.get_num_threads()
    status = native.group_norm(
        code, channels_last, size, x.data_ptr(), weight.data_ptr(), bias.data_ptr(), eps, y.data_ptr(), threads
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _cpu_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    channels_last, size, dtype = is_channels_last(x), x.shape, weight.dtype
    x, dy, weight = dense(x, channels_last), dense(dy, channels_last), single(weight)
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    code, threads = FLOAT_CODES[x.dtype], torch.get_num_threads()
    status = native.group_norm_backward(
        code, channels_last, size, dy.data_ptr(), x.data_ptr(), weight.data_ptr(), eps, dx.data_ptr(), dweight.data_ptr(),
        dbias.data_ptr(), threads,
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return dx if residual is None else dx + residual, dweight.to(dtype), dbias.to(dtype)


def _triton_refuse(x: torch.Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, FLOAT_CODES)


def _triton_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, moments: torch.Tensor | None = None
) -> torch.Tensor:
    channels_last = is_channels_last(x)
    x = dense(x, channels_last)
    y = torch.empty_like(x)
    _kernels.forward(x, weight.contiguous(), bias.contiguous(), eps, y, channels_last, moments)
    return y


def _triton_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None,
    moments: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    channels_last = is_channels_last(x)
    x, dy = dense(x, channels_last), dense(dy, channels_last)
    residual = None if residual is None else dense(residual, channels_last)
    dx = torch.empty_like(x)
    dweight, dbias = _kernels.backward(dy, x, weight.contiguous(), eps, dx, channels_last, moments, residual)
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype)


def triton_steps(
    x: torch.Tensor, moments: torch.Tensor | None
) -> tuple[Callable[..., torch.Tensor], Callable[..., tuple[torch.Tensor, ...]]]:
    """The norm of x and its gradient by Triton's kernels, which find the moments of x once, where they are not known."""
    if moments is None and x.numel():
        moments = _kernels.parts_of(dense(x, is_channels_last(x)))[0]
    return functools.partial(_triton_forward, moments=moments), functools.partial(_triton_backward, moments=moments)


def _reference_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x_wide = wide(x)
    return dense(reference.group_norm(x_wide, weight.to(x_wide.dtype), bias.to(x_wide.dtype), eps).to(x.dtype), is_channels_last(x))


def _reference_backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    x_wide = wide(x)
    dx, dweight, dbias = reference.group_norm_backward(wide(dy), x_wide, weight.to(x_wide.dtype), eps)
    return dense(dx.to(x.dtype), is_channels_last(x)), dweight.to(weight.dtype), dbias.to(weight.dtype)


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, _triton_backward, _triton_refuse),
    cpu=Implementation(_cpu_forward, _cpu_backward, refuse_off_floats),
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _like(x: torch.Tensor) -> torch.Tensor:
    return empty_in_format(x, tuple(x.shape), is_channels_last(x))


_forward, _forward_op, _call = register_norm(choose, _check, _like, reference.group_norm_backward)
