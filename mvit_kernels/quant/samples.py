"""Passes over calibration images: float results and gradients of a few images at a time, and what probes keep of them."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from mvit_kernels.graph import Node, Program, run

from .hessian import Gradients
from .share import ALONE, Share

Tensor = torch.Tensor
PIXELS = 2**17  # of images in one pass: two of 256 x 256


class Pass(NamedTuple):
    """A few images: name -> result of the float program, name -> gradient there. number: of the pass; before: images in those before it."""

    number: int
    before: int
    images: int
    values: dict[str, Tensor]
    gradients: dict[str, Tensor] | None


def chunks(batches: Iterable[Tensor]) -> list[Tensor]:
    made: list[Tensor] = []
    for batch in batches:
        made += batch.split(max(1, PIXELS // max(batch.shape[2] * batch.shape[3], 1)))
    return made


def passes(
    program: Program, pieces: list[Tensor], gradients: Gradients | None, what: str, progress: bool, share: Share = ALONE
) -> Iterator[Pass]:  # fmt: skip
    """One for each of `chunks` that this process looks at; results and gradients live until the next."""
    before = [0, *itertools.accumulate(len(piece) for piece in pieces)]
    for number, x in tqdm(share.of(pieces), desc=what, unit="pass", leave=False, disable=None if progress else True):
        values: dict[str, Tensor] = {}

        def watch(node: Node, y: Any, values: dict[str, Tensor] = values) -> None:
            values[node.name] = y

        with torch.no_grad():
            exact = run(program, x, watch)
        grads = None
        if gradients is not None:
            with torch.enable_grad():
                grads = gradients(x, exact)
        yield Pass(number, before[number], x.shape[0], values, grads)


class Positions:
    """Which results of a node are looked at: `count` of all images, in equal shares. Half are drawn by chance, half are those with the
    largest inputs: what a range cuts off is seldom met by chance."""

    def __init__(self, node: Node, count: int, images: int, seed: int) -> None:
        self.node, self.count, self.images = node, count, images
        self.seed = (seed << 32) ^ zlib.crc32(node.name.encode())

    def draw(self, seen: Pass) -> Tensor:
        """(P,) numbers of (image, row, column) of the result, in order."""
        every = seen.images * (self.node.size[1] * self.node.size[2] if len(self.node.size) == 3 else 1)
        wanted = -(-self.count * seen.images // self.images)
        if wanted >= every:
            return torch.arange(every)
        largest = seen.values[self.node.inputs[0]].abs().amax(1).reshape(seen.images, -1)
        if largest.shape[1] * seen.images != every:  # of a stride
            stride = self.node.settings["stride"]
            largest = seen.values[self.node.inputs[0]][:, :, ::stride, ::stride].abs().amax(1).reshape(seen.images, -1)
        share = -(-wanted // 2 // seen.images)
        top = largest.topk(min(share, largest.shape[1]), 1).indices + torch.arange(seen.images)[:, None] * largest.shape[1]
        own = (self.seed + (seen.number << 48)) & (2**63 - 1)  # not of the passes before, which others may look at
        generator = torch.Generator().manual_seed(own)
        drawn = torch.randperm(every, generator=generator)[: wanted - wanted // 2]
        return torch.cat([top.flatten(), drawn]).unique()


def input_rows(node: Node, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a product multiplies at positions of its result: ((P, T, C), (P, T, 1) with 0 beyond the border, or None)."""
    if x.ndim == 2:
        return x[at][:, None], None
    kernel, stride = node.weights["weight"].shape[-1], node.settings["stride"]
    width, area = node.size[2], node.size[1] * node.size[2]
    image, row, column = at // area, at % area // width * stride, at % width * stride
    if kernel == 1:
        return x.permute(0, 2, 3, 1)[image, row, column][:, None], None
    padded, inside = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1), F.pad(torch.ones(x.shape[2:]), (1, 1, 1, 1))
    taps = [(dy, dx) for dy in range(3) for dx in range(3)]
    rows = torch.stack([padded[image, row + dy, column + dx] for dy, dx in taps], 1)
    return rows, torch.stack([inside[row + dy, column + dx] for dy, dx in taps], 1)[:, :, None]


Rows = tuple[Tensor, Tensor | None, Tensor | None]  # x (P, T, C), inside (P, T, 1) or None, importance (P, N) or None


def rows_at(node: Node, seen: Pass, at: Tensor) -> Rows:
    """What a product takes at positions of its result, and how much the results count there: the squares of their gradients."""
    importance = importance_of(node, seen)
    return (*input_rows(node, multiplied(node, seen), at), None if importance is None else importance[at])


def multiplied(node: Node, seen: Pass) -> Tensor:
    """What a product takes, a second map beside the first."""
    first = seen.values[node.inputs[0]]
    return torch.cat([first, seen.values[node.inputs[1]]], 1) if node.settings.get("second") else first


def importance_of(node: Node, seen: Pass) -> Tensor | None:
    """(P, N) of all positions."""
    if seen.gradients is None:
        return None
    grad, y = seen.gradients.get(node.name), seen.values[node.name]
    return (torch.zeros_like(y) if grad is None else grad.square()).movedim(1, -1).reshape(-1, y.shape[1])


def joined(rows: list[Rows]) -> Rows:
    xs, insides, weights = zip(*rows, strict=True)
    some = [each for each in weights if each is not None]
    return torch.cat(xs), None if insides[0] is None else torch.cat(insides), torch.cat(some) if some else None


class View(NamedTuple):
    """Whole maps of a few images: what a node takes, and the squares of the gradients at its result."""

    inputs: list[Tensor]
    weight: Tensor | None


def view_of(program: Program, user: str | None, member: str, seen: Pass, images: int) -> View:
    """Of the first images of a pass. user None: of the result `member` by itself."""
    names = (member,) if user is None else program[user].inputs
    inputs = [seen.values[name][:images].clone() for name in names]
    if seen.gradients is None:
        return View(inputs, None)
    grad = seen.gradients.get(member if user is None else user)
    like = seen.values[member if user is None else user]
    return View(inputs, torch.zeros_like(like[:images]) if grad is None else grad[:images].square())


def joined_views(views: list[View]) -> View:
    inputs = [torch.cat(each) for each in zip(*(view.inputs for view in views), strict=True)]
    some = [view.weight for view in views if view.weight is not None]
    return View(inputs, torch.cat(some) if some else None)
