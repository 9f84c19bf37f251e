"""A fused layer on a map against the same layer in plain torch on the unfolded (B, d, P, N), where the reference models have it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from shapes import PATCH

from mvit_kernels import reference
from mvit_kernels.cli.timing import interleaved


@functools.cache
def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler that works."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception:  # whatever stands in its way
        return False
    return True


def compare_layer(
    in_turn: Callable[..., object], group: str, op: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor],
    weights: Sequence[torch.Tensor], size: tuple[int, int, int], operations: int,
) -> None:  # fmt: skip
    """Contenders cpu, eager in its faster memory format, and inductor where there is a compiler."""
    batch, d, side = size
    x = torch.randn(batch, d, side, side).to(memory_format=torch.channels_last)
    unfolded = reference.unfold_patches(x, PATCH)
    formats = {str(f): unfolded.contiguous(memory_format=f) for f in (torch.contiguous_format, torch.channels_last)}
    times = interleaved({name: functools.partial(plain, each, *weights) for name, each in formats.items()}, rounds=5, warmup=1, calls=1)
    faster = formats[min(times, key=lambda name: times[name].median)]
    contenders = {"cpu": functools.partial(op, x, *weights), "eager": functools.partial(plain, faster, *weights)}
    if has_compiler():
        torch._dynamo.reset()  # or it would give up on a function that it has compiled for too many sizes
        contenders["inductor"] = functools.partial(torch.compile(plain, dynamic=False), faster, *weights)
    for name, contender in contenders.items():
        actual = contender()
        actual = actual if name == "cpu" else reference.fold_patches(actual, (side, side), PATCH)
        exact = reference.fold_patches(plain(unfolded.double(), *(each.double() for each in weights)), (side, side), PATCH)
        torch.testing.assert_close(actual, exact.float(), rtol=1e-4, atol=1e-4)
    in_turn(group, contenders, calls=5, operations=operations)
