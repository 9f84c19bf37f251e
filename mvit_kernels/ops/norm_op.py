"""What group_norm and layer_norm register alike: the op of a norm with weight and bias, and that of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import checks
from .backend import Choice
from .library import register, register_autograd, wide

Tensor = torch.Tensor


def register_norm(
    choose: Choice, check: Callable[..., None], like: Callable[[Tensor], Tensor], gradient: Callable[..., tuple[Tensor, ...]]
) -> tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    """Of the op that choose has the implementations of.

    Args:
        check: refuses (x, weight, bias), or (x, weight).
        like: what the result for x is, without its values.
        gradient: (dy, x, weight, eps) -> (dx, dweight, dbias), in plain torch.

    Returns:
        What runs a call, the op of it, and a call of the op that is quicker where nothing watches (`register_autograd`): all of (x, weight,
        bias, eps, *, backend).
    """
    op = choose.op

    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, backend: str | None = None) -> Tensor:
        check(x, weight, bias)
        y: Tensor = choose(backend, x).forward(x, weight, bias, eps)
        return y

    def forward_fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, backend: str | None = None) -> Tensor:
        check(x, weight, bias)
        return like(x)

    def backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float, backend: str | None) -> tuple[Tensor, ...]:
        check(x, weight)
        checks.like(f"{op}_backward", "dy", dy, x, x.shape)
        of_backend = choose(backend, x).backward
        assert of_backend is not None
        gradients: tuple[Tensor, ...] = of_backend(dy, x, weight, eps)
        return gradients

    def backward_fake(dy: Tensor, x: Tensor, weight: Tensor, eps: float, backend: str | None) -> tuple[Tensor, ...]:
        checks.like(f"{op}_backward", "dy", dy, x, x.shape)
        return like(x), weight.new_empty(weight.shape), weight.new_empty(weight.shape)

    forward_op = register(
        op, "(Tensor x, Tensor weight, Tensor bias, float eps=1e-05, *, str? backend=None) -> Tensor", forward, forward_fake
    )
    backward_op = register(
        f"{op}_backward",
        "(Tensor dy, Tensor x, Tensor weight, float eps, str? backend) -> (Tensor, Tensor, Tensor)",
        backward,
        backward_fake,
    )

    def setup(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, backend: str | None = None) -> None:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.bias_dtype = eps, bias.dtype
        ctx.backend = choose.backend(backend, x)  # the backward may run on another thread, outside the use_backend block of the forward

    def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
            x_wide = wide(x)
            dx, dweight, dbias = gradient(wide(dy), x_wide, weight.to(x_wide.dtype), ctx.eps)
            return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(ctx.bias_dtype), None
        dx, dweight, dbias = backward_op(dy, x, weight, ctx.eps, ctx.backend)
        return dx, dweight, dbias.to(ctx.bias_dtype), None

    return forward, forward_op, register_autograd(forward_op, forward, setup, differentiate, tensors=3)
