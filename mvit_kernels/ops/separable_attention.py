"""Separable self-attention of MobileViTv2 (arXiv 2206.02680, equation 3): schema, checks, fake, backward and backends."""

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
    empty_in_format,
    in_format,
    is_channels_last,
    raise_status,
    refuse_off_floats,
    register,
    register_autograd,
    walkable,
    wide,
)

OP = "separable_attention"
_kernels = triton_support.Kernels(OP)
_NO_PATCH = (0, 0)


def separable_attention(qkv: torch.Tensor, patch_size: tuple[int, int] | None = None, *, backend: str | None = None) -> torch.Tensor:
    """y[:, c, p, n] = relu(v[:, c, p, n]) * sum_m softmax_m(q[:, p, m]) * k[:, c, p, m].

    Args:
        qkv: (B, 1 + 2d, P, N), channels in the order q (1), k (d), v (d): P pixel phases of N positions. float32, bfloat16, float16
            or float64; contiguous, channels_last or any other strides. 16-bit inputs are computed in float32.
        patch_size: (ph, pw) makes qkv a map (B, 1 + 2d, H, W) with H and W multiples of it, and attention stays inside each of its
            ph * pw pixel phases. No unfolded copy is made.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, d, P, N), or (B, d, H, W) of a map; dtype and memory format of qkv.

    Raises:
        TypeError, ValueError: qkv is no tensor of that rank, dtype or channel count, or the requested backend cannot take it.

    Source: MobileViTv2, arXiv 2206.02680, section 3, equation 3.
    """
    if type(qkv) is not torch.Tensor:
        checks.is_tensor(OP, "qkv", qkv)
    if patch_size is not None:
        checks.pair(OP, "patch_size", patch_size)
    if backend is None:
        return _call(qkv, patch_size)
    checks.backend(OP, backend)
    return _call(qkv, patch_size, backend=backend)


def _check(op: str, qkv: torch.Tensor, patch_size: list[int] | None) -> tuple[int, int] | None:
    checks.tensor(op, "qkv", qkv, 4, FLOAT_DTYPES)
    if qkv.shape[1] % 2 == 0:
        raise ValueError(f"{op}: qkv: expected an odd number of channels 1 + 2d, got {qkv.shape[1]}")
    if patch_size is None:
        return None
    patch = checks.patch_size(op, patch_size)
    checks.whole_patches(op, "qkv", qkv.shape[2], qkv.shape[3], patch)
    return patch


def _size(qkv: torch.Tensor) -> tuple[int, ...]:
    batch, channels, height, width = qkv.shape
    return batch, channels // 2, height, width


# --- backends ---


def _cpu_refuse(qkv: torch.Tensor, patch: tuple[int, int] | None) -> str | None:
    if (reason := refuse_off_floats(qkv)) is not None:
        return reason
    if patch is not None and patch[1] not in (1, 2, 4, 8) and not is_channels_last(qkv):
        return f"a map that is not channels_last needs patches 1, 2, 4 or 8 wide, got {patch[1]}"
    return None


# The kernels walk either format, in one call the same one for every tensor; other strides are copied first.


