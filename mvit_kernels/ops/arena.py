"""Where results lie: those that are needed at the same time beside each other, others in the same place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_ALIGNMENT = 64


class Lifetime(NamedTuple):
    """The first and the last step that a value is needed at, and its bytes."""

    first: int
    last: int
    bytes: int


def place(lifetimes: Mapping[str, Lifetime]) -> tuple[dict[str, int], int]:
    """(offset of each value, bytes of the whole). Large ones first, each at the lowest place that is free while it lives."""
    offsets: dict[str, int] = {}
    whole = 0
    for name in sorted(lifetimes, key=lambda name: (-lifetimes[name].bytes, lifetimes[name].first, name)):
        life = lifetimes[name]
        taken = sorted(
            (offset, offset + _rounded(lifetimes[other].bytes))
            for other, offset in offsets.items()
            if lifetimes[other].first <= life.last and life.first <= lifetimes[other].last
        )
        at = 0
        for begin, end in taken:
            if begin - at >= _rounded(life.bytes):
                break
            at = max(at, end)
        offsets[name] = at
        whole = max(whole, at + _rounded(life.bytes))
    return offsets, whole


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
