"""LayerNorm over the last axis (arXiv 1607.06450, equation 4): schema, checks, fake, backward and backends."""

from __future__ import annotations

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .library import FLOAT_CODES, FLOAT_DTYPES, fresh, raise_status, refuse_off_floats, single, wide
from .norm_op import register_norm

OP = "layer_norm"
_kernels = triton_support.Kernels(OP)
_LONGEST = 8192  # channels of a row that the Triton kernels keep in registers


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5, *, backend: str | None = None) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over the last axis.

    Args:
        x: (..., C) float32, bfloat16, float16 or float64, of any strides.
        weight, bias: (C,), float32 or the dtype of x. Statistics and arithmetic are float32 (float64 of a float64 x).
        eps: added to the variance.
        backend: None for automatic choice, or the name of one.

    Returns:
        (..., C), dtype of x, contiguous.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.

    Source: Layer Normalization, arXiv 1607.06450, equation 4; the transformers of MobileViT (arXiv 2110.02178).
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
    if x.ndim == 0:
        raise ValueError(f"{OP}: x: expected at least 1 dimension, got shape ()")
    checks.tensor(OP, "x", x, x.ndim, FLOAT_DTYPES)
    channels = x.shape[-1]
    checks.channelwise(OP, "weight", weight, x, channels)
    if bias is not None:
        checks.channelwise(OP, "bias", bias, x, channels)


# --- backends ---


def _rows(x: torch.Tensor, channels: int) -> int:
    return x.numel() // channels if channels else 0


def _cpu_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x, weight, bias = x.contiguous(), single(weight), single(bias)
    y = fresh(torch.empty_like(x))
    code, channels, threads = FLOAT_CODES[x.dtype], x.shape[-1], torch.get_num_threads()
    status = native.layer_norm(
        code, _rows(x, channels), channels, x.data_ptr(), weight.data_ptr(), bias.data_ptr(), eps, y.data_ptr(), threads
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _cpu_backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    dtype = weight.dtype
    x, dy, weight = x.contiguous(), dy.contiguous(), single(weight)
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    code, channels, threads = FLOAT_CODES[x.dtype], x.shape[-1], torch.get_num_threads()
    status = native.layer_norm_backward(
        code, _rows(x, channels), channels, dy.data_ptr(), x.data_ptr(), weight.data_ptr(), eps, dx.data_ptr(), dweight.data_ptr(),
        dbias.data_ptr(), threads,
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return dx, dweight.to(dtype), dbias.to(dtype)


def _triton_refuse(x: torch.Tensor, *_: object) -> str | None:
    if x.shape[-1] > _LONGEST:
        return f"it has no kernel for rows of more than {_LONGEST} channels, got {x.shape[-1]}"
    return triton_support.refuse_rows(x, FLOAT_CODES)


def _triton_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    _kernels.forward(x, weight.contiguous(), bias.contiguous(), eps, y)
    return y


def _triton_backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    x = x.contiguous()
    dx = torch.empty_like(x)
    dweight, dbias = _kernels.backward(dy.contiguous(), x, weight.contiguous(), eps, dx)
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype)


def _reference_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x_wide = wide(x)
    return reference.layer_norm(x_wide, weight.to(x_wide.dtype), bias.to(x_wide.dtype), eps).to(x.dtype).contiguous()


def _reference_backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    x_wide = wide(x)
    dx, dweight, dbias = reference.layer_norm_backward(wide(dy), x_wide, weight.to(x_wide.dtype), eps)
    return dx.to(x.dtype).contiguous(), dweight.to(weight.dtype), dbias.to(weight.dtype)


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, _triton_backward, _triton_refuse),
    cpu=Implementation(_cpu_forward, _cpu_backward, refuse_off_floats),
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---

_forward, _forward_op, _call = register_norm(choose, _check, lambda x: x.new_empty(x.shape), reference.layer_norm_backward)
