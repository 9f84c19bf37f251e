"""The least squared error of every tensor by itself.

Choukroun, Kravchik, Yang and Kisilev 2019, "Low-bit quantization of neural networks for efficient inference" (OMSE): the scale of a tensor
is that of the least |x - Q(x)|^2, for each activation as a whole and for each output channel of a weight. As FQ-ViT has it, ranges are
shrunk at both ends in steps of a hundredth.
"""

from __future__ import annotations

import torch

from mvit_kernels.ops.pack_weight import MOST

from ..histogram import Histogram
from ..representation import Byte, byte_of
from ..rounding import is_rounded
from .base import Found, Task
from .cut import find_by, squared_error

Tensor = torch.Tensor
SHRINK = tuple(1 - i / 100 for i in range(90))


def find(task: Task) -> Found:
    found = find_by(task, _choose, squared_error, "mse")
    stretch, more = {}, {}
    for node in task.layout.program:
        if is_rounded(node, task.config) and node.weights["weight"].numel():
            bits = task.config.weight_bits_of(node.name)
            stretch[node.name], error, minmax = least_squares(node.weights["weight"], bits)
            more[node.name] = {"objective": "mse", "error": error, "minmax_error": minmax}
    return Found(found.representations, stretch, found.more, more)


def least_squares(weight: Tensor, bits: int) -> tuple[Tensor, float, float]:
    """((N,) factors of the scale of the largest value, the mean squared error with them, that without)."""
    rows, most = weight.detach().double().flatten(1), MOST[bits]
    scale = (rows.abs().amax(1, keepdim=True) / most).clamp_min(2.0**-40)
    errors = []
    for factor in SHRINK:
        step = scale * factor
        errors.append(((rows / step).round().clamp(-most, most) * step - rows).square().sum(1))
    best, index = torch.stack(errors).min(0)
    return torch.tensor(SHRINK, dtype=torch.float64)[index], float(best.sum() / rows.numel()), float(errors[0].sum() / rows.numel())


def _choose(pictures: list[Histogram], bits: int, _: float) -> Byte:
    lows, highs = zip(*(picture.quantiles(0.0) for picture in pictures), strict=True)  # of values of which there are some
    low, high = min(lows), max(highs)
    return min((byte_of(low * factor, high * factor, bits) for factor in SHRINK), key=lambda byte: squared_error(pictures, byte))
