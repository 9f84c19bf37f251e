"""Q-HyViT's search, and after it weights that are rounded together and corrected biases.

Layer after layer, on what the integers before each layer give (`reconstruction.py`): what others found and what measures better with it
(`benchmarks/quant_accuracy.py`).

Measured and left out are factors of channels that are learned, as of "HyQ: hardware-friendly post-training quantization for CNN-transformer
hybrid networks" (IJCAI 2024): by Adam from 0.01 with a cosine, 200 steps through the rounding of inputs and weights, for the least squares
of each layer's result. From where the search ends, scales of channels that are learned so leave more error than they begin with
(MobileViTv2-0.5 at W6A6, all layers: 0.28 against 0.22 as trained, 0.73 against 0.60 with unequal channels; 5 and 10 of 29 results are
better). Factors of `equalization.py` that follow the gradient of their noise, 500 steps from the best exponent, leave 9 % less of it, and
top-1 is no better: as trained, by three sets of calibration images, MobileViTv2-0.5 has 94.2 (with learned scales too), 94.1 and 94.6 %
with them, 93.8, 94.2 and 94.8 % without, MobileViT-xxs by two 94.9 and 95.2 against 95.1 and 95.7 %; with learned scales too, the first
has 94.4 against 94.1 % with unequal channels and 94.2 against 93.9 % with mixed norms.
"""

from __future__ import annotations

from dataclasses import replace

from ..reconstruction import reconstructed
from ..rounding import rounded
from . import qhyvit
from .base import Found, Task


def find(task: Task) -> Found:
    found = qhyvit.find(task)
    task = found.task or task
    layers = reconstructed(task, found.representations, rounded(task.layout, found.representations, task.config, found.stretch))
    return replace(found, layers=layers)
