"""Q-HyViT's search, and after it weights that are rounded together and corrected biases.

Layer after layer, on what the integers before each layer give (`reconstruction.py`): what others found and what measures better with it
(`benchmarks/quant_accuracy.py`).

Factors of channels that are learned, as of "HyQ: hardware-friendly post-training quantization for CNN-transformer hybrid networks" (IJCAI
2024), were tried here and left out: those of `equalization.py` that then follow the gradient of their noise left less of it, and top-1 was
no better on the stand-in task.
"""

from __future__ import annotations

from dataclasses import replace

from ..reconstruction import reconstructed
from ..rounding import rounded
from . import qhyvit
from .base import Found, Task


def find(task: Task) -> Found:
    found = qhyvit.find(task)
    if not qhyvit.are_some(task):  # what a few images show of moments and means is theirs alone
        if not task.ranges:  # nobody has looked yet whether all values are finite
            task.ranges_of(task.batches)
        return found
    task = found.task or task
    layers = reconstructed(task, found.representations, rounded(task.layout, found.representations, task.config, found.stretch))
    return replace(found, layers=layers)
