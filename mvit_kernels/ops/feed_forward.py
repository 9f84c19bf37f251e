"""The feed-forward half of a transformer layer in one pass: schema, checks, fake, backward and backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mvit_kernels import reference
from mvit_kernels.messages import shown

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .group_norm import choose as choose_group_norm
from .group_norm import triton_steps
from .layer_norm import choose as choose_layer_norm
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    dense,
    empty_in_format,
    empty_moments,
    is_channels_last,
    narrow,
    raise_status,
    refuse_off_floats,
    register,
    register_autograd,
    wide,
    wide_dtype,
    widen,
)
from .packing import Packed, by_dtype, fold_norm, pack_matrix, pack_normed, packed

OP = "feed_forward"
_kernels = triton_support.Kernels(OP)
NORMS = ("group", "layer")
Tensor = torch.Tensor
Optional = torch.Tensor | None


def feed_forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, eps: float = 1e-5, *,
    norm: str = "group", activation: str | None = "silu", moments: Tensor | None = None, collect: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """x + fc2(act(fc1(norm(x)))) at every position, with neither the norm nor the hidden map in memory.

    Args:
        x: (B, d, H, W) or (B, d, P, N) float32, bfloat16, float16 or float64; channels_last runs in place, other formats are copied.
        norm_w, norm_b: (d,); fc1_w (h, d) or (h, d, 1, 1), fc1_b (h,); fc2_w (d, h) or (d, h, 1, 1), fc2_b (d,): float32 or the dtype of x.
        norm: "group", GroupNorm with one group (MobileViTv2), or "layer", LayerNorm of each position over its channels (MobileViT).
        activation: None, "relu", "silu", "gelu", "relu6" or "hard_swish".
        moments: (B, 2) float64, mean and variance of each image of x, if they are known; with norm="group" only. The gradient is that of
            the layer, in which they depend on x.
        collect: also give the moments of y.
        backend: None for automatic choice, or the name of one.

    Returns:
        y, of the shape, dtype and memory format of x; with `collect`, (y, moments (B, 2) float64).
        Of bfloat16, what products take is rounded to it: weights, normalized and hidden values. Sums are float32.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.

    Source: MobileViT, arXiv 2110.02178, section 3.1; MobileViTv2, arXiv 2206.02680, section 3.
    """
    checks.all_tensors(OP, x=x, norm_w=norm_w, norm_b=norm_b, fc1_w=fc1_w, fc1_b=fc1_b, fc2_w=fc2_w, fc2_b=fc2_b)
    checks.tensors(OP, moments=moments)
    checks.backend(OP, backend)
    call = _call if type(eps) is float else _forward_op  # which converts what is like a number, and refuses the rest
    y, collected = call(x, norm_w, norm_b, fc1_w, fc1_b, fc2_w, fc2_b, moments, eps, norm, activation or "none", collect, backend=backend)
    return (y, collected) if collect else y


def _check(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, moments: Optional, norm: str,
    activation: str,
) -> None:  # fmt: skip
    checks.tensor(OP, "x", x, 4, FLOAT_DTYPES)
    dim, hidden = x.shape[1], fc1_w.shape[0] if fc1_w.ndim else 0
    checks.parameter(OP, "norm_w", norm_w, 1, x, (dim,))
    checks.parameter(OP, "norm_b", norm_b, 1, x, (dim,))
    checks.matrix(OP, "fc1_w", fc1_w, x, (hidden, dim))
    checks.parameter(OP, "fc1_b", fc1_b, 1, x, (hidden,))
    checks.matrix(OP, "fc2_w", fc2_w, x, (dim, hidden))
    checks.parameter(OP, "fc2_b", fc2_b, 1, x, (dim,))
    if norm not in NORMS:
        raise ValueError(f"{OP}: norm: expected one of {', '.join(NORMS)}, got {shown(norm)}")
    if moments is not None:
        if norm != "group":
            raise ValueError(f"{OP}: moments: expected None with norm='layer', got a tensor")
        checks.moments(OP, moments, x, x.shape[0])
    checks.activation(OP, activation)


# --- backends ---


def _pack(
    norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, *, dtype: torch.dtype
) -> tuple[Packed, Packed]:
    return pack_normed(norm_w, norm_b, fc1_w, fc1_b, dtype), pack_matrix(fc2_w.flatten(1), fc2_b, dtype)


_PACK = by_dtype(_pack)


def _cpu_forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, moments: Optional, eps: float,
    norm: str, activation: str, collect: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    first, second = packed(_PACK[x.dtype], norm_w, norm_b, fc1_w, fc1_b, fc2_w, fc2_b)
    channels_last, (batch, dim, height, width) = is_channels_last(x), x.shape
    x = dense(x, True)
    y = empty_in_format(x, (batch, dim, height, width), True)
    if moments is not None:
        moments = moments.contiguous()
    collected = empty_moments(batch if collect else 0, y)
    status = native.feed_forward(
        FLOAT_CODES[x.dtype], batch, height * width, dim, fc1_w.shape[0], first.weight.data_ptr(), first.bias.data_ptr(),
        second.weight.data_ptr(), second.bias.data_ptr(), norm == "layer", 0 if moments is None else moments.data_ptr(), eps,
        reference.ACTIVATIONS.index(activation), x.data_ptr(), y.data_ptr(), collected.data_ptr() if collect else 0,
        torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return dense(y, channels_last), collected


def _cpu_backward(dy: Tensor, x: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
    (*_, norm, _) = parameters
    kernel = choose_group_norm.implementations["cpu"]
    return _composed_backward(widen, dy, x, *parameters, steps=(reference.group_norm, kernel.backward) if norm == "group" else None)


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, FLOAT_CODES)


@dataclass(frozen=True)
class _TritonWeights:
    """The recipe of `mvit_kernels.triton_kernels.feed_forward.Weights` for x of that dtype."""

    dtype: torch.dtype

    def __call__(self, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor) -> Any:
        return _kernels.arrange(*fold_norm(norm_w, norm_b, fc1_w, fc1_b), fc2_w.flatten(1), fc2_b, self.dtype)


def _triton_forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, moments: Optional, eps: float,
    norm: str, activation: str, collect: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    weights = packed(_TritonWeights(x.dtype), norm_w, norm_b, fc1_w, fc1_b, fc2_w, fc2_b)
    channels_last = is_channels_last(x)
    x = dense(x, True)
    y = empty_in_format(x, tuple(x.shape), True)
    collected = _kernels.forward(
        x, weights, y, layer_norm=norm == "layer", moments=moments, eps=eps, activation=activation, collect=collect
    )  # fmt: skip
    return dense(y, channels_last), collected


def _triton_backward(dy: Tensor, x: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
    """The norm by its kernels, what is done to single values by torch's, both in float32; products in the dtype of x."""
    (*_, moments, _, norm, _) = parameters
    return _composed_backward(narrow, dy, x, *parameters, steps=triton_steps(x, moments) if norm == "group" else _steps_of_rows(x))


