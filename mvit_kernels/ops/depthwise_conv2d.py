"""Depthwise 3x3 convolution (MobileNet, arXiv 1704.04861, equation 3) with activation: schema, checks, fake, backward and backends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    dense,
    empty_in_format,
    in_format,
    is_channels_last,
    narrow,
    out_size,
    raise_status,
    refuse_off_floats,
    register,
    register_autograd,
    widen,
)  # fmt: skip
from .packing import pack_depthwise, packed

OP = "depthwise_conv2d"
_kernels = triton_support.Kernels(OP)
Tensor = torch.Tensor
Optional = torch.Tensor | None


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, activation: str | None = None, backend: str | None = None
) -> Tensor:
    """act(conv2d(x, weight, padding=1, groups=C) + bias), in one pass; m filters for each of C channels.

    Args:
        x: (B, C, H, W) float32, bfloat16, float16 or float64, at least one channel and pixel. channels_last is read in place, other strides
            are copied to channels_last first.
        weight: (m C, 1, 3, 3), of channel c those from m c on, float32 or the dtype of x. Its packed form is kept while it lives and does
            not change.
        bias: (m C,) or None.
        stride: 1 or 2.
        activation: None, "relu", "silu", "gelu" (the exact one), "relu6" or "hard_swish".
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, m C, ceil(H / stride), ceil(W / stride)), dtype of x, always channels_last. Arithmetic is float32 (float64 of float64).
        Gradients are torch's own, of any backend.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.
    """
    checks.is_tensor(OP, "x", x)
    checks.is_tensor(OP, "weight", weight)
    checks.tensors(OP, bias=bias)
    checks.integer(OP, "stride", stride)
    checks.backend(OP, backend)
    return _call(x, weight, bias, stride, activation or "none", backend=backend)


def _check(x: Tensor, weight: Tensor, bias: Optional, stride: int, activation: str) -> None:
    checks.image(OP, "x", x, FLOAT_DTYPES)
    checks.parameter(OP, "weight", weight, 4, x)
    if weight.shape[1:] != (1, 3, 3) or weight.shape[0] < 1 or weight.shape[0] % x.shape[1]:
        raise ValueError(f"{OP}: weight: expected shape (a multiple of {x.shape[1]}, 1, 3, 3), got {tuple(weight.shape)}")
    if bias is not None:
        checks.parameter(OP, "bias", bias, 1, x, weight.shape[:1])
    checks.stride(OP, stride)
    checks.activation(OP, activation)


# --- backends ---


def _cpu_forward(x: Tensor, weight: Tensor, bias: Optional, stride: int, activation: str) -> Tensor:
    taps = packed(pack_depthwise, weight, bias)
    x = in_format(x, channels_last=True)
    y = empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True)
    status = native.depthwise_conv2d(
        FLOAT_CODES[x.dtype], x.shape, weight.shape[0], stride, x.data_ptr(), x.stride(), taps.weight.data_ptr(), taps.weight.shape[1],
        taps.bias.data_ptr(), reference.ACTIVATIONS.index(activation), y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, FLOAT_CODES)


def arrange(weight: Tensor, bias: Optional) -> Any:
    """As Triton's kernel reads it."""
    return _kernels.arrange(weight, bias)


def _triton_forward(x: Tensor, weight: Tensor, bias: Optional, stride: int, activation: str) -> Tensor:
    taps = packed(arrange, weight, bias)
    x = in_format(x, channels_last=True)
    y = empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True)
    _kernels.forward(x, taps, y, stride=stride, activation=activation)
    return y


def _reference_forward(x: Tensor, weight: Tensor, bias: Optional, stride: int, activation: str) -> Tensor:
    dtype = x.dtype
    x, weight, bias = widen(x, x, weight, bias)
    return dense(reference.depthwise_conv2d(x, weight, bias, stride, activation).to(dtype), channels_last=True)


def _reference_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Optional, stride: int, activation: str, *, cast: Callable[..., list[Any]] = widen
) -> tuple[Tensor, ...]:
    """cast: `widen` or `narrow`, of all tensors."""
    dtype, weight_dtype, channels_last = x.dtype, weight.dtype, is_channels_last(x)
    dy, x, weight, bias = cast(x, dy, x, weight, bias)
    dx, dweight, dbias = reference.depthwise_conv2d_backward(dy, x, weight, bias, stride, activation)
    return dense(dx.to(dtype), channels_last), dweight.to(weight_dtype).contiguous(), dbias.to(weight_dtype)


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, functools.partial(_reference_backward, cast=narrow), _triton_refuse),
    cpu=Implementation(_cpu_forward, _reference_backward, refuse_off_floats),  # the gradient of a convolution is torch's
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _forward(
    x: Tensor, weight: Tensor, bias: Optional = None, stride: int = 1, activation: str = "none", *, backend: str | None = None
) -> Tensor:
    _check(x, weight, bias, stride, activation)
    return choose(backend, x, weight).forward(x, weight, bias, stride, activation)


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Optional = None, stride: int = 1, activation: str = "none", *, backend: str | None = None
) -> Tensor:
    _check(x, weight, bias, stride, activation)
    return empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Optional, stride: int, activation: str, backend: str | None
) -> tuple[Tensor, ...]:
    checks.like(f"{OP}_backward", "dy", dy, x, out_size(x, weight.shape[0], stride))
    backward = choose(backend, x, weight).backward
    assert backward is not None
    return backward(dy, x, weight, bias, stride, activation)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Optional, stride: int, activation: str, backend: str | None
) -> tuple[Tensor, ...]:
    dx = empty_in_format(x, tuple(x.shape), is_channels_last(x))
    return dx, weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


_forward_op = register(
    OP,
    "(Tensor x, Tensor weight, Tensor? bias=None, int stride=1, str activation='none', *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
)
_backward_op = register(
    f"{OP}_backward",
    "(Tensor dy, Tensor x, Tensor weight, Tensor? bias, int stride, str activation, str? backend) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup(
    ctx: Any, x: Tensor, weight: Tensor, bias: Optional = None, stride: int = 1, activation: str = "none", *, backend: str | None = None
) -> None:
    ctx.save_for_backward(x, weight, bias)
    ctx.settings = stride, activation
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.backend = choose.backend(backend, x, weight)  # the backward may run on another thread, outside the use_backend block of the forward


def _gradient(ctx: Any, dy: Tensor) -> tuple[Optional, ...]:
    x, weight, bias = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        dx, dweight, dbias = _reference_backward(dy, x, weight, bias, *ctx.settings)
    else:
        dx, dweight, dbias = _backward_op(dy, x, weight, bias, *ctx.settings, ctx.backend)
    return dx, dweight, None if bias is None else dbias.to(ctx.bias_dtype), None, None


_call = register_autograd(_forward_op, _forward, _setup, _gradient, tensors=3)
