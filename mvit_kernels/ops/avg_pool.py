"""Global average pooling (arXiv 1312.4400, section 3.2): schema, checks, fake, backward and backends."""

from __future__ import annotations

from typing import Any

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation, native
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

OP = "avg_pool"
_kernels = triton_support.Kernels(OP)
Tensor = torch.Tensor


def avg_pool(x: Tensor, *, backend: str | None = None) -> Tensor:
    """The mean of each channel over all pixels of a map.

    Args:
        x: (B, C, H, W) float32, bfloat16, float16 or float64, at least one channel and pixel. The CPU kernel runs on channels_last memory,
            Triton's on dense NCHW too: other strides are copied.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C), dtype of x, contiguous. Sums are float32 (float64 of a float64 x).

    Raises:
        TypeError, ValueError: x of another rank or dtype or without pixels, or the requested backend cannot take it.

    Source: Network In Network, arXiv 1312.4400, section 3.2; the heads of all classifiers here.
    """
    if type(x) is not torch.Tensor:
        checks.is_tensor(OP, "x", x)
    if backend is None:  # a keyword costs time
        return _call(x)
    checks.backend(OP, backend)
    return _call(x, backend=backend)


def _check(x: Tensor) -> None:
    checks.image(OP, "x", x, FLOAT_DTYPES)


# --- backends ---


def _cpu_forward(x: Tensor) -> Tensor:
    x, size = dense(x, True), x.shape
    y = fresh(x.new_empty(size[0], size[1]))
    status = native.avg_pool(FLOAT_CODES[x.dtype], size, x.data_ptr(), y.data_ptr(), torch.get_num_threads())
    if status:
        raise_status(OP, status)
    return y


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse(x, FLOAT_CODES)


def _triton_forward(x: Tensor) -> Tensor:
    x, channels_last = dense_in_own_format(x)
    y = x.new_empty(x.shape[0], x.shape[1])
    _kernels.forward(x, channels_last, y)
    return y


def _reference_forward(x: Tensor) -> Tensor:
    return reference.avg_pool(wide(x)).to(x.dtype).contiguous()


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_floats),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(x: Tensor, *, backend: str | None = None) -> Tensor:
    _check(x)
    return choose(backend, x).forward(x)


def _forward_fake(x: Tensor, *, backend: str | None = None) -> Tensor:
    _check(x)
    return x.new_empty(x.shape[0], x.shape[1])


def _setup(ctx: Any, x: Tensor, *, backend: str | None = None) -> None:
    ctx.size, ctx.channels_last = x.shape, is_channels_last(x)


def _gradient(ctx: Any, dy: Tensor) -> Tensor:
    """A quotient and a copy, whatever computed the forward: plain torch, which can be differentiated again. In the memory order of x."""
    return dense(reference.avg_pool_backward(dy, ctx.size), ctx.channels_last)


_op = register(OP, "(Tensor x, *, str? backend=None) -> Tensor", _forward, _forward_fake)
_call = register_autograd(_op, _forward, _setup, lambda ctx, dy: (_gradient(ctx, dy),))
