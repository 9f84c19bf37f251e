"""Softmax inside of attention nodes: what scores go into it, and quantizers in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from tqdm import tqdm

from mvit_kernels.graph import Node, Program, run

from .layout import Layout
from .share import ALONE, Share

Tensor = torch.Tensor
KINDS = ("patch_attention", "attention", "separable_context")


def key_of(name: str) -> str:
    """Under which the quantizer of a node's softmax is kept."""
    return f"{name}.softmax"


def attentions(layout: Layout) -> list[Node]:
    """With a softmax, of those that are to run in integers."""
    return [node for node in layout.program if node.kind in KINDS and node.name in layout.integer]


def with_softmax(node: Node, softmax: Callable[[Tensor], Tensor]) -> Node:
    return replace(node, settings={**node.settings, "softmax": softmax})


def see_scores(
    program: Program, nodes: list[Node], batches: list[Tensor], see: Callable[[int, str, Tensor], None], what: str, progress: bool,
    share: Share = ALONE,
) -> None:  # fmt: skip
    """`see(number of the batch, name of the node, scores)` for the scores (..., M) of nodes, in this process's share of the batches."""
    for number, batch in tqdm(share.of(batches), desc=what, unit="batch", leave=False, disable=None if progress else True):

        def watched(name: str, number: int = number) -> Callable[[Tensor], Tensor]:
            def softmax(scores: Tensor) -> Tensor:
                see(number, name, scores)
                return scores.softmax(-1)

            return softmax

        watching = program.rewritten({node.name: with_softmax(node, watched(node.name)) for node in nodes})
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            run(watching, batch)
