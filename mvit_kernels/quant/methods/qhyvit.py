"""Q-HyViT: scale, granularity and scheme of every quantizer together, by what an error does to the loss.

Lee, Kwon, Park and Kim 2023, "Q-HyViT: post-training quantization of hybrid vision transformers with bridge block reconstruction for IoT
systems" (arXiv 2303.12557). An error dO of the result of a layer adds dO^T H dO to the loss, of which H is the diagonal of the squares of
the gradient. For each layer, of its weight and what it takes in turns: 100 scales, one for all channels or one for each, symmetric or not.
Bridge blocks are judged by the result of their whole chain, the layers before in it quantized.

What is ours: before all else, factors of channels move between layers where kernels have one scale for all of them (`equalization.py`), in
place of the paper's scales of channels. Candidates are those that integer kernels run (scales of channels only where weights absorb them,
also by half); ranges without 0 keep a wide zero-point where kernels take it, and are widened elsewhere; weights have a factor for each
output channel. Against ranges that fit 32 images too well: gradients have length 1 at the results for each image, ranges of half of the
images are judged on the others, so are factors of channels, and on all positions of all images the choice is held against wider ones and
min-max, by mean and spread over images. Of fewer than four images there is no such half, and nothing is told of single channels.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from ..affine import Family, families
from ..bridges import bridges
from ..calibrate import Range, mean_squares
from ..equalization import Seam, factors, migrated, seams
from ..hessian import Gradients
from ..layout import Layout
from ..parts import Part
from ..probes import Hessian
from ..representation import representations
from ..search import FEWEST, Plan, Search, half_ranges
from ..state import Stage
from .base import Found, Task

Tensor = torch.Tensor
GRID = tuple(torch.linspace(0.01, 1.2, 100, dtype=torch.float64).tolist())
ROUNDS = 3


def find(task: Task) -> Found:
    some = are_some(task)
    migration = _migration(task) if some else {}
    if migration:
        task = replace(task, layout=Layout(migrated(task.layout.program, migration), task.config))
    begun = representations(task.layout, task.ranges, task.config)
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        gradients = Gradients(task.layout, begun, task.config, task.loss)
        search = Search(
            task, begun, Plan(Hessian(), GRID, ROUNDS, partial(_families, some), tuple(bridges(task.layout)), halves=True), gradients
        )
        search.run()
    return Found(search.found(), search.stretch, *search.decided(), migration=migration, task=task)


def are_some(task: Task) -> bool:
    """Whether there are images enough for half of them to say something about the others."""
    return sum(batch.shape[0] for batch in task.batches) >= FEWEST


def _migration(task: Task) -> dict[str, Tensor]:
    layout, config = task.layout, task.config

    def wanted(seam: Seam) -> bool:
        """Bytes with one scale for all channels."""
        names = [name for name, _ in seam.results]
        return all(name in layout.integer for name in names) and not all(layout.by_channel(name) for name in names)

    if not task.ranges or not any(map(wanted, seams(layout.program))):
        return {}
    ranges, half = dict(task.ranges), half_ranges(task)
    for each in (ranges, half):
        for name in layout.scores:  # values pass relu before anything else
            each[name] = Range(*(end.clamp_min(0.0) for end in each[name]))
    squares = task.state.once("mean squares", lambda: Stage(mean_squares(layout.program, task.batches, task.progress, task.share))).tensors
    return factors(layout.program, ranges, half, squares, (config.weight_bits, config.activation_bits or 8), wanted)


def _families(by_channel: bool, part: Part, low: Tensor, high: Tensor) -> list[Family]:
    return families(low, high, part.bits, by_channel=by_channel and part.by_channel, wide=part.wide)
