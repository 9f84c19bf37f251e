"""EasyQuant: scales of weights and of results in turns, by the angle between each layer's result and the exact one.

Wu, Tang, Zhao, Zhang, Fu and Zhang 2020, "EasyQuant: post-training quantization via scale optimization" (arXiv 2006.16669): from the scales
of the largest values, 100 steps from 0.5 to 2 times these, for the weight and then for the input, whichever has the largest cosine; a few
rounds. Weights have a scale for each output channel, as kernels do. The paper's zero-points are 0; here they are those of min-max, with
which the same search begins no worse.
"""

from __future__ import annotations

import torch

from ..affine import Family, families
from ..parts import Part
from ..probes import Cosine
from ..representation import representations
from ..search import Plan, Search
from .base import Found, Task

Tensor = torch.Tensor
GRID = tuple(torch.linspace(0.5, 2.0, 100, dtype=torch.float64).tolist())
ROUNDS = 2


def find(task: Task) -> Found:
    begun = representations(task.layout, task.ranges, task.config)
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        search = Search(task, begun, Plan(Cosine(), GRID, ROUNDS, _families), None)
        search.run()
    return Found(search.found(), search.stretch, *search.decided())


def _families(part: Part, low: Tensor, high: Tensor) -> list[Family]:
    return families(low, high, part.bits, by_channel=False, wide=False)[:1]
