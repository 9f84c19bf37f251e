"""Dynamic ReLU (arXiv 2003.10027) as Mobile-Former has it: schema, checks, fake, backward and backends."""

from __future__ import annotations

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    dense,
    empty_in_format,
    in_channels_last,
    is_channels_last,
    raise_status,
    refuse_off_floats,
    widen,
)
from .pairs import register_pair

OP = "dynamic_relu"
_kernels = triton_support.Kernels(OP)
Tensor = torch.Tensor


def dynamic_relu(x: Tensor, u: Tensor, *, backend: str | None = None) -> Tensor:
    """max(a x, b x) with a = 1 + clip(u[:, :C]) and b = clip(u[:, C:]), clip to [-1, 1]: two slopes for each image and channel.

    Args:
        x: (B, C, H, W) float32, bfloat16, float16 or float64, at least one channel and pixel. The kernels run on channels_last memory:
            other formats are copied to it, and the result is copied back.
        u: (B, 2 C), dtype of x: what some other part of the network says. 0 makes it ReLU.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C, H, W); dtype and memory format of x. 16-bit inputs are computed in float32.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.

    Source: DY-ReLU, arXiv 2003.10027, equation 3, without intercepts; Mobile-Former, arXiv 2108.05895.
    """
    checks.all_tensors(OP, x=x, u=u)
    checks.backend(OP, backend)
    return _call(x, u, backend=backend)


def _check(x: Tensor, u: Tensor) -> None:
    checks.image(OP, "x", x, FLOAT_DTYPES)
    checks.tensor(OP, "u", u, 2)
    checks.like(OP, "u", u, x, (x.shape[0], 2 * x.shape[1]))


# --- backends ---


def _cpu_forward(x: Tensor, u: Tensor) -> Tensor:
    u = u.contiguous()

    def fill(x: Tensor, y: Tensor) -> None:
        status = native.dynamic_relu(FLOAT_CODES[x.dtype], x.shape, x.data_ptr(), u.data_ptr(), y.data_ptr(), torch.get_num_threads())
        if status:
            raise_status(OP, status)

    return in_channels_last(x, fill)


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, FLOAT_CODES)


def _triton_forward(x: Tensor, u: Tensor) -> Tensor:
    return in_channels_last(x, lambda x, y: _kernels.forward(x, u.contiguous(), y))


def _reference_forward(x: Tensor, u: Tensor) -> Tensor:
    return dense(reference.dynamic_relu(*widen(x, x, u)).to(x.dtype), is_channels_last(x))


def _reference_backward(dy: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    dx, du = reference.dynamic_relu_backward(*widen(x, dy, x, u))
    return dense(dx.to(x.dtype), is_channels_last(x)), du.to(u.dtype)


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, _reference_backward, _triton_refuse),
    cpu=Implementation(_cpu_forward, _reference_backward, refuse_off_floats),  # the gradient is a few sums: torch's
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _empty(x: Tensor) -> Tensor:
    return empty_in_format(x, tuple(x.shape), is_channels_last(x))


_call = register_pair(OP, "u", choose, _check, _empty, lambda x, u: (_empty(x), u.new_empty(u.shape)))
