"""Softmax attention of MobileViT inside pixel phases (arXiv 2110.02178, section 3.1): schema, checks, fake, backward and backends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from mvit_kernels import reference
from mvit_kernels.messages import shown
from mvit_kernels.reference.patch_attention import default_scale

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    dense,
    empty_in_format,
    in_format,
    is_channels_last,
    raise_status,
    refuse_off_floats,
    register,
    register_autograd,
    wide,
)

OP = "patch_attention"
_kernels = triton_support.Kernels(OP)
_WIDEST_HEAD = 128  # channels that the Triton kernels keep in registers


def patch_attention(
    qkv: torch.Tensor, heads: int, patch_size: tuple[int, int] = (2, 2), scale: float | None = None, *, backend: str | None = None
) -> torch.Tensor:
    """y[n] = sum_m softmax_m(scale q[n].k[m]) v[m] among the pixels of a phase, in each head. No unfolded copy is made.

    Pixel (y, x) belongs to phase (y % ph) * pw + x % pw; a head has c = d / heads channels.

    Args:
        qkv: (B, 3d, H, W), channels in the order q (d), k (d), v (d); H and W are multiples of the patch. float32, bfloat16, float16 or
            float64; contiguous, channels_last or any other strides. 16-bit inputs are computed in float32, but where tensor cores,
            AVX512-BF16 or AMX multiply them: what these take is in 16 bits. The cpu kernels run on channels_last memory: other formats are
            copied to it, and the result is copied back.
        heads: how many; they divide d.
        patch_size: (ph, pw); (1, 1) is attention among all pixels.
        scale: a finite number; None is c^-0.5.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, d, H, W); dtype and memory format of qkv.

    Raises:
        TypeError, ValueError: qkv is no tensor of that rank, dtype or channel count, heads, patch_size or scale do not fit, or the
            requested backend cannot take it.

    Source: MobileViT, arXiv 2110.02178, section 3.1; attention: arXiv 1706.03762, equation 1.
    """
    if type(qkv) is not torch.Tensor:
        checks.is_tensor(OP, "qkv", qkv)
    if type(heads) is not int:
        _is_integer(heads)
    checks.pair(OP, "patch_size", patch_size)
    if scale is not None and type(scale) is not float:
        _is_number(scale)
    call = _call if scale is None or type(scale) is float else _forward_op  # which converts what is like a number
    if backend is None:  # a keyword costs time
        return call(qkv, heads, patch_size, scale)
    checks.backend(OP, backend)
    return call(qkv, heads, patch_size, scale, backend=backend)


def _is_integer(heads: Any) -> None:
    if isinstance(heads, bool) or not isinstance(heads, (int, torch.SymInt)):
        raise TypeError(f"{OP}: heads: expected an integer, got {shown(heads)}")


def _is_number(scale: Any) -> None:
    if isinstance(scale, bool) or not isinstance(scale, (int, float, torch.SymFloat)):
        raise TypeError(f"{OP}: scale: expected a number or None, got {shown(scale)}")


def _check(op: str, qkv: torch.Tensor, heads: int, patch_size: Sequence[int], scale: float | None) -> tuple[int, int]:
    checks.tensor(op, "qkv", qkv, 4, FLOAT_DTYPES)
    if heads < 1:
        raise ValueError(f"{op}: heads: expected at least 1, got {heads}")
    if qkv.shape[1] % (3 * heads) != 0:
        raise ValueError(f"{op}: qkv: expected channels that are a multiple of 3 * heads = {3 * heads}, got {qkv.shape[1]}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{op}: scale: expected a finite number, got {scale}")
    patch = checks.patch_size(op, patch_size)
    checks.whole_patches(op, "qkv", qkv.shape[2], qkv.shape[3], patch)
    return patch


def _size(qkv: torch.Tensor) -> tuple[int, ...]:
    batch, channels, height, width = qkv.shape
    return batch, channels // 3, height, width


# --- backends ---


def _factor(qkv: torch.Tensor, heads: int, scale: float | None) -> float:
    return default_scale(qkv.shape[1] // 3, heads) if scale is None else scale


# The kernels walk channels_last memory; other formats are copied to it and back.


def _cpu_forward(qkv: torch.Tensor, heads: int, patch: tuple[int, int], scale: float | None) -> torch.Tensor:
    channels_last, size = is_channels_last(qkv), _size(qkv)
    qkv = in_format(qkv, True)
    y = empty_in_format(qkv, size, True)
    code, threads = FLOAT_CODES[qkv.dtype], torch.get_num_threads()
    status = native.patch_attention(
        code, qkv.shape, heads, patch, _factor(qkv, heads, scale), qkv.data_ptr(), qkv.stride(), y.data_ptr(), y.stride(), threads
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y if channels_last else dense(y, False)


def _cpu_backward(dy: torch.Tensor, qkv: torch.Tensor, heads: int, patch: tuple[int, int], scale: float | None) -> torch.Tensor:
    channels_last = is_channels_last(qkv)
    qkv, dy = in_format(qkv, True), in_format(dy, True)
    dqkv = empty_in_format(qkv, tuple(qkv.shape), True)
    code, threads = FLOAT_CODES[qkv.dtype], torch.get_num_threads()
    status = native.patch_attention_backward(
        code, qkv.shape, heads, patch, _factor(qkv, heads, scale), qkv.data_ptr(), qkv.stride(), dy.data_ptr(), dy.stride(),
        dqkv.data_ptr(), dqkv.stride(), threads,
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return dqkv if channels_last else dense(dqkv, False)


def _triton_refuse(qkv: torch.Tensor, heads: int, *_: object) -> str | None:
    if qkv.shape[1] // (3 * heads) > _WIDEST_HEAD:
        return f"it has no kernel for heads of more than {_WIDEST_HEAD} channels, got {qkv.shape[1] // (3 * heads)}"
    return triton_support.refuse_rows(qkv, FLOAT_CODES)


def _triton_forward(qkv: torch.Tensor, heads: int, patch: tuple[int, int], scale: float | None) -> torch.Tensor:
    y = empty_in_format(qkv, _size(qkv), is_channels_last(qkv))
    _kernels.forward(qkv, heads, patch, _factor(qkv, heads, scale), y)
    return y


def _triton_backward(dy: torch.Tensor, qkv: torch.Tensor, heads: int, patch: tuple[int, int], scale: float | None) -> torch.Tensor:
    dqkv = empty_in_format(qkv, tuple(qkv.shape), is_channels_last(qkv))
    _kernels.backward(dy, qkv, heads, patch, _factor(qkv, heads, scale), dqkv)
    return dqkv


def _reference_forward(qkv: torch.Tensor, heads: int, patch: tuple[int, int], scale: float | None) -> torch.Tensor:
    transformed = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    attention = reference.patch_attention if transformed else reference.patch_attention_fused
    return dense(attention(wide(qkv), heads, patch, scale).to(qkv.dtype), is_channels_last(qkv))


def _reference_backward(dy: torch.Tensor, qkv: torch.Tensor, heads: int, patch: tuple[int, int], scale: float | None) -> torch.Tensor:
    grad = reference.patch_attention_backward(wide(dy), wide(qkv), heads, patch, scale)
    return dense(grad.to(qkv.dtype), is_channels_last(qkv))


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, _triton_backward, _triton_refuse),
    cpu=Implementation(_cpu_forward, _cpu_backward, refuse_off_floats),
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _forward(
    qkv: torch.Tensor, heads: int, patch_size: Sequence[int] = (2, 2), scale: float | None = None, *, backend: str | None = None
) -> torch.Tensor:
    patch = _check(OP, qkv, heads, patch_size, scale)
    return choose(backend, qkv, heads, patch, scale).forward(qkv, heads, patch, scale)


def _forward_fake(
    qkv: torch.Tensor, heads: int, patch_size: Sequence[int] = (2, 2), scale: float | None = None, *, backend: str | None = None
) -> torch.Tensor:
    _check(OP, qkv, heads, patch_size, scale)
    return empty_in_format(qkv, _size(qkv), is_channels_last(qkv))


def _backward(
    dy: torch.Tensor, qkv: torch.Tensor, heads: int, patch_size: Sequence[int], scale: float | None, backend: str | None
) -> torch.Tensor:
    patch = _check(OP, qkv, heads, patch_size, scale)
    checks.like(f"{OP}_backward", "dy", dy, qkv, _size(qkv))
    backward = choose(backend, qkv, heads, patch, scale).backward
    assert backward is not None
    return backward(dy, qkv, heads, patch, scale)


def _backward_fake(
    dy: torch.Tensor, qkv: torch.Tensor, heads: int, patch_size: Sequence[int], scale: float | None, backend: str | None
) -> torch.Tensor:
    checks.like(f"{OP}_backward", "dy", dy, qkv, _size(qkv))
    return empty_in_format(qkv, tuple(qkv.shape), is_channels_last(qkv))


_forward_op = register(
    OP,
    "(Tensor qkv, int heads, int[] patch_size=[2, 2], float? scale=None, *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
)
_backward_op = register(
    f"{OP}_backward",
    "(Tensor dy, Tensor qkv, int heads, int[] patch_size, float? scale, str? backend) -> Tensor",
    _backward,
    _backward_fake,
)


def _setup(
    ctx: Any, qkv: torch.Tensor, heads: int, patch_size: Sequence[int] = (2, 2), scale: float | None = None, *, backend: str | None = None
) -> None:
    ctx.save_for_backward(qkv)
    ctx.arguments = heads, patch_size, scale
    # The backward may run on another thread, outside the use_backend block of the forward.
    ctx.backend = choose.backend(backend, qkv, heads, patch_size, scale)


def _gradient(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (qkv,) = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        return reference.patch_attention_backward(wide(dy), wide(qkv), *ctx.arguments).to(qkv.dtype), None, None, None
    return _backward_op(dy, qkv, *ctx.arguments, ctx.backend), None, None, None


_call = register_autograd(_forward_op, _forward, _setup, _gradient)
