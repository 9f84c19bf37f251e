"""Global average pooling (arXiv 1312.4400, section 3.2), of a map or of its GroupNorm: schema, checks, fake, backward and backends."""

from __future__ import annotations

from typing import Any

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .epilogue import finish_in_place
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    dense,
    dense_in_own_format,
    fresh,
    is_channels_last,
    raise_status,
    refuse_off_floats,
    register,
    register_autograd,
    wide,
)
from .moments import joined

OP = "avg_pool"
_kernels = triton_support.Kernels(OP)
Tensor = torch.Tensor
Optional = torch.Tensor | None


def avg_pool(
    x: Tensor, *, moments: Optional = None, eps: float = 1e-5, activation: str | None = None, backend: str | None = None
) -> Tensor:
    """act(the mean of each channel over all pixels) of a map, or of its GroupNorm with one group: (x - mean) / sqrt(variance + eps).

    Args:
        x: (B, C, H, W) float32, bfloat16, float16 or float64, at least one channel and pixel. The CPU kernel runs on channels_last memory,
            Triton's on dense NCHW too: other strides are copied.
        moments: (B, 2) float64, mean and variance of each image of x, whose norm is then averaged; None for x as it is. The CPU has no
            kernel for it.
        eps: added to the variance.
        activation: None, or one of reference.ACTIVATIONS, of the mean.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C), dtype of x, contiguous. Sums are float32 (float64 of a float64 x).

    Raises:
        TypeError, ValueError: x or moments of another rank, dtype or size, x without pixels, or the requested backend cannot take it.

    Source: Network In Network, arXiv 1312.4400, section 3.2; the heads of all classifiers here.
    """
    if type(x) is not torch.Tensor:
        checks.is_tensor(OP, "x", x)
    if moments is None and activation is None and backend is None:  # arguments cost time
        return _call(x)
    checks.tensors(OP, moments=moments)
    checks.backend(OP, backend)
    call = _call if type(eps) is float else _op  # which converts what is like a number, and refuses the rest
    return call(x, moments, eps, activation or "none", backend=backend)


def _check(x: Tensor, moments: Optional, activation: str) -> None:
    checks.image(OP, "x", x, FLOAT_DTYPES)
    if moments is not None:
        checks.moments(OP, moments, x, x.shape[0])
    checks.activation(OP, activation)


# --- backends ---


def _cpu_refuse(x: Tensor, moments: Optional = None, *_: object) -> str | None:
    return refuse_off_floats(x) or (None if moments is None else "it has no kernel for the mean of a norm")


def _cpu_forward(x: Tensor, moments: Optional, eps: float, activation: str) -> Tensor:
    x, size = dense(x, True), x.shape
    y = fresh(x.new_empty(size[0], size[1]))
    status = native.avg_pool(FLOAT_CODES[x.dtype], size, x.data_ptr(), y.data_ptr(), torch.get_num_threads())
    if status := status or finish_in_place(y, activation):
        raise_status(OP, status)
    return y


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse(x, FLOAT_CODES)


def _triton_forward(x: Tensor, moments: Optional, eps: float, activation: str) -> Tensor:
    x, channels_last = dense_in_own_format(x)
    y = x.new_empty(x.shape[0], x.shape[1])
    _kernels.forward(x, channels_last, moments, eps, activation, y)
    return y


def _reference_forward(x: Tensor, moments: Optional, eps: float, activation: str) -> Tensor:
    return reference.avg_pool(wide(x), joined(moments), eps, activation).to(x.dtype).contiguous()


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=_cpu_refuse),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(x: Tensor, moments: Optional = None, eps: float = 1e-5, activation: str = "none", *, backend: str | None = None) -> Tensor:
    _check(x, moments, activation)
    return choose(backend, x, moments).forward(x, moments, eps, activation)


def _forward_fake(
    x: Tensor, moments: Optional = None, eps: float = 1e-5, activation: str = "none", *, backend: str | None = None
) -> Tensor:
    _check(x, moments, activation)
    return x.new_empty(x.shape[0], x.shape[1])


def _setup(
    ctx: Any, x: Tensor, moments: Optional = None, eps: float = 1e-5, activation: str = "none", *, backend: str | None = None
) -> None:
    ctx.size, ctx.channels_last, ctx.settings = x.shape, is_channels_last(x), (moments is not None, eps, activation)
    ctx.save_for_backward(x if moments is not None or activation != "none" else None)


def _gradient(ctx: Any, dy: Tensor) -> Tensor:
    """A quotient and a copy, whatever computed the forward: plain torch, which can be differentiated again. In the memory order of x."""
    (x,) = ctx.saved_tensors
    if x is None:
        return dense(reference.avg_pool_backward(dy, ctx.size), ctx.channels_last)
    return dense(reference.avg_pool_norm_backward(wide(dy), wide(x), *ctx.settings).to(x.dtype), ctx.channels_last)


_op = register(
    OP,
    "(Tensor x, Tensor? moments=None, float eps=1e-05, str activation='none', *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
)
_call = register_autograd(_op, _forward, _setup, lambda ctx, dy: (_gradient(ctx, dy), None, None, None), tensors=2, inputs=(0, 1))
