"""Integer weights as the CUDA kernels read them, made of what the ops keep (`packing.packed` holds the result).

Each recipe computes on the CPU, once for a weight and device, and copies the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from mvit_kernels import reference

from .pack_weight import QPANEL, unpack_bytes

Tensor = torch.Tensor

COLUMNS, DEPTH = 64, 64  # of a block's stage, csrc/cuda/primitives/qfragments.h
_CHUNK = 16  # bytes that are copied at once


class Fragments(NamedTuple):
    tiles: Tensor  # uint8
    column_sum: Tensor  # (N rounded up to 16,) int32
    depth: int  # in bytes of a row, with the padding of its parts


@dataclass(frozen=True)
class PackFragments:
    """Of a packed weight: csrc/cuda/primitives/qfragments.h, columns in the order of csrc/cuda/ops/qproduct.cuh.

    parts: of a convolution, `parts_of` it; what each tap has of each of them is followed by zeros up to the next 16.
    """

    columns: int
    depth: int
    bits: int
    parts: tuple[int, ...] = ()

    def __call__(self, weight: Tensor) -> Fragments:
        matrix = unpack_bytes(weight.cpu(), self.columns, self.depth, self.bits)
        sums = F.pad(matrix.to(torch.int32).sum(1, dtype=torch.int32), (0, -self.columns % QPANEL))
        if self.parts:
            matrix = self._spread(matrix)
        return Fragments(tiles(product_order(matrix), self.bits).to(weight.device), sums.to(weight.device), matrix.shape[1])

    def _spread(self, matrix: Tensor) -> Tensor:
        taps = matrix.unflatten(1, (-1, sum(self.parts)))
        return torch.cat([F.pad(part, (0, -part.shape[2] % _CHUNK)) for part in taps.split(self.parts, dim=2)], dim=2).flatten(1)


def parts_of(kernel: int, channels: int, second_channels: int) -> tuple[int, ...]:
    """What lies together in a tap: the channels of each input; of few, those of the three taps of a line (`is_thin` of
    csrc/cuda/ops/qconv2d.h)."""
    if kernel == 3 and not second_channels and 3 * channels <= _CHUNK:
        return (3 * channels,)
    return (channels, second_channels) if second_channels else (channels,)


def product_order(matrix: Tensor) -> Tensor:
    """Columns n of (N, K) in the places that `product_column` of csrc/cuda/ops/qproduct.cuh gives them, N rounded up to 32."""
    padded = F.pad(matrix, (0, 0, 0, -matrix.shape[0] % 32))
    return padded.reshape(padded.shape[0] // 32, 4, 4, 2, matrix.shape[1]).transpose(1, 2).flatten(0, 3)  # n: t, product and one of two


def neighbour_order(matrix: Tensor) -> Tensor:
    """Columns n of (N, K) in the places of csrc/cuda/ops/inverted_residual.h, of four neighbours two in each product of eight; N rounded up
    to 16."""
    padded = F.pad(matrix, (0, 0, 0, -matrix.shape[0] % 16))
    return padded.reshape(-1, 4, 2, 2, matrix.shape[1]).transpose(1, 2).flatten(0, 3)  # n: t, product and one of two


def stream_order(matrix: Tensor) -> Tensor:
    """Values k of (N, K) in the places that csrc/cuda/ops/qpair.cuh gives the channels of a stream, K rounded up to 32."""
    padded = F.pad(matrix, (0, -matrix.shape[1] % 32))
    return padded.unflatten(1, (padded.shape[1] // 32, 4, 2, 4)).transpose(2, 3).flatten(1)  # k: t, half and one of four


def tiles(matrix: Tensor, bits: int, multiples: tuple[int, int] = (COLUMNS, DEPTH)) -> Tensor:
    """(N, K) int8 as the bytes of tiles: (N / 16, K / 32, lanes, words, 4), or for 6 bits planes of the words of all lanes; N and K rounded
    up to `multiples`."""
    columns, depth = matrix.shape
    padded = F.pad(matrix, (0, -depth % multiples[1], 0, -columns % multiples[0]))
    parts = padded.reshape(padded.shape[0] // 16, 2, 8, padded.shape[1] // 32, 2, 4, 4)  # n: half, g; k: half, t, byte
    words = parts.permute(0, 3, 2, 5, 1, 4, 6).reshape(padded.shape[0] // 16, padded.shape[1] // 32, 32, 4, 4)
    if bits == 8:
        return words.contiguous().view(torch.uint8).flatten()
    v = (words & 63).view(torch.uint8)
    last = v[..., 3, :]
    return torch.stack([v[..., i, :] << 2 | last >> (4 - 2 * i) & 3 for i in range(3)], dim=2).flatten()


@dataclass(frozen=True)
class PackBorder:
    """Of a packed weight (N, 9 C), zero_point (C,) and the channels of `quantization`: (16, N rounded up to 16) int32, what sums begin with
    where taps outside of the map are 0."""

    columns: int
    depth: int
    bits: int

    def __call__(self, weight: Tensor, zero_point: Tensor, channels: Tensor) -> Tensor:
        matrix = unpack_bytes(weight.cpu(), self.columns, self.depth, self.bits)
        return _padded(reference.qconv2d_border(matrix, zero_point.cpu(), channels[0, : self.columns].cpu()), weight.device)


class Taps(NamedTuple):
    taps: Tensor  # (3, C rounded up to 16, 4) int8
    border: Tensor  # (16, C rounded up to 16) int32


def pack_taps(weight: Tensor, zero_point: Tensor, channels: Tensor) -> Taps:
    """Of depthwise weights (C, 1, 3, 3), zero_point (C,) and the channels of `quantization`: csrc/cuda/ops/qdepthwise_conv2d.h."""
    w, count = weight.cpu()[:, 0], weight.shape[0]
    taps = F.pad(w.permute(2, 0, 1), (0, 1, 0, -count % QPANEL))  # (kx, C, ky and a zero)
    # A depthwise weight is that of a convolution with one channel, whose zero-point differs from column to column.
    z = w.to(torch.int64).flatten(1) * zero_point.cpu()[:, None]
    border = reference.qconv2d_border(z, torch.ones(1, dtype=torch.int64), channels[0, :count].cpu())
    return Taps(taps.contiguous().to(weight.device), _padded(border, weight.device))


def _padded(border: Tensor, device: torch.device) -> Tensor:
    return F.pad(border, (0, -border.shape[1] % QPANEL)).contiguous().to(device)
