"""Registration of ops of x and one other tensor, which have no settings: they are alike but for the functions that they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import checks
from .backend import Choice
from .library import register, register_autograd

Tensor = torch.Tensor


def register_pair(
    op: str, other: str, choose: Choice, check: Callable[[Tensor, Tensor], None], empty: Callable[[Tensor], Tensor],
    empty_gradients: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Callable[..., Any]:  # fmt: skip
    """How to call op(x, other, *, backend=None). other: its name in the schema; check: of both; empty: an uninitialized result for x;
    empty_gradients: likewise of both. Gradients of gradients are those of the reference."""

    def forward(x: Tensor, second: Tensor, *, backend: str | None = None) -> Tensor:
        check(x, second)
        return choose(backend, x).forward(x, second)

    def forward_fake(x: Tensor, second: Tensor, *, backend: str | None = None) -> Tensor:
        check(x, second)
        return empty(x)

    def backward(dy: Tensor, x: Tensor, second: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        check(x, second)
        checks.like(f"{op}_backward", "dy", dy, x, x.shape)
        chosen = choose(backend, x).backward
        assert chosen is not None
        return chosen(dy, x, second)

    def backward_fake(dy: Tensor, x: Tensor, second: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        checks.like(f"{op}_backward", "dy", dy, x, x.shape)
        return empty_gradients(x, second)

    forward_op = register(op, f"(Tensor x, Tensor {other}, *, str? backend=None) -> Tensor", forward, forward_fake)
    schema = f"(Tensor dy, Tensor x, Tensor {other}, str? backend) -> (Tensor, Tensor)"
    backward_op = register(f"{op}_backward", schema, backward, backward_fake)

    def setup(ctx: Any, x: Tensor, second: Tensor, *, backend: str | None = None) -> None:
        ctx.save_for_backward(x, second)
        ctx.backend = choose.backend(backend, x)  # the backward may run on another thread, outside the use_backend block of the forward

    def gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, second = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
            plain = choose.implementations["reference"].backward
            assert plain is not None
            return plain(dy, x, second)
        return backward_op(dy, x, second, ctx.backend)

    return register_autograd(forward_op, forward, setup, gradient, tensors=2, inputs=(0, 1))
