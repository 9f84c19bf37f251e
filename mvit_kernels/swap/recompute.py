"""Fused forwards of modules in evaluation, with the gradient of the original ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Forward = Callable[[torch.Tensor], torch.Tensor]


def evaluate(
    module: nn.Module, x: torch.Tensor, fused: Callable[[torch.Tensor, Any], torch.Tensor], original: Forward, parts: Any
) -> torch.Tensor:
    """fused(x, parts), which computes what original(x) does.

    Where a gradient is wanted, the backward runs `original` again and differentiates it.
    Folded and packed weights are kept from call to call and know no gradient; evaluation seldom wants one. A compiled or exported graph
    holds the fused ops with their own gradients instead.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return fused(x, parts)
    parameters = [each for each in module.parameters() if each.requires_grad]
    if not parameters and not x.requires_grad:
        return fused(x, parts)
    return _Recomputed.apply(lambda x: fused(x, parts), original, x, *parameters)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Forward, original: Forward, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.original = original
        ctx.save_for_backward(x, *parameters)  # whose changes before the backward are then an error, as everywhere
        return fused(x)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        again = torch.is_grad_enabled()  # create_graph=True
        x, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            start = x if again else x.detach().requires_grad_(x.requires_grad)
            y = ctx.original(start)
        wanted = [each for each in (start, *parameters) if each.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=again, allow_unused=True))
        return None, None, *(next(found) if each.requires_grad else None for each in (start, *parameters))
