"""What the ops share that are halves of a transformer layer on an int16 stream: checks, the layers of their composition, and the weights
of their kernels (csrc/cuda/ops/qpair.cuh)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .pack_weight import unpack_bytes
from .qfragments import product_order, stream_order, tiles
from .qnorm import LARGEST_GROUP, check_maps

Tensor = torch.Tensor
Optional = torch.Tensor | None
_SLICE, _DEPTH = 32, 32  # hidden channels at once, and channels of a tile


def check_images(op: str, x: Tensor, channels: int, sums: Optional) -> None:
    """x (B, channels, H, W) int16, and what is known of its images."""
    check_maps(op, x, sums)
    if x.shape[1] != channels:
        raise ValueError(f"{op}: x: expected {channels} channels, got shape {tuple(x.shape)}")
    if x.shape[1:].numel() > LARGEST_GROUP:
        raise ValueError(f"{op}: x: expected images of at most 2^33 values, got {x.shape[1:].numel()}")


def rows_of(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B H W, C), in place where it is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def no_sums(x: Tensor) -> Tensor:
    return x.new_empty(0, 2, dtype=torch.int64)


def pointwise(
    product: Callable[..., Tensor], x: Tensor, weight: Tensor, channels: Tensor, form: list[int], dtype: torch.dtype,
    residual: Optional = None,
) -> Tensor:  # fmt: skip
    """A 1x1 convolution without an activation, by the forward of a backend of `qconv2d`."""
    unused, plain = channels.new_empty(form[1]), dtype != torch.float32  # zero-points, which are for what is padded
    return product(x, None, residual, weight, channels, unused, None, None, None, *form, 1, 1, 0, dtype, "none", plain, 0.0, 0)


@dataclass(frozen=True)
class PackPair:
    """Slices of 32 hidden channels of two products, the second of which takes all columns of the first but those before `begin`."""

    first_form: tuple[int, ...]
    second_form: tuple[int, ...]
    begin: int = 0

    def __call__(self, first_weight: Tensor, first_channels: Tensor, second_weight: Tensor) -> Tensor:
        channels, hidden = self.second_form[:2]
        slices, depth = -(-hidden // _SLICE), -(-channels // _DEPTH)
        ends = -hidden % _SLICE, -channels % _DEPTH
        first = F.pad(stream_order(unpack_bytes(first_weight.cpu(), *self.first_form)[self.begin :]), (0, 0, 0, ends[0]))
        second = F.pad(unpack_bytes(second_weight.cpu(), *self.second_form), (0, ends[0], 0, ends[1]))
        first = first.unflatten(0, (2 * slices, 4, 2, 2)).transpose(1, 2).flatten(0, 3)  # hidden channels: t, u, b
        init, scale = (F.pad(row[self.begin : self.begin + hidden], (0, ends[0])) for row in first_channels.cpu()[:2])
        twice = init.unflatten(0, (-1, 1, 2)).expand(-1, 2, 2)
        numbers = torch.cat([twice.reshape(slices, -1), scale.reshape(slices, -1)], dim=1)
        reduce = tiles(product_order(second), 8, (_DEPTH, _SLICE)).unflatten(0, (2 * depth, slices, -1)).transpose(0, 1)
        parts = numbers.contiguous().view(torch.uint8), tiles(first, 8, (_SLICE, _DEPTH)), reduce
        return torch.cat([part.reshape(slices, -1) for part in parts], dim=1).to(first_weight.device)
