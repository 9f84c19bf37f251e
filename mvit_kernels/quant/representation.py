"""What the result of a node is in integers, and how ranges decide about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .calibrate import Range
from .config import QuantConfig
from .layout import Layout

Tensor = torch.Tensor

_TINY = 2.0**-32  # the least scale: ratios of scales stay what kernels take
_HEADROOM = 1.25  # streams hold this much more than calibration showed: a third of a bit of fifteen


@dataclass(frozen=True)
class Byte:
    """uint8: scale * (q - zero_point), q in 0 .. 2^bits - 1."""

    scale: float
    zero_point: int
    bits: int = 8


@dataclass(frozen=True)
class Stream:
    """int16: scale * q."""

    scale: float


@dataclass(frozen=True)
class Scores:
    """uint8 of a map for separable attention: the first channel is quantized by itself, the values behind it together."""

    scores: Byte
    values: Byte

    def of_channels(self, count: int) -> list[Byte]:
        return [self.scores, *[self.values] * (count - 1)]


@dataclass(frozen=True)
class Projection:
    """uint8 of a map for softmax attention: queries, keys and values, a third of the channels each."""

    q: Byte
    k: Byte
    v: Byte

    def of_channels(self, count: int) -> list[Byte]:
        return [part for part in (self.q, self.k, self.v) for _ in range(count // 3)]


Representation = Byte | Stream | Scores | Projection


def byte_of(low: float, high: float, bits: int) -> Byte:
    """Bytes over [low, high] and 0."""
    low, high, most = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = _single(max((high - low) / most, _TINY)) if high > low else 1.0
    return Byte(scale, min(max(round(-low / scale), 0), most), bits)


def representations(layout: Layout, ranges: Mapping[str, Range], config: QuantConfig) -> dict[str, Representation]:
    """By min and max, for every key of `layout.needed()`. Byte groups cover the ranges of all their members, streams the largest value of
    all that is added up in them."""
    needed = layout.needed()
    found: dict[str, Representation] = {}
    for key, (name, form) in needed.items():
        if form == "stream":
            members = [each for each, group in layout.streams.items() if group == layout.streams[name]]
            most = max(max(abs(bound) for bound in _whole(ranges[each])) for each in members)
            found[key] = Stream(_single(max(most * _HEADROOM / 32767, _TINY)))
        elif name in layout.scores:
            low, high = ranges[name]
            bits = _bits(config, name)
            # Values pass relu before anything else: bytes for negative ones would be lost.
            found[key] = Scores(byte_of(float(low[0]), float(high[0]), bits), byte_of(0.0, float(high[1:].max()), bits))
        elif name in layout.projections:
            low, high = ranges[name]
            thirds = zip(low.chunk(3), high.chunk(3), strict=True)
            found[key] = Projection(*(byte_of(float(lows.min()), float(highs.max()), _bits(config, name)) for lows, highs in thirds))
        else:
            members = _members(layout, name)
            lows, highs = zip(*(_whole(ranges[each]) for each in members), strict=True)
            found[key] = byte_of(min(lows), max(highs), max(_bits(config, each) for each in members))
    return found


def completed(layout: Layout, known: Mapping[str, Representation]) -> dict[str, Representation]:
    """Those that a layout needs, of those that were found at another image size: by key or, where a result did not exist there (a resize),
    that of something it shares scales with. What is in neither is left out."""
    found: dict[str, Representation] = {}
    for key, (name, form) in layout.needed().items():
        kind: Any = Stream if form == "stream" else _kind_of_bytes(layout, name)
        if form == "stream":
            members = [each for each, group in layout.streams.items() if group == layout.streams[name]]
        else:
            members = _members(layout, name)
        keys = [key, *(layout.key(each, form) for each in members)]
        value = next((known[each] for each in keys if isinstance(known.get(each), kind)), None)
        if value is not None:
            found[key] = value
    return found


def to_json(representation: Representation) -> dict[str, Any]:
    return asdict(representation)


def from_json(fields: Mapping[str, Any]) -> Representation:
    for several in (Scores, Projection):
        if set(fields) == set(several.__dataclass_fields__):
            return several(**{part: Byte(**values) for part, values in fields.items()})
    return Byte(**fields) if "zero_point" in fields else Stream(**fields)


def _kind_of_bytes(layout: Layout, name: str) -> type[Representation]:
    return Scores if name in layout.scores else Projection if name in layout.projections else Byte


def _members(layout: Layout, name: str) -> list[str]:
    """All whose bytes have the scale of this one's."""
    group = layout.shared.get(name)
    return [name] if group is None else [each for each, other in layout.shared.items() if other == group]


def _bits(config: QuantConfig, name: str) -> int:
    return config.activation_bits_of(name) or 8


def _whole(channels: Range) -> tuple[float, float]:
    return float(channels.low.min()), float(channels.high.max())


def _single(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.float32))
