"""What the ops share that are halves of a transformer layer on an int16 stream: checks, the layers of their composition, and the weights
of their kernels (csrc/cuda/ops/qpair.cuh)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import cuda_support, triton_support
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


# What halves of a layer take on a GPU, in seconds. Measured: each call of mobilevitv2_100 in int8 with one image, by itself in a graph on
# an H100, less some 2.5 us that such a graph adds to each call (101 calls took 656 us one by one, and 381 in a row a little later).
#
# Two products in one launch: a warp with few beside it waits for most of what it asks for. The feed-forward half took 15.5 us with 8
# slices of 32 hidden channels, 17.7 with 12 and 21.8 with 16. The attention half took 26, 22 and 25.5 us: what half as many slices and
# 3 us for the key leave of these is the context of a phase by one block, for 256, 64 and 16 points.
#
# In parts: 1x1 convolutions took 3 to 6 us, norms 3, contexts, gates and sums 0.5 to 2. With many pixels: 33.5 million results of a
# product, of a depth of 128, took 114 us.
START_SECONDS, SLICE_SECONDS = 9e-6, 0.8e-6
CONTEXT_SECONDS, POINT_SECONDS = 5e-6, 0.02e-6
PRODUCT_SECONDS, PASS_SECONDS = 4e-6, 2e-6
RESULT_RATE = 2.5e11  # a second, of products
_AT_ONCE = ((96, 384), (128, 256), (192, 192), (256, 128))  # of QPairShape: up to so many channels, pixels on a multiprocessor at once
_CONTEXTS_AT_ONCE = 5  # phases on a multiprocessor


def feed_forward_pays(x: Tensor, hidden: int, collect: bool) -> bool:
    """Whether the feed-forward half takes less in one launch than in parts: the norm with its product, the other product, and sums."""
    if collect and not _has_passes(x):
        return True
    return _pair_seconds(x, hidden) < _parts_seconds(2, int(collect), _pixels(x) * (hidden + x.shape[1]))


def attention_pays(x: Tensor, phases: int, collect: bool) -> bool:
    """The same of the attention half, in three launches or as norm, queries and values, context, key, gate, output, and sums; the key is a
    launch of both. Norm, context and gate go over as many values as there are results of a product, and take as long as one together."""
    if not _has_passes(x):
        return True
    points = x.shape[2] * x.shape[3] // phases
    waves = -(-x.shape[0] * phases // (_CONTEXTS_AT_ONCE * cuda_support.processors(x.device)))
    context = waves * (CONTEXT_SECONDS + POINT_SECONDS * points)
    return context + _pair_seconds(x, x.shape[1]) < _parts_seconds(2, 3 + int(collect), 3 * x.numel())


def _has_passes(x: Tensor) -> bool:
    """Whether what parts have beside products, norms, contexts, gates and sums, has kernels, which on a GPU are Triton's."""
    return not x.is_cuda or triton_support.refuse(x, (torch.int16,)) is None


def _pair_seconds(x: Tensor, hidden: int) -> float:
    at_once = next(pixels for most, pixels in _AT_ONCE if x.shape[1] <= most) * cuda_support.processors(x.device)
    waves = -(-_pixels(x) // at_once)
    return waves * (START_SECONDS + SLICE_SECONDS * -(-hidden // _SLICE))


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _parts_seconds(products: int, passes: int, results: int) -> float:
    return products * PRODUCT_SECONDS + passes * PASS_SECONDS + results / RESULT_RATE


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