def _cpu_forward(qkv: torch.Tensor, patch: tuple[int, int] | None) -> torch.Tensor:
    qkv, stride, channels_last = walkable(qkv)
    size = qkv.shape
    y = empty_in_format(qkv, (size[0], size[1] // 2, size[2], size[3]), channels_last)
    code, threads = FLOAT_CODES[qkv.dtype], torch.get_num_threads()
    status = native.separable_attention(
        code, size, patch or _NO_PATCH, qkv.data_ptr(), stride, y.data_ptr(), y.stride(), threads
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _cpu_backward(dy: torch.Tensor, qkv: torch.Tensor, patch: tuple[int, int] | None) -> torch.Tensor:
    channels_last = is_channels_last(qkv)
    qkv, dy = in_format(qkv, channels_last), in_format(dy, channels_last)
    dqkv = empty_in_format(qkv, tuple(qkv.shape), channels_last)
    code, threads = FLOAT_CODES[qkv.dtype], torch.get_num_threads()
    status = native.separable_attention_backward(
        code, qkv.shape, patch or _NO_PATCH, qkv.data_ptr(), qkv.stride(), dy.data_ptr(), dy.stride(),
        dqkv.data_ptr(), dqkv.stride(), threads,
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return dqkv


def _triton_refuse(qkv: torch.Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(qkv, FLOAT_CODES)


def _triton_forward(qkv: torch.Tensor, patch: tuple[int, int] | None) -> torch.Tensor:
    y = empty_in_format(qkv, _size(qkv), is_channels_last(qkv))
    _kernels.forward(qkv, y, patch)
    return y


def _triton_backward(dy: torch.Tensor, qkv: torch.Tensor, patch: tuple[int, int] | None) -> torch.Tensor:
    dqkv = empty_in_format(qkv, tuple(qkv.shape), is_channels_last(qkv))
    _kernels.backward(dy, qkv, dqkv, patch)
    return dqkv


def _reference_forward(qkv: torch.Tensor, patch: tuple[int, int] | None) -> torch.Tensor:
    return dense(reference.separable_attention(wide(qkv), patch).to(qkv.dtype), is_channels_last(qkv))


def _reference_backward(dy: torch.Tensor, qkv: torch.Tensor, patch: tuple[int, int] | None) -> torch.Tensor:
    return dense(reference.separable_attention_backward(wide(dy), wide(qkv), patch).to(qkv.dtype), is_channels_last(qkv))


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, _triton_backward, _triton_refuse),
    cpu=Implementation(_cpu_forward, _cpu_backward, _cpu_refuse),
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _forward(qkv: torch.Tensor, patch_size: list[int] | None = None, *, backend: str | None = None) -> torch.Tensor:
    patch = _check(OP, qkv, patch_size)
    return choose(backend, qkv, patch).forward(qkv, patch)


def _forward_fake(qkv: torch.Tensor, patch_size: list[int] | None = None, *, backend: str | None = None) -> torch.Tensor:
    _check(OP, qkv, patch_size)
    return empty_in_format(qkv, _size(qkv), is_channels_last(qkv))


def _backward(dy: torch.Tensor, qkv: torch.Tensor, patch_size: list[int] | None, backend: str | None) -> torch.Tensor:
    patch = _check(OP, qkv, patch_size)
    checks.like(f"{OP}_backward", "dy", dy, qkv, _size(qkv))
    backward = choose(backend, qkv, patch).backward
    assert backward is not None
    return backward(dy, qkv, patch)


def _backward_fake(dy: torch.Tensor, qkv: torch.Tensor, patch_size: list[int] | None, backend: str | None) -> torch.Tensor:
    checks.like(f"{OP}_backward", "dy", dy, qkv, _size(qkv))
    return empty_in_format(qkv, tuple(qkv.shape), is_channels_last(qkv))


_forward_op = register(OP, "(Tensor qkv, int[]? patch_size=None, *, str? backend=None) -> Tensor", _forward, _forward_fake)
_backward_op = register(f"{OP}_backward", "(Tensor dy, Tensor qkv, int[]? patch_size, str? backend) -> Tensor", _backward, _backward_fake)


def _setup(ctx: Any, qkv: torch.Tensor, patch_size: list[int] | None = None, *, backend: str | None = None) -> None:
    ctx.save_for_backward(qkv)
    ctx.patch_size = patch_size
    # The backward may run on another thread, outside the use_backend block of the forward.
    ctx.backend = choose.backend(backend, qkv, patch_size)


def _gradient(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (qkv,) = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        return reference.separable_attention_backward(wide(dy), wide(qkv), ctx.patch_size).to(qkv.dtype), None
    return _backward_op(dy, qkv, ctx.patch_size, ctx.backend), None


_call = register_autograd(_forward_op, _forward, _setup, _gradient)
