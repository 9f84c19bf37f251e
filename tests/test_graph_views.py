"""Views are what torch makes of the same moves."""

from __future__ import annotations

import math
import random

import pytest
import torch

from mvit_kernels.graph.builder import Builder
from mvit_kernels.graph.interpreter import evaluate
from mvit_kernels.graph.views import IMAGES, View, folded, unfolded, whole

Tensor = torch.Tensor
BATCH = 7  # no factor of any other size


def shape_of(view: View) -> list[int]:
    return [size // IMAGES * BATCH if size % IMAGES == 0 else size for size in view.shape]


def made(view: View, x: Tensor) -> Tensor:
    """What the nodes of a view make of the result that it is of."""
    build = Builder()
    build.add("input", (), view.size, view.name)
    name = build.plain(view)
    for node in build.nodes[1:]:
        x = evaluate(node, [x])
        assert x.shape[1:].numel() == 0 or [size for size in node.size if size != -1] == [
            size for size, known in zip(x.shape[1:], node.size, strict=True) if known != -1
        ]
    assert name == build.nodes[-1].name
    return x


def moved(choose: random.Random, view: View, x: Tensor) -> tuple[View | None, Tensor]:
    """A random move of both."""
    dim, sizes = choose.randrange(x.ndim), list(x.shape)
    move = choose.choice(["permute", "split", "merge", "narrow", "select", "windows", "unsqueeze"])
    if move == "permute":
        order = choose.sample(range(x.ndim), x.ndim)
        return view.permute(order), x.permute(order)
    images = [size % IMAGES == 0 for size in view.shape]
    if move == "split":
        inner = choose.choice([each for each in (1, 2, 3, 4, 6) if sizes[dim] % each == 0])
        new = [*sizes[:dim], sizes[dim] // inner, inner, *sizes[dim + 1 :]]
        old = list(view.shape)
        return view.reshape([*old[:dim], old[dim] // inner, inner, *old[dim + 1 :]]), x.reshape(new)
    if move == "merge" and dim + 1 < x.ndim:
        old = list(view.shape)
        together = view.reshape([*old[:dim], old[dim] * old[dim + 1], *old[dim + 2 :]])
        return together, x.flatten(dim, dim + 1)
    if move == "narrow" and not images[dim]:
        start = choose.randrange(sizes[dim])
        length = choose.randint(1, sizes[dim] - start)
        return view.narrow(dim, start, length), x.narrow(dim, start, length)
    if move == "select" and not images[dim]:
        index = choose.randrange(sizes[dim])
        return view.select(dim, index), x.select(dim, index)
    if move == "windows" and not images[dim] and sizes[dim] % 2 == 0:
        return view.windows(dim, 2), x.unfold(dim, 2, 2)
    old = list(view.shape)
    return view.reshape([*old[:dim], 1, *old[dim:]]), x.unsqueeze(dim)


@pytest.mark.parametrize("size", [(6, 4, 8), (24, 1, 6), (1, 4, 4), (12,), (1,)])
@pytest.mark.parametrize("seed", range(8))
def test_random_moves(size: tuple[int, ...], seed: int) -> None:
    """Whatever a view says of itself holds; where there is no view, one more move would have needed a copy of another kind."""
    choose = random.Random(f"{size} {seed}")
    count = 0
    for _ in range(12):
        view = whole("x", size, "b,c,h,w" if len(size) == 3 else "b,c")
        base = torch.arange(BATCH * math.prod(size)).reshape(BATCH, *size)
        y = base
        for _ in range(choose.randint(1, 8)):
            new, moved_y = moved(choose, view, y)
            if new is None:
                continue
            view, y = new, moved_y
            count += 1
            assert shape_of(view) == list(y.shape)
        assert torch.equal(made(view, base), y)
        assert view.whole == (y.numel() == base.numel())
        assert view.channels == len(view.indices)
        alone = view.alone("y")
        assert alone.whole
        assert torch.equal(made(alone, base[:, view.indices]), y)
    assert count > 20


def test_windows_are_patches() -> None:
    """torch.nn.Unfold and torch.nn.Fold."""
    x = torch.arange(BATCH * 3 * 4 * 6.0).reshape(BATCH, 3, 4, 6)
    view = whole("x", (3, 4, 6), "b,c,h,w")
    patches = unfolded(view, (2, 3))
    assert torch.equal(made(patches, x), torch.nn.functional.unfold(x, (2, 3), stride=(2, 3)))
    assert folded(patches, (4, 6), (2, 3)) == view
    assert unfolded(view, (3, 2)) is None
    assert folded(patches, (6, 4), (2, 3)) != view
    tokens = whole("x", (3, 4, 6), "b,hw,c")
    assert unfolded(tokens, (2, 2)) is folded(view, (4, 6), (2, 2)) is None


def test_what_is_no_view() -> None:
    view = whole("x", (6, 4, 5), "b,c,h,w")
    assert view.reshape([IMAGES, 4, 30]) is None  # 4 of 6 channels
    assert view.narrow(2, 0, 2) is None  # some of the rows
    assert view.windows(3, 2) is None
    assert view.reshape([IMAGES, 7, 20]) is None
    assert view.permute([0, 2, 1, 3]).reshape([IMAGES, 24, 5]).channel is None


def test_where_channels_are() -> None:
    assert whole("x", (6, 4, 5), "b,hw,c").channel == 2
    assert whole("x", (1, 4, 5), "b,c,h,w").channel == 1
    assert whole("x", (1, 4, 1), "b,c,h,w").channel is None  # or 3
    tokens = whole("x", (6, 4, 5), "b,hw,c")
    assert tokens.is_tokens
    assert not tokens.is_map
    assert tokens.on("y", (1, 4, 5)) == View("y", (1, 4, 5), (*tokens.dims[:2], ()))
    assert tokens.alike(tokens.on("y"))
    assert not tokens.alike(whole("y", (6, 5, 4), "b,hw,c"))
    assert not tokens.alike(tokens.narrow(2, 0, 3))
