"""Multiply-adds and parameters of a MobileViTv2 of any factors, from its config alone.

Counted are the products of convolutions, of linear layers and of separable attention (scores times keys, values times context), and
four for every value that a bilinear resize of an odd map makes, as fvcore counts it. Additions of biases and residuals, norms,
activations and pooling are not. At 256 x 256 these are the published counts.

Without the rounding of channels, every product is of two widths that both follow the factor w, or of one that does, so that

    MACs(r, w, d_i, d_m) = a w² + b w,    a and b as the resolution r and the depths d_i, d_m say.

`polynomial` gives a and b, exactly for every r, also where maps are odd; `width_for` solves for w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from mvit_kernels.models import MobileViTv2Config

RESIZE_MACS = 4
"""Of a value that a bilinear resize makes."""


class Product(NamedTuple):
    """One layer's products: `weights` multiply-adds at each of `pixels`; `power` of the factor w that they grow with.

    parameters: all that the layer holds, with biases and the norm behind or before it.
    """

    weights: int
    pixels: int
    power: int
    parameters: int


def macs(config: MobileViTv2Config, num_classes: int = 1000) -> int:
    """Multiply-adds of one image of `config.resolution`."""
    return sum(product.weights * product.pixels for product in products(config, num_classes))


def parameters(config: MobileViTv2Config, num_classes: int = 1000) -> int:
    """Trainable parameters."""
    return sum(product.parameters for product in products(config, num_classes))


def polynomial(config: MobileViTv2Config, num_classes: int = 1000) -> tuple[int, int]:
    """(a, b) of a w² + b w, the multiply-adds of `config` at any width w before channels are rounded."""
    coefficients = [0, 0]
    for product in products(replace(config, width=1.0), num_classes):
        coefficients[2 - product.power] += product.weights * product.pixels
    return coefficients[0], coefficients[1]


def width_for(config: MobileViTv2Config, budget: float, num_classes: int = 1000) -> float:
    """The width w with which a w² + b w is `budget`: the positive root, in the form that does not cancel."""
    a, b = polynomial(config, num_classes)
    return 2 * budget / (b + math.sqrt(b * b + 4 * a * budget))


def products(config: MobileViTv2Config, num_classes: int = 1000) -> Iterator[Product]:
    """The layers in their order."""
    side = _half(config.resolution)
    yield _convolution(config.in_chans, config.stem_channels, side, kernel=9, power=1)
    channels = config.stem_channels
    for stage, (wider, stride) in enumerate(zip(config.channels, (1, 2, 2, 2, 2), strict=True)):
        count = config.block_counts[stage] if stage < len(config.block_counts) else 1
        for block in range(count):
            before, side = side, _half(side) if stride == 2 and block == 0 else side
            yield _convolution(channels, 2 * channels, before)
            yield _depthwise(2 * channels, side)
            yield _convolution(2 * channels, wider, side)
            channels = wider
        if stage >= 2:
            if side % 2 and config.odd_maps == "resize":
                side += 1
                yield Product(RESIZE_MACS * channels, side**2, 1, 0)
            yield _depthwise(channels, side)
            yield from _transformer(channels, config.dims[stage - 2], config.layer_counts[stage - 2], side)
    if num_classes:
        yield Product(channels * num_classes, 1, 1, (channels + 1) * num_classes)


def _transformer(channels: int, dim: int, layers: int, side: int) -> Iterator[Product]:
    yield Product(channels * dim, side**2, 2, channels * dim)
    tokens = (side - side % 2) ** 2
    for _ in range(layers):
        norm = 2 * dim
        yield Product(dim, tokens, 1, dim + 1)  # queries: one channel
        yield Product(2 * dim * dim, tokens, 2, 2 * dim * (dim + 1) + norm)  # keys and values
        yield Product(2 * dim, tokens, 1, 0)  # attention itself
        yield Product(dim * dim, tokens, 2, dim * (dim + 1))
        yield Product(2 * dim * dim, tokens, 2, 2 * dim * (dim + 1) + norm)
        yield Product(2 * dim * dim, tokens, 2, dim * (2 * dim + 1))
    yield Product(dim * channels, side**2, 2, dim * channels + 2 * dim + 2 * channels)


def _convolution(inputs: int, outputs: int, side: int, *, kernel: int = 1, power: int = 2) -> Product:
    """With the BatchNorm behind it."""
    weights = inputs * outputs * kernel
    return Product(weights, side**2, power, weights + 2 * outputs)


def _depthwise(channels: int, side: int) -> Product:
    return _convolution(1, channels, side, kernel=9, power=1)


def _half(side: int) -> int:
    return (side + 1) // 2
