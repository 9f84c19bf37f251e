"""attention as EfficientFormer l1, V2 s0 and Mobile-Former 96M need it at 224 x 224, beside scaled_dot_product_attention, or plain torch
where heads talk."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from mvit_kernels import ops, reference


class Shape(NamedTuple):
    """Queries, keys, heads, channels of a query and of a value in each head; whether scores and weights are mixed, and have a bias."""

    where: str
    queries: int
    keys: int
    heads: int
    depth: int
    value_depth: int
    talking: bool
    biased: bool = True

    def __str__(self) -> str:
        return f"{self.where} {self.queries}x{self.keys} of {self.heads} heads, {self.depth} and {self.value_depth} channels"

    def tensors(self, batch: int) -> list[torch.Tensor]:
        """Queries, keys and values."""
        sizes = (self.queries, self.depth), (self.keys, self.depth), (self.keys, self.value_depth)
        return [torch.randn(batch, rows, self.heads * channels) for rows, channels in sizes]

    def mixtures(self) -> dict[str, torch.Tensor]:
        sizes: dict[str, tuple[int, ...]] = {"bias": (self.heads, self.queries, self.keys)} if self.biased else {}
        if self.talking:
            sizes |= {"mix_scores": (self.heads, self.heads), "mix_weights": (self.heads, self.heads), "mix_bias": (self.heads,)}
        return {name: torch.randn(size) / self.heads**0.5 for name, size in sizes.items()}

    def operations(self, batch: int) -> int:
        """Of products and mixtures, without exponentials (csrc/cpu/ops/attention.h)."""
        pairs = batch * self.queries * self.keys * self.heads
        return 2 * pairs * (self.depth + self.value_depth) + self.talking * 4 * self.heads * pairs


SHAPES = [
    Shape("l1 stage 4", 49, 49, 8, 32, 128, False),
    Shape("s0 stages 3 and 4", 49, 49, 8, 32, 128, True),
    Shape("s0 between them", 49, 196, 8, 16, 64, False),
    Shape("96M first map to tokens", 4, 12544, 2, 6, 6, False, False),
    Shape("96M map to tokens", 4, 784, 2, 16, 16, False, False),
    Shape("96M tokens to map", 3136, 4, 2, 8, 8, False, False),
]


def by_torch(q, k, v, heads, bias=None, mix_scores=None, mix_weights=None, mix_bias=None):
    if mix_scores is not None:
        scale = (q.shape[2] // heads) ** -0.5
        return reference.attention(q, k, v, heads, scale, reference.Mixtures(bias, mix_scores, mix_weights, mix_bias))
    apart = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*apart, attn_mask=bias).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(in_turn, native, shape, batch):
    inputs, mixtures = shape.tensors(batch), shape.mixtures()
    contenders = {
        "cpu": functools.partial(ops.attention, *inputs, shape.heads, **mixtures, backend="cpu"),
        "torch": functools.partial(by_torch, *inputs, shape.heads, **mixtures),
    }
    exact = by_torch(*(x.double() for x in inputs), shape.heads, **{name: x.double() for name, x in mixtures.items()}).float()
    for function in contenders.values():
        torch.testing.assert_close(function(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
    in_turn(f"{shape}, batch {batch}", contenders, 30, 10, operations=shape.operations(batch))
