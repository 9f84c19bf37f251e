"""How EfficientFormer mixes pixels without attention (arXiv 2206.01191, section 4): schema, checks, fake, backward and backends."""

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
    single,
    widen,
)
from .pairs import register_pair

OP = "pool_mixer"
_kernels = triton_support.Kernels(OP)
Tensor = torch.Tensor


def pool_mixer(x: Tensor, scale: Tensor, *, backend: str | None = None) -> Tensor:
    """x + scale (mean(x) - x), the mean over the 3x3 neighbourhood of each pixel, at the border of those neighbours that exist.

    Args:
        x: (B, C, H, W) float32, bfloat16, float16 or float64, at least one channel and pixel. The kernels run on channels_last memory:
            other formats are copied to it, and the result is copied back.
        scale: (C,), float32 or the dtype of x.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C, H, W); dtype and memory format of x. 16-bit inputs are computed in float32.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.

    Source: EfficientFormer, arXiv 2206.01191, section 4: a pooling mixer with its residual and layer scale; PoolFormer, arXiv 2111.11418.
    """
    checks.all_tensors(OP, x=x, scale=scale)
    checks.backend(OP, backend)
    return _call(x, scale, backend=backend)


def _check(x: Tensor, scale: Tensor) -> None:
    checks.image(OP, "x", x, FLOAT_DTYPES)
    checks.channelwise(OP, "scale", scale, x, x.shape[1])


# --- backends ---


def _cpu_forward(x: Tensor, scale: Tensor) -> Tensor:
    scale = single(scale)

    def fill(x: Tensor, y: Tensor) -> None:
        status = native.pool_mixer(FLOAT_CODES[x.dtype], x.shape, x.data_ptr(), scale.data_ptr(), y.data_ptr(), torch.get_num_threads())
        if status:
            raise_status(OP, status)

    return in_channels_last(x, fill)


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, FLOAT_CODES)


def _triton_forward(x: Tensor, scale: Tensor) -> Tensor:
    return in_channels_last(x, lambda x, y: _kernels.forward(x, scale.contiguous(), y))


def _reference_forward(x: Tensor, scale: Tensor) -> Tensor:
    wide_x, wide_scale = widen(x, x, scale)
    return dense(reference.pool_mixer(wide_x, wide_scale).to(x.dtype), is_channels_last(x))


def _reference_backward(dy: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    dx, dscale = reference.pool_mixer_backward(*widen(x, dy, x, scale))
    return dense(dx.to(x.dtype), is_channels_last(x)), dscale.to(scale.dtype)


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, _reference_backward, _triton_refuse),
    cpu=Implementation(_cpu_forward, _reference_backward, refuse_off_floats),  # the gradient is a few sums: torch's
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _empty(x: Tensor) -> Tensor:
    return empty_in_format(x, tuple(x.shape), is_channels_last(x))


_call = register_pair(OP, "scale", choose, _check, _empty, lambda x, scale: (_empty(x), scale.new_empty(scale.shape)))
