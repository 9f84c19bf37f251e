"""Q-HyViT's search between two steps that others found and that measure better with it (`benchmarks/quant_accuracy.py`).

Before it, factors of channels move between layers where kernels have one scale for all of them (`equalization.py`). After it, weights are
rounded together and biases corrected, layer after layer, on what the integers before each layer give (`reconstruction.py`).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..calibrate import Range, mean_squares
from ..equalization import Seam, factors, migrated
from ..layout import Layout
from ..reconstruction import reconstructed
from ..rounding import rounded
from . import qhyvit
from .base import Found, Task

Tensor = torch.Tensor


def find(task: Task) -> Found:
    migration = _migration(task)
    program = migrated(task.layout.program, migration)
    task = replace(task, layout=Layout(program, task.config))
    found = qhyvit.find(task)
    layers = reconstructed(task, found.representations, rounded(task.layout, found.representations, task.config, found.stretch))
    return replace(found, migration=migration, layers=layers)


def _migration(task: Task) -> dict[str, Tensor]:
    layout, config = task.layout, task.config
    ranges = dict(task.ranges)
    if not ranges:
        return {}
    for name in layout.scores:  # values pass relu before anything else
        ranges[name] = Range(*(each.clamp_min(0.0) for each in ranges[name]))

    def wanted(seam: Seam) -> bool:
        """Bytes with one scale for all channels."""
        names = [name for name, _ in seam.results]
        return all(name in layout.integer for name in names) and not all(layout.by_channel(name) for name in names)

    squares = mean_squares(layout.program, task.batches, task.progress, task.share)
    return factors(layout.program, ranges, squares, (config.weight_bits, config.activation_bits or 8), wanted)
