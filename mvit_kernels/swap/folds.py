"""Folds of weights as one op each, for a graph that is computed where it was made.

Traced step by step, folding BatchNorms is most ops of a network. Whoever exports a graph for others wants these, which are torch's own;
`graph.capture`, which computes them at once, makes do with one op that names its recipe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mvit_kernels.ops.library import register

Tensor = torch.Tensor
Recipe = Callable[..., Any]

_here, _lock = threading.local(), threading.Lock()
_recipes: list[Recipe] = []
_numbers: dict[Recipe, int] = {}  # equal recipes are one
_results: dict[tuple[int, tuple[bool, ...]], tuple[pytree.TreeSpec, tuple[bool, ...]]] = {}
"""By recipe and which sources there are: the structure of what it gives, and which of that are tensors (the others are None)."""


@contextmanager
def as_ops() -> Iterator[None]:
    """What this thread exports within has one op for a fold."""
    before, _here.wanted = getattr(_here, "wanted", False), True
    try:
        yield
    finally:
        _here.wanted = before


def are_ops() -> bool:
    return not torch.compiler.is_dynamo_compiling() and getattr(_here, "wanted", False)


def fold(recipe: Recipe, sources: Sequence[Tensor | None]) -> Any:
    """What recipe(*sources) gives, by one op. Recipes are few: each that ever came is kept, for graphs name it by its number."""
    with _lock:
        if recipe not in _numbers:
            _recipes.append(recipe)
            _numbers[recipe] = len(_recipes) - 1
    number, there = _numbers[recipe], tuple(each is not None for each in sources)
    made = iter(_op(list(sources), number))
    structure, tensors = _results[number, there]
    return pytree.tree_unflatten([next(made) if each else None for each in tensors], structure)


def _run(sources: Sequence[Tensor | None], recipe: int) -> list[Tensor]:
    leaves, structure = pytree.tree_flatten(_recipes[recipe](*sources))
    _results[recipe, tuple(each is not None for each in sources)] = structure, tuple(each is not None for each in leaves)
    return [each for each in leaves if each is not None]


_op = register("fold_weights", "(Tensor?[] sources, int recipe) -> Tensor[]", _run, _run)
