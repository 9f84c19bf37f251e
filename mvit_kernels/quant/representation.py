"""What the result of a node is in integers, and how ranges decide about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .calibrate import Range
from .config import QuantConfig
from .layout import NORMS, Layout
from .simulated import SOFTMAX, Softmax, Twin, kind_of

Tensor = torch.Tensor

TINY = 2.0**-32  # the least scale: ratios of scales stay what kernels take
HEADROOM = 1.25  # streams hold this much more than calibration showed: a third of a bit of fifteen


@dataclass(frozen=True)
class Byte:
    """uint8: scale * (q - zero_point), q in 0 .. 2^bits - 1."""

    scale: float
    zero_point: int
    bits: int = 8


@dataclass(frozen=True)
class Channels:
    """uint8 with a scale and a zero-point for each channel. Products take it: their weights absorb the ratios of the scales."""

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    bits: int = 8

    @property
    def scale(self) -> float:
        """That of products' sums: the largest."""
        return max(self.scales)

    def fold(self) -> Tensor:
        """(C,) float64: what weights are multiplied by, at most 1."""
        return torch.tensor(self.scales, dtype=torch.float64) / self.scale


@dataclass(frozen=True)
class Stream:
    """int16: scale * q."""

    scale: float


@dataclass(frozen=True)
class Scores:
    """uint8 of a map for separable attention: the first channel is quantized by itself, the values behind it together."""

    scores: Byte
    values: Byte

    def parts(self) -> dict[str, Byte]:
        return {"scores": self.scores, "values": self.values}

    @staticmethod
    def channels(count: int) -> dict[str, slice]:
        """Which of `count` channels each part quantizes."""
        return {"scores": slice(0, 1), "values": slice(1, count)}

    def of_channels(self, count: int) -> list[Byte]:
        return [self.scores, *[self.values] * (count - 1)]


@dataclass(frozen=True)
class Projection:
    """uint8 of a map for softmax attention: queries, keys and values, a third of the channels each."""

    q: Byte
    k: Byte
    v: Byte

    def parts(self) -> dict[str, Byte]:
        return {"q": self.q, "k": self.k, "v": self.v}

    @staticmethod
    def channels(count: int) -> dict[str, slice]:
        """Which of `count` channels each part quantizes."""
        third = count // 3
        return {name: slice(i * third, (i + 1) * third) for i, name in enumerate("qkv")}

    def of_channels(self, count: int) -> list[Byte]:
        return [part for part in (self.q, self.k, self.v) for _ in range(count // 3)]


Representation = Byte | Channels | Stream | Scores | Projection | Twin | Softmax
SEVERAL = (Scores, Projection)  # quantizers of one map, by its channels


def byte_of(low: float, high: float, bits: int) -> Byte:
    """Bytes over [low, high] and 0."""
    low, high, most = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = single(max((high - low) / most, TINY))  # also of what is always 0: biases behind it are whole numbers of this
    return Byte(scale, min(max(round(-low / scale), 0), most), bits)


def representations(layout: Layout, ranges: Mapping[str, Range], config: QuantConfig) -> dict[str, Representation]:
    """By min and max, for every key of `layout.needed()`. Byte groups cover the ranges of all their members, streams the largest value of
    all that is added up in them."""
    needed = layout.needed()
    found: dict[str, Representation] = {}
    for key, (name, form) in needed.items():
        if form == "stream":
            members = [each for each, group in layout.streams.items() if group == layout.streams[name]]
            most = max(max(abs(bound) for bound in whole(ranges[each])) for each in members)
            found[key] = Stream(single(max(most * HEADROOM / 32767, TINY)))
        elif name in layout.scores:
            low, high = ranges[name]
            bits = bits_of(config, name)
            # Values pass relu before anything else: bytes for negative ones would be lost.
            found[key] = Scores(byte_of(float(low[0]), float(high[0]), bits), byte_of(0.0, float(high[1:].max()), bits))
        elif name in layout.projections:
            low, high = ranges[name]
            thirds = zip(low.chunk(3), high.chunk(3), strict=True)
            found[key] = Projection(*(byte_of(float(lows.min()), float(highs.max()), bits_of(config, name)) for lows, highs in thirds))
        else:
            members = byte_members(layout, name)
            lows, highs = zip(*(whole(ranges[each]) for each in members), strict=True)
            found[key] = byte_of(min(lows), max(highs), max(bits_of(config, each) for each in members))
    return found


def completed(layout: Layout, known: Mapping[str, Representation]) -> dict[str, Representation]:
    """Those that a layout needs, of those that were found at another image size: by key or, where a result did not exist there (a resize),
    that of something it shares scales with. What is in neither is left out."""
    found: dict[str, Representation] = {key: value for key, value in known.items() if isinstance(value, SOFTMAX)}
    for key, (name, form) in layout.needed().items():
        kind: Any = (Stream, Channels) if form == "stream" else _kind_of_bytes(layout, name)
        if kind is Byte:
            channels = layout.by_channel(name) or layout.program[name].kind in NORMS  # of norms in simulations
            kind = (Byte, Twin, Channels) if channels else (Byte, Twin)
        if form == "stream":
            members = [each for each, group in layout.streams.items() if group == layout.streams[name]]
        else:
            members = byte_members(layout, name)
        keys = [key, *(layout.key(each, form) for each in members)]
        value = next((known[each] for each in keys if isinstance(known.get(each), kind)), None)
        if value is not None:
            found[key] = value
    return found


def to_json(representation: Representation) -> dict[str, Any]:
    return asdict(representation)


def from_json(fields: Mapping[str, Any]) -> Representation:
    simulated = kind_of(set(fields))
    if simulated is not None:
        made: Representation = simulated(**fields)
        return made
    for several in SEVERAL:
        if set(fields) == set(several.__dataclass_fields__):
            return several(**{part: Byte(**values) for part, values in fields.items()})
    if "zero_points" in fields:
        return Channels(tuple(fields["scales"]), tuple(fields["zero_points"]), fields["bits"])
    return Byte(**fields) if "zero_point" in fields else Stream(**fields)


def _kind_of_bytes(layout: Layout, name: str) -> type[Representation]:
    return Scores if name in layout.scores else Projection if name in layout.projections else Byte


def byte_members(layout: Layout, name: str) -> list[str]:
    """All whose bytes have the scale of this one's."""
    group = layout.shared.get(name)
    return [name] if group is None else [each for each, other in layout.shared.items() if other == group]


def bits_of(config: QuantConfig, name: str) -> int:
    return config.activation_bits_of(name) or 8


def whole(channels: Range) -> tuple[float, float]:
    return float(channels.low.min()), float(channels.high.max())


def single(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.float32))
