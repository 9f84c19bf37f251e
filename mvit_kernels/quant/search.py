"""Searches scales of results and of weights in turns, by what they do to the results of the nodes that take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from mvit_kernels.graph import Node

from .affine import Candidates, Quantizer, affine_of, quantizer_of
from .bridges import Bridge, arriving
from .calibrate import Range
from .hessian import Gradients
from .layout import PRODUCTS
from .methods.base import Task
from .parts import FARTHEST, Part, bounds, bounds_of_part, takers, takes_wide
from .probes import ACCUMULATOR, Around, Metric, Product, Whole, most_sum
from .representation import SEVERAL, Byte, Representation, Stream, bits_of, byte_members
from .rounding import is_rounded, round_weight, with_rounded_weight
from .samples import (
    Pass,
    Positions,
    Rows,
    View,
    chunks,
    importance_of,
    input_rows,
    joined,
    joined_views,
    multiplied,
    passes,
    rows_at,
    view_of,
)
from .state import Stage

Tensor = torch.Tensor
_CAUTION = 1.0  # standard deviations, of images, that are added to the mean error of an image
FEWEST = 4  # images of which half says something about the others


@dataclass(frozen=True)
class Effort:
    """How much of all that there is a search looks at.

    positions: of the result of each product, of all images together; elements: of the maps that other nodes are looked at with. stride: of
    the factors that are tried first; steps: from the best of these, then from the best of those. refined: families of ranges whose steps
    are tried, those with the best first factors; kept: those that later rounds still look at.
    """

    positions: int = 640
    elements: int = 2**18
    stride: int = 10
    steps: tuple[tuple[int, ...], ...] = ((-3, 3), (-2, -1, 1, 2))
    refined: int = 2
    kept: int = 3


@dataclass(frozen=True)
class Plan:
    """How a method searches.

    grid: factors of the scale of the whole range. rounds: weights and results in turns. families: which ranges are candidates, of
    (C,) lows and highs of a part. halves: ranges of half of the images are judged on the others, as each range will meet images that it was
    not made from; the factor that is found then goes to the range of all.
    """

    metric: Metric
    grid: tuple[float, ...]
    rounds: int
    families: Callable[[Part, Tensor, Tensor], Sequence[Candidates]]
    bridges: tuple[Bridge, ...] = ()
    halves: bool = False
    effort: Effort = Effort()


class _Sample(NamedTuple):
    """Of one pass: positions and rows of products by name, maps by name, views by number of the taker."""

    at: dict[str, Tensor]
    rows: dict[str, Rows]
    maps: dict[str, Tensor]
    views: dict[int, View]


def half_ranges(task: Task) -> dict[str, Range]:
    """On every second image."""
    return task.ranges_of(chunks([torch.cat(task.batches)[::2]]))


class Search:
    """Attributes: parts by name, products by the name of their node, source: the part that each of these takes, stretch of its rows."""

    def __init__(self, task: Task, found: Mapping[str, Representation], plan: Plan, gradients: Gradients | None) -> None:
        """found: where the search begins, what min-max gives."""
        self.task, self.plan, self.gradients = task, plan, gradients
        self.layout, self.begun = task.layout, dict(found)
        self.parts: dict[str, Part] = {}
        images = sum(batch.shape[0] for batch in task.batches)
        self.halved = plan.halves and images >= FEWEST and bool(found)
        self.half_ranges: Mapping[str, Range] = task.ranges
        if self.halved:
            self.half_ranges = half_ranges(task)
        self.same = self._same_keys()
        for key, representation in found.items():
            for part in self._parts(key, representation):
                self.parts[part.name] = part
        for part in self.parts.values():
            part.pairs = self._pairs(part)
            part.trial = part.pairs[0][0].at(1.0) if self.halved else part.affine
        self.began = {name: part.affine for name, part in self.parts.items()}
        rounded = self._rounded()
        keys = {node.name: self.same[self.layout.key(node.inputs[0], "byte")] for node in rounded if node.name in self.layout.integer}
        self.source = {name: self.parts[key] for name, key in keys.items()}
        self.sums = dict.fromkeys(self.parts, 0)  # the largest of the sizes of integer weights of a row
        for node in rounded:
            if node.name in self.source:
                name = self.source[node.name].name
                self.sums[name] = max(self.sums[name], most_sum(node, task.config.weight_bits_of(node.name)))
        self.stretch = {node.name: torch.ones(node.weights["weight"].shape[0], dtype=torch.float64) for node in rounded}
        self.products: dict[str, Product] = {}
        self.at: dict[str, list[Tensor]] = {}
        self.maps: dict[str, list[Tensor]] = {}
        self.bridge_of: dict[str, tuple[int, Bridge]] = {}
        for i, bridge in enumerate(plan.bridges):
            for name in bridge.nodes:
                if self.layout.program[name].kind in PRODUCTS:
                    self.bridge_of.setdefault(name, (i, bridge))
        self.weight_errors: dict[str, tuple[float, float]] = {}

    def _same_keys(self) -> dict[str, str]:
        """Every key -> the first of all that have one quantizer with it."""
        same: dict[str, str] = {}
        first: dict[int, str] = {}
        for key, (name, form) in self.layout.needed().items():
            group = self.layout.shared.get(name) if key == name and form == "byte" else None
            same[key] = key if group is None else first.setdefault(group, key)
        return same

    def _parts(self, key: str, found: Representation) -> list[Part]:
        name, form = self.layout.needed()[key]
        if isinstance(found, Stream) or self.same[key] != key:
            return []
        members = byte_members(self.layout, name) if form == "byte" else [name]
        bits = max(bits_of(self.task.config, each) for each in members)
        wide = takes_wide(self.layout, key)
        by_channel = key == name and self.layout.by_channel(name)
        all_of, half_of = (bounds(members, each, by_channel) for each in (self.task.ranges, self.half_ranges))
        if isinstance(found, SEVERAL):
            channels = found.channels(self.layout.program[name].size[0])
            return [
                Part(f"{key}.{which}", key, *bounds_of_part(which, channels[which], *all_of), bits, False, False, affine_of(byte),
                     channels[which], half=bounds_of_part(which, channels[which], *half_of))
                for which, byte in found.parts().items()
            ]  # fmt: skip
        return [Part(key, key, *all_of, bits, by_channel, wide, quantizer_of(found), half=half_of)]

    # --- what candidates are judged by ---

    def sample(self) -> None:
        """One pass over the images. Every product keeps some positions, every other node whole maps of a few images."""
        pieces = chunks([torch.cat(self.task.batches)[1::2]] if self.halved else self.task.batches)
        images = sum(piece.shape[0] for piece in pieces)
        positions = {node.name: Positions(node, self.plan.effort.positions, images, self.task.config.seed) for node in self._rounded()}
        around = [(part, *taker) for part in self.parts.values() for taker in takers(self.layout, part)]
        kept = {name for bridge in self.plan.bridges for name in bridge.sources}
        found: dict[int, _Sample] = {}
        for seen in self._passes(pieces, "gradients"):
            at = {name: position.draw(seen) for name, position in positions.items()}
            rows = {name: rows_at(position.node, seen, at[name]) for name, position in positions.items()}
            views = {}
            for i, (_, user, member, _) in enumerate(around):
                wanted = min(max(1, self.plan.effort.elements // max(seen.values[member][0].numel(), 1)), images)
                some = wanted * (seen.before + seen.images) // images - wanted * seen.before // images
                if some > 0:
                    views[i] = view_of(self.layout.program, user, member, seen, some)
            found[seen.number] = _Sample(at, rows, {name: seen.values[name].clone() for name in kept}, views)
        samples = self.task.share.gathered(found)
        self.at = {name: [each.at[name] for each in samples] for name in positions}
        self.maps = {name: [each.maps[name] for each in samples] for name in kept}
        for node in self._rounded():
            self.products[node.name] = self._product(node, joined([each.rows.pop(node.name) for each in samples]))
            if node.name in self.source:
                self.source[node.name].products.append(self.products[node.name])
        for i, (part, user, _, which) in enumerate(around):
            view = joined_views([each.views.pop(i) for each in samples if i in each.views])
            part.around.append(self._around(user, which, view))

    def _passes(self, pieces: list[Tensor], what: str) -> Iterator[Pass]:
        return passes(self.layout.program, pieces, self.gradients, what, self.task.progress, self.task.share)

    def _product(self, node: Node, rows: Rows, kind: type[Product] = Product) -> Product:
        return kind(node, self.task.config.weight_bits_of(node.name), *rows, self.plan.metric)

    def _around(self, user: str | None, which: tuple[int, ...], view: View) -> Around:
        node = None if user is None or self._adds(user, which) else self.layout.program[user]
        inputs = view.inputs if node is not None or len(view.inputs) == 1 else [view.inputs[which[0]]]
        return Around(node, inputs, which if node is not None else (0,), view.weight, self.plan.metric)

    def _adds(self, user: str, which: tuple[int, ...]) -> bool:
        """Whether a result comes to a product's as a residual: an error of it is one of the sum."""
        node = self.layout.program[user]
        return bool(node.settings.get("residual")) and which == (len(node.inputs) - 1,)

    def _rounded(self) -> list[Node]:
        return [node for node in self.layout.program if is_rounded(node, self.task.config)]

    # --- the search ---

    def run(self) -> None:
        """All rounds, and a look at all positions: what is worse there than min-max is taken back."""
        for number in range(1, self.plan.rounds + 1):
            self._take(self.task.state.once(f"round {number}", partial(self._round, number)))
        self._settle(self.task.state.once("confirmation", self._confirm))

    def _round(self, number: int) -> Stage:
        if not self.products:
            self.sample()
        if number == 1:
            for name, product in self.products.items():
                if name not in self.source:
                    self._weight(product, None)
        hidden = None if self.task.progress else True
        for part in tqdm(self.parts.values(), desc=f"search, round {number}", unit="scale", leave=False, disable=hidden):
            for product in part.products:
                self._arrive(product)
                self._weight(product, part)
            self._range(part)
        return Stage(self.stretch, {name: [part.choice, part.shortlist] for name, part in self.parts.items()})

    def _take(self, found: Stage) -> None:
        """What a round found, now or before an interruption."""
        self.stretch = dict(found.tensors)
        for name, (choice, shortlist) in found.notes.items():
            self.parts[name].shortlist = shortlist
            if choice is not None:
                self._choose(self.parts[name], *choice)

    def _choose(self, part: Part, number: int, index: int) -> None:
        trial, final = part.pairs[number]
        factor = self.plan.grid[index]
        part.choice, part.trial, part.affine = (number, index), trial.at(factor), final.at(factor)

    def _weight(self, product: Product, part: Part | None) -> None:
        """The best factor for each row."""
        x, fold = (product.x, None) if part is None else (product.inputs(part.affine), part.affine.fold)
        grid, name = torch.tensor(self.plan.grid, dtype=torch.float64), product.node.name

        def errors(factors: Tensor) -> Tensor:
            return product.errors(x, product.rounded(fold, factors))

        own = self.stretch[name]
        effort = self.plan.effort
        coarse = torch.arange(effort.stride // 2, len(grid), effort.stride)
        least, index = torch.stack([errors(grid[i].expand_as(own)) for i in coarse]).min(0)
        index = coarse[index]
        for steps in effort.steps:
            center = index
            for step in steps:
                near = (center + step).clamp(0, len(grid) - 1)
                error = errors(grid[near])
                index, least = torch.where(error < least, near, index), torch.minimum(error, least)
        self.stretch[name] = torch.where(least < errors(own), grid[index], own)

    def _range(self, part: Part) -> None:
        """The best range, and its scale."""
        grid, effort = self.plan.grid, self.plan.effort
        assert part.trial is not None
        least, choice = self._error(part, part.trial), None
        ranked: list[tuple[float, int, int, list[Tensor]]] = []
        for number in range(len(part.pairs)) if part.shortlist is None else part.shortlist:
            trial, _ = part.pairs[number]
            weights = self._weights(part, trial.at(1.0))
            scored = ((self._error(part, trial.at(grid[i]), weights), i) for i in range(effort.stride // 2, len(grid), effort.stride))
            ranked.append((*min(scored), number, weights))
        ranked.sort(key=lambda each: each[0])
        for error, index, number, weights in ranked[: effort.refined]:
            trial, final = part.pairs[number]
            for steps in effort.steps:
                near = [i for i in (index + step for step in steps) if 0 <= i < len(grid)]
                error, index = min([(error, index), *((self._error(part, trial.at(grid[i]), weights), i) for i in near)])
            if error < least and self._allowed(part, final.at(grid[index])):
                least, choice = error, (number, index)
        if choice is not None:
            self._choose(part, *choice)
        part.shortlist = [number for _, _, number, _ in ranked[: effort.kept]]

    def _pairs(self, part: Part) -> list[tuple[Candidates, Candidates]]:
        """Families by the range of half of the images, and the same by that of all."""
        final = self.plan.families(part, part.low, part.high)
        trial = final if part.half is None else self.plan.families(part, *part.half)
        return list(zip(trial if len(trial) == len(final) else final, final, strict=True))

    def _weights(self, part: Part, affine: Quantizer) -> list[Tensor]:
        return [product.rounded(affine.fold, self.stretch[product.node.name]) for product in part.products]

    def _error(self, part: Part, affine: Quantizer, weights: list[Tensor] | None = None) -> float:
        if not self._allowed(part, affine):
            return float("inf")
        fake = part.fake(affine)
        weights = self._weights(part, affine) if weights is None else weights
        error = sum(product.error(affine, w) for product, w in zip(part.products, weights, strict=True))
        return error + sum(around.error(fake) for around in part.around)

    def _allowed(self, part: Part, affine: Quantizer) -> bool:
        """Whether kernels take it, and sums of products stay far from overflow."""
        return affine.farthest() <= FARTHEST and affine.farthest() * self.sums[part.name] < ACCUMULATOR

    def _arrive(self, product: Product) -> None:
        """A product inside a bridge sees what the chain before it gives as it is quantized now."""
        name = product.node.name
        if name not in self.bridge_of or name == self.bridge_of[name][1].nodes[0]:
            return
        bridge, program = self.bridge_of[name][1], self.layout.program
        found, nodes = self.found(), {}
        for each in bridge.nodes:
            if each in self.products:
                source = found.get(self.layout.key(program[each].inputs[0], "byte"))
                layer = round_weight(program[each], self.task.config, source, self.stretch[each])
                nodes[each] = with_rounded_weight(program[each], layer, source)
        rows = []
        for i, at in enumerate(self.at[name]):
            x = arriving(self.layout, bridge, name, found, nodes, {source: self.maps[source][i] for source in bridge.sources})
            rows.append(input_rows(product.node, x, at)[0])
        product.x = torch.cat(rows)

    def _confirm(self) -> Stage:
        """On all positions of all images: the choice of the search, wider ranges of its family, and where it began. An error counts more
        if few images have it: images that calibration does not show may have it too."""
        options = {part.name: self._options(part) for part in self.parts.values()}
        around = [(part, *taker) for part in self.parts.values() for taker in takers(self.layout, part)]
        found: dict[int, tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]] = {}
        for seen in self._passes(chunks(self.task.batches), "confirmation"):
            by_row: dict[str, list[Tensor]] = {}
            sums = {name: [torch.zeros(seen.images, dtype=torch.float64) for _ in each] for name, each in options.items()}
            for name, stretch in self.stretch.items():
                node, part = self.layout.program[name], self.source.get(name)
                product = self._product(node, (multiplied(node, seen), None, importance_of(node, seen)), Whole)
                fold = None if part is None else part.affine.fold
                x = product.x if part is None else product.inputs(part.affine)
                by_row[name] = [
                    product.errors(x, product.rounded(fold, factors)).double() for factors in (stretch, torch.ones_like(stretch))
                ]
                if part is not None:
                    for affine, total in zip(options[part.name], sums[part.name], strict=True):
                        total += product.by_image(affine, product.rounded(affine.fold, stretch), seen.images)
            for part, user, member, which in around:
                probe = self._around(user, which, view_of(self.layout.program, user, member, seen, seen.images))
                for affine, total in zip(options[part.name], sums[part.name], strict=True):
                    total += probe.by_image(part.fake(affine), seen.images)
            found[seen.number] = sums, by_row
        passed = self.task.share.gathered(found)
        chosen = {}
        for name in self.parts:
            images = [torch.cat([errors[name][i] for errors, _ in passed]) for i in range(len(options[name]))]
            risks = [float(each.mean() + _CAUTION * each.std(correction=0)) for each in images]
            least = min(range(len(risks)), key=lambda i: risks[i])
            chosen[name] = least, float(images[least].mean()), float(images[-1].mean())
        kept, judged = {}, {}
        for name, own in self.stretch.items():
            rows, plain = (sum((each[name][i] for _, each in passed), torch.zeros(())) for i in range(2))
            kept[name] = torch.where(rows <= plain, own, 1.0)
            judged[name] = float(torch.minimum(rows, plain).sum()), float(plain.sum())
        return Stage(kept, {"parts": chosen, "weights": judged})

    def _settle(self, found: Stage) -> None:
        """What was confirmed."""
        self.stretch = dict(found.tensors)
        self.weight_errors = {name: (error, plain) for name, (error, plain) in found.notes["weights"].items()}
        for name, (option, error, begun) in found.notes["parts"].items():
            part = self.parts[name]
            part.affine, part.confirmed = self._options(part)[option], (error, begun)

    def _options(self, part: Part) -> list[Quantizer]:
        """The choice, less cut off, and where the search began."""
        options = [part.affine]
        if part.choice is not None:
            number, index = part.choice
            final, factor = part.pairs[number][1], self.plan.grid[index]
            wider = [final.at(each) for each in ((1 + factor) / 2, 1.0) if factor < 1]
            options += [affine for affine in wider if self._allowed(part, affine)]
        return [*options, self.began[part.name]]

    # --- results ---

    def found(self) -> dict[str, Representation]:
        """By key, as it is now."""
        found = dict(self.begun)
        for key, representation in self.begun.items():
            if isinstance(representation, SEVERAL):
                bytes_ = {}
                for which in representation.parts():
                    byte = self.parts[f"{key}.{which}"].affine.representation()
                    assert isinstance(byte, Byte)
                    bytes_[which] = byte
                found[key] = type(representation)(**bytes_)
            elif not isinstance(representation, Stream):
                found[key] = self.parts[self.same[key]].affine.representation()
        return found

    def decided(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Fields of decisions: about results, about weights."""
        results: dict[str, dict[str, Any]] = {}
        for part in self.parts.values():
            assert part.confirmed is not None
            fields = self._fields(*part.confirmed, [name for name, source in self.source.items() if source is part])
            keys = [key for key, first in self.same.items() if first == part.key] if part.name == part.key else []
            results |= dict.fromkeys(keys or [part.name], fields)
        return results, {name: self._fields(*errors, [name]) for name, errors in self.weight_errors.items()}

    def _fields(self, error: float, minmax: float, names: list[str]) -> dict[str, Any]:
        bridge = next((self.bridge_of[name][0] for name in names if name in self.bridge_of), None)
        return {"objective": self.plan.metric.name, "error": error, "minmax_error": minmax, "bridge": bridge}
