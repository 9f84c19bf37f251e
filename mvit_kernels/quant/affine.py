"""Candidates for the quantizer of a result: families of ranges, each with one factor of the scale that is searched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from .representation import SEVERAL, TINY, Byte, Channels, Representation, Stream, single
from .simulated import Twin

Tensor = torch.Tensor


class Quantizer(Protocol):
    """Of a result: what a search compares."""

    @property
    def fold(self) -> Tensor | None:
        """(C,) float64: what weights are multiplied by."""

    def fake(self, x: Tensor, axis: int = 1) -> Tensor:
        """x, quantized and back; axis: that of channels."""

    def farthest(self) -> float:
        """The largest size of an integer that stands for a value."""

    def representation(self) -> Byte | Channels | Twin: ...


class Candidates(Protocol):
    """Quantizers that differ in one factor of their scale."""

    def at(self, factor: float) -> Quantizer: ...


_FARTHEST_RATIO = 2.0**-8  # of scales of channels: below it, weights that absorb it would be lost
MIGRATION = (0.0, 0.5, 1.0)  # how much of the ratios of channels' ranges goes into scales, and so into weights


@dataclass(frozen=True)
class Affine:
    """scale (q - zero_point), q from 0 to 2^bits - 1; scale, zero_point (1,) float32 or (C,)."""

    scale: Tensor
    zero_point: Tensor
    bits: int

    @property
    def fold(self) -> Tensor | None:
        """(C,) float64: what weights are multiplied by."""
        return None if self.scale.numel() == 1 else self.scale.double() / float(self.scale.max())

    def fake(self, x: Tensor, axis: int = 1) -> Tensor:
        """x, quantized and back; axis: that of channels."""
        shape = [1] * x.ndim
        shape[axis] = -1
        scale, zero, most = self.scale.reshape(shape), self.zero_point.reshape(shape), 2**self.bits - 1
        y = (x * (1 / scale)).round_()
        if self.zero_point.numel() == 1:
            y.clamp_(-float(self.zero_point), most - float(self.zero_point))
        else:
            y.clamp_(-zero, most - zero)
        return y.mul_(scale)

    def farthest(self) -> float:
        """The largest size of q - zero_point."""
        return float(torch.maximum(self.zero_point.abs(), (2**self.bits - 1 - self.zero_point).abs()).max())

    def representation(self) -> Byte | Channels:
        if self.scale.numel() == 1 and self.zero_point.numel() == 1:
            return Byte(single(float(self.scale)), int(self.zero_point), self.bits)
        count = max(self.scale.numel(), self.zero_point.numel())
        scales, zeros = self.scale.expand(count).tolist(), self.zero_point.expand(count).tolist()
        return Channels(tuple(map(single, scales)), tuple(map(int, zeros)), self.bits)


def quantizer_of(found: Representation) -> Quantizer:
    """Of a representation with one quantizer."""
    if isinstance(found, Twin):
        return found
    assert isinstance(found, (Byte, Channels))
    return affine_of(found)


def affine_of(found: Byte | Channels) -> Affine:
    scales, zeros = (found.scales, found.zero_points) if isinstance(found, Channels) else ((found.scale,), (found.zero_point,))
    return Affine(torch.tensor(scales, dtype=torch.float32), torch.tensor(zeros, dtype=torch.float32), found.bits)


def fake_quantize(found: Representation, x: Tensor) -> Tensor:
    """x (B, C, ...) as what a representation holds of it."""
    if isinstance(found, Stream):
        return (x * (1 / found.scale)).round_().clamp_(-32768, 32767).mul_(found.scale)
    if isinstance(found, SEVERAL):
        parts, channels = found.parts(), found.channels(x.shape[1])
        return torch.cat([affine_of(byte).fake(x[:, channels[name]]) for name, byte in parts.items()], 1)
    return quantizer_of(found).fake(x)


@dataclass(frozen=True)
class Family:
    """Candidates that differ in one factor of their scale.

    low, high, unit (1,) float64 or (C,): the range, and the scale that just holds it. anchor: what stays in the range whatever the factor
    is: "low", "high", their "middle", or "zero", towards which both ends shrink. wide: zero-points may be outside of the bits.
    """

    scheme: str
    low: Tensor
    high: Tensor
    unit: Tensor
    anchor: str
    bits: int
    wide: bool = False

    def at(self, factor: float) -> Affine:
        most = 2**self.bits - 1
        scale = (self.unit * factor).clamp_min(TINY).float()
        step = scale.double()
        if self.scheme == "symmetric":
            zero = torch.full_like(step, 2 ** (self.bits - 1))
        elif self.anchor == "low":
            zero = (-self.low / step).round()
        elif self.anchor == "high":
            zero = most - (self.high / step).round()
        elif self.anchor == "middle":
            zero = (most / 2 - (self.low + self.high) / 2 / step).round()
        else:
            zero = (-self.low / self.unit).round().expand_as(step)
        return Affine(scale, (zero if self.wide else zero.clamp(0, most)).float(), self.bits)


def families(low: Tensor, high: Tensor, bits: int, *, by_channel: bool, wide: bool) -> list[Family]:
    """low, high (C,): ranges of channels that calibration showed. by_channel: scales of channels are possible; wide: so are zero-points
    outside of the bits. The first at 1 is what min-max gives."""
    low, high = low.double(), high.double()
    one = (low.min().reshape(1), high.max().reshape(1))
    found = _asymmetric(*_with_zero(*one), bits, ("zero", "low", "high"))
    found += _symmetric(*one, bits)
    if wide and (float(one[0]) > 0 or float(one[1]) < 0):
        found += [replace(each, wide=True) for each in _asymmetric(*one, bits, ("middle", "low", "high"))]
    if not by_channel or low.numel() == 1:
        return found
    for ranges, beyond in ((_with_zero(low, high), False), ((low, high), True)):
        if beyond and not (wide and bool(((low > 0) | (high < 0)).any())):
            continue
        for share in MIGRATION:
            found += [replace(each, wide=beyond) for each in _migrated(_asymmetric(*ranges, bits, ("low", "middle")), share)]
    found += [each for share in MIGRATION[1:] for each in _migrated(_symmetric(low, high, bits), share)]
    return found


def _with_zero(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low.clamp_max(0.0), high.clamp_min(0.0)


def _asymmetric(low: Tensor, high: Tensor, bits: int, anchors: tuple[str, ...]) -> list[Family]:
    unit = ((high - low) / (2**bits - 1)).clamp_min(TINY)
    return [Family("asymmetric", low, high, unit, anchor, bits) for anchor in anchors]


def _symmetric(low: Tensor, high: Tensor, bits: int) -> list[Family]:
    unit = (torch.maximum(low.abs(), high.abs()) / 2 ** (bits - 1)).clamp_min(TINY)
    return [Family("symmetric", low, high, unit, "zero", bits)]


def _migrated(each: list[Family], share: float) -> list[Family]:
    """With scales between that of the widest channel (share 0) and each channel's own (1)."""
    made = []
    for family in each:
        widest = family.unit.max()
        unit = widest * (family.unit / widest).clamp_min(_FARTHEST_RATIO) ** share
        made.append(replace(family, unit=unit if share else widest.reshape(1)))
    return made
