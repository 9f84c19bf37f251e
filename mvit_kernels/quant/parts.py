"""The quantizers that a search decides about, and what takes what they quantize."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .affine import Candidates, Quantizer
from .calibrate import Range
from .layout import COPIES, PRODUCTS, Layout
from .probes import Around, Product
from .representation import byte_members

Tensor = torch.Tensor
FARTHEST = 2**16  # zero-points further away from any integer are refused


@dataclass
class Part:
    """One quantizer: of a key, or of some channels of a key; and all that it is judged by."""

    name: str
    key: str
    low: Tensor
    high: Tensor
    bits: int
    by_channel: bool
    wide: bool
    affine: Quantizer
    channels: slice | None = None  # of a map with several quantizers
    products: list[Product] = field(default_factory=list)
    around: list[Around] = field(default_factory=list)
    half: tuple[Tensor, Tensor] | None = None  # low and high of half of the images
    pairs: Sequence[tuple[Candidates, Candidates]] = ()  # by these, and the same by all
    trial: Quantizer | None = None  # of the first, which is judged in place of `affine`, of the second
    choice: tuple[int, int] | None = None  # numbers of the pair and of the factor that both are
    shortlist: Sequence[int] | None = None  # of pairs that are still looked at
    confirmed: tuple[float, float] | None = None  # errors of this one and of min-max, on all positions

    def fake(self, affine: Quantizer) -> Callable[[Tensor], Tensor]:
        channels = self.channels
        if channels is None:
            return affine.fake

        def fake(x: Tensor) -> Tensor:
            before, after = x[:, : channels.start], x[:, channels.stop :]
            return torch.cat([before, affine.fake(x[:, channels]), after], 1)

        return fake


def takers(layout: Layout, part: Part) -> Iterator[tuple[str | None, str, tuple[int, ...]]]:
    """Of all but products that multiply it: (the node, or None for a result of the program; whose result it takes; as which inputs)."""
    name, form = layout.needed()[part.key]
    for member in byte_members(layout, name) if part.key == name else [name]:
        written = layout.written(layout.program[member]) == "byte" and part.key == name
        for user in dict.fromkeys(layout.users[member]):
            if not user:
                if written:
                    yield None, member, (0,)
                continue
            node = layout.program[user]
            forms = layout.wanted(node)
            which = tuple(i for i, each in enumerate(node.inputs) if each == member and (forms[i] == form or written))
            if user in layout.integer:
                which = tuple(i for i in which if forms[i] == form)
                if node.kind in COPIES:  # what takes theirs is looked at
                    continue
                if node.kind in PRODUCTS:
                    which = tuple(i for i in which if i == len(node.inputs) - 1 and node.settings.get("residual"))
                elif part.channels is not None and part.name in (f"{part.key}.scores", f"{part.key}.values"):
                    which = which if (node.kind == "separable_context") == part.name.endswith(".scores") else ()
            if which:
                yield user, member, which


def takes_wide(layout: Layout, key: str) -> bool:
    """Whether the zero-point of a key may be outside of the bits: products take it, added maps, and copies."""
    name, form = layout.needed()[key]
    members = byte_members(layout, name) if form == "byte" else [name]
    users = {user for each in members for user in layout.users[each]}
    fit = (*PRODUCTS, "add", *COPIES)
    return form == "byte" and key == name and all(user in layout.integer and layout.program[user].kind in fit for user in users)


def bounds(members: list[str], found: Mapping[str, Range], by_channel: bool) -> tuple[Tensor, Tensor]:
    """(low, high) of each channel, or of each of several results."""
    lows, highs = [found[each].low for each in members], [found[each].high for each in members]
    if len(members) == 1 or by_channel:
        return torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    return torch.stack([low.min() for low in lows]), torch.stack([high.max() for high in highs])


def bounds_of_part(name: str, channels: slice, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Of some channels. Values of separable attention pass relu before anything else."""
    low, high = low[channels], high[channels]
    return (torch.zeros_like(low), high.clamp_min(0.0)) if name == "values" else (low, high)