def _steps_of_rows(x: Tensor) -> tuple[Any, Any]:
    """LayerNorm of the pixels of x, and its gradient."""
    rows = choose_layer_norm.implementations["triton"]
    if rows.refuse(x.movedim(1, -1)) is not None:  # longer than its registers
        rows = choose_layer_norm.implementations["reference"]

    def backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, ...]:
        assert rows.backward is not None
        dx, dweight, dbias = rows.backward(dy.movedim(1, -1), x.movedim(1, -1), weight, eps)
        return dx.movedim(-1, 1) + residual, dweight, dbias

    return lambda x, *parameters: rows.forward(x.movedim(1, -1), *parameters).movedim(-1, 1), backward


def _reference_forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, moments: Optional, eps: float,
    norm: str, activation: str, collect: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    arguments = [*widen(x, x, norm_w, norm_b, fc1_w, fc1_b, fc2_w, fc2_b), eps]
    y = dense(reference.feed_forward(*arguments, norm=norm, activation=activation).to(x.dtype), is_channels_last(x))
    collected = reference.moments_of(y, y.shape[0]) if collect else torch.empty(0, 2, dtype=torch.float64, device=x.device)
    return y, collected


def _reference_backward(dy: Tensor, x: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
    return _composed_backward(widen, dy, x, *parameters)


def _composed_backward(
    cast: Callable[..., list[Any]], dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor,
    moments: Optional, eps: float, norm: str, activation: str, *, steps: Any = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """cast: `widen` or `narrow`, of all tensors but the norm's, which is in float32. moments: of x, for who takes them."""
    dy, x, fc1_w, fc1_b, fc2_w = cast(x, dy, x, fc1_w, fc1_b, fc2_w)
    arguments = dy, x, *widen(x, norm_w, norm_b), fc1_w, fc1_b, fc2_w, eps
    dx, *gradients = reference.feed_forward_backward(*arguments, norm=norm, activation=activation, steps=steps)
    return dense(dx.to(x.dtype), is_channels_last(x)), *map(wide, gradients)


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, _triton_backward, _triton_refuse),
    cpu=Implementation(_cpu_forward, _cpu_backward, refuse_off_floats),
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, moments: Optional = None,
    eps: float = 1e-5, norm: str = "group", activation: str = "silu", collect: bool = False, *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(x, norm_w, norm_b, fc1_w, fc1_b, fc2_w, fc2_b, moments, norm, activation)
    return choose(backend, x).forward(x, norm_w, norm_b, fc1_w, fc1_b, fc2_w, fc2_b, moments, eps, norm, activation, collect)


def _forward_fake(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, moments: Optional = None,
    eps: float = 1e-5, norm: str = "group", activation: str = "silu", collect: bool = False, *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(x, norm_w, norm_b, fc1_w, fc1_b, fc2_w, fc2_b, moments, norm, activation)
    y = empty_in_format(x, tuple(x.shape), is_channels_last(x))
    return y, x.new_empty(x.shape[0] if collect else 0, 2, dtype=torch.float64)


def _backward(
    dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, moments: Optional, eps: float,
    norm: str, activation: str, backend: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    checks.like(f"{OP}_backward", "dy", dy, x, x.shape)
    backward = choose(backend, x).backward
    assert backward is not None
    return backward(dy, x, norm_w, norm_b, fc1_w, fc1_b, fc2_w, moments, eps, norm, activation)


def _backward_fake(
    dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, *_: object
) -> tuple[Tensor, ...]:
    dx = empty_in_format(x, tuple(x.shape), is_channels_last(x))
    return dx, *(x.new_empty(each.shape, dtype=wide_dtype(x)) for each in (norm_w, norm_b, fc1_w, fc1_b, fc2_w, norm_w))


_forward_op = register(
    OP,
    "(Tensor x, Tensor norm_w, Tensor norm_b, Tensor fc1_w, Tensor fc1_b, Tensor fc2_w, Tensor fc2_b, Tensor? moments=None,"
    " float eps=1e-05, str norm='group', str activation='silu', bool collect=False, *, str? backend=None) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = register(
    f"{OP}_backward",
    "(Tensor dy, Tensor x, Tensor norm_w, Tensor norm_b, Tensor fc1_w, Tensor fc1_b, Tensor fc2_w, Tensor? moments, float eps, str norm,"
    " str activation, str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup(
    ctx: Any, x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor,
    moments: Optional = None, eps: float = 1e-5, norm: str = "group", activation: str = "silu", collect: bool = False, *,
    backend: str | None = None,
) -> None:  # fmt: skip
    ctx.save_for_backward(x, norm_w, norm_b, fc1_w, fc1_b, fc2_w, moments)
    ctx.settings = eps, norm, activation
    ctx.dtypes = [each.dtype for each in (x, norm_w, norm_b, fc1_w, fc1_b, fc2_w, fc2_b)]
    ctx.backend = choose.backend(backend, x)  # the backward may run on another thread, outside the use_backend block of the forward


def _gradient(ctx: Any, dy: Tensor, _: object) -> tuple[Optional, ...]:
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        gradients = _reference_backward(dy, *ctx.saved_tensors, *ctx.settings)
    else:
        gradients = _backward_op(dy, *ctx.saved_tensors, *ctx.settings, ctx.backend)
    return *(each.to(dtype) for each, dtype in zip(gradients, ctx.dtypes, strict=True)), None, None, None, None, None


_call = register_autograd(_forward_op, _forward, _setup, _gradient, tensors=8, inputs=(0, 7))
