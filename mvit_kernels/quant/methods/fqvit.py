"""FQ-ViT: powers of two for the channels of what norms take, and logarithms for softmax.

Lin, Zhang, Sun, Li and Zhou 2022, "FQ-ViT: post-training quantization for fully quantized vision transformer" (arXiv 2111.13824), for
comparison. Ranges are those from the smallest to the largest value. Streams are bytes: with the step s that holds all channels and one
zero-point, each channel has the step s / 8, s / 4, s / 2 or s with the least squared error (section 4.1, "power-of-two factor").
Softmax gives 4 bits, 2^-q, from scores in bytes (section 4.2, "log-int-softmax").

Otherwise than in the published code zero-points are not clamped (ranges without 0 are widened), factors are chosen on all images instead of
the last batch, norms are computed exactly instead of with multipliers of 8 bits, and weights are symmetric, as kernels have them.
"""

from __future__ import annotations

import torch
from tqdm import tqdm

from mvit_kernels.graph import Node, run

from ..representation import Byte, Channels, Representation, Scores, bits_of, byte_of, representations, single, whole
from ..simulated import LogIntSoftmax
from ..softmaxes import attentions, key_of, see_scores
from .base import Found, Task

Tensor = torch.Tensor
FACTORS = 4  # 2^0 to 2^3


def find(task: Task) -> Found:
    found = representations(task.layout, task.ranges, task.config)
    return Found({**found, **_streams(task), **_softmax(task, found)})


def _streams(task: Task) -> dict[str, Representation]:
    """By key."""
    layout = task.layout
    bytes_: dict[str, Byte] = {}
    for name, form in layout.needed().values():
        if form == "stream":
            bytes_[name] = byte_of(*whole(task.ranges[name]), bits_of(task.config, name))
    found: dict[int, dict[str, Tensor]] = {}

    def watch(node: Node, y: Tensor) -> None:
        if node.name in bytes_:
            found[number][node.name] = channel_errors(y, bytes_[node.name])

    if bytes_:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            bar = tqdm(
                task.share.of(task.batches), desc="powers of two", unit="batch", leave=False, disable=None if task.progress else True
            )
            for number, batch in bar:
                found[number] = {}
                run(layout.program, batch, watch)
    pieces = task.share.gathered(found)
    return {
        layout.key(name, "stream"): power_of_two(byte, torch.stack([piece[name] for piece in pieces]).sum(0))
        for name, byte in bytes_.items()
    }


def channel_errors(x: Tensor, byte: Byte) -> Tensor:
    """(FACTORS, C) float64: squared errors of the channels of x (B, C, ...) at each factor; with the last, steps are those of `byte`."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    errors = []
    for factor in range(FACTORS):
        scale = byte.scale * 2.0 ** (factor - FACTORS + 1)
        q = (x / scale).round().clamp(-byte.zero_point, 2**byte.bits - 1 - byte.zero_point)
        errors.append((q * scale - x).double().square().sum(axes))
    return torch.stack(errors)


def power_of_two(byte: Byte, errors: Tensor) -> Channels:
    """By the least of `channel_errors`."""
    scales = byte.scale * 2.0 ** (errors.argmin(0).double() - FACTORS + 1)
    return Channels(tuple(map(single, scales.tolist())), (byte.zero_point,) * errors.shape[1], byte.bits)


def _softmax(task: Task, found: dict[str, Representation]) -> dict[str, Representation]:
    """By key."""
    layout, nodes = task.layout, attentions(task.layout)
    seen: dict[int, dict[str, tuple[float, float]]] = {number: {} for number, _ in task.share.of(task.batches)}

    def see(number: int, name: str, scores: Tensor) -> None:
        low, high = scores.aminmax()
        seen[number][name] = float(low), float(high)

    inside = [node for node in nodes if node.kind != "separable_context"]
    if inside:
        see_scores(layout.program, inside, task.batches, see, "scores", task.progress, task.share)
    pieces = task.share.gathered(seen)
    made: dict[str, Representation] = {}
    for node in nodes:
        if node.kind == "separable_context":  # scores are a result, which has bytes
            scores = found[layout.key(node.inputs[0], "byte")]
            assert isinstance(scores, Scores)
            byte = scores.scores
        else:
            lows, highs = zip(*(piece[node.name] for piece in pieces), strict=True)
            byte = byte_of(min(lows), max(highs), bits_of(task.config, node.name))
        made[key_of(node.name)] = LogIntSoftmax(byte.scale, byte.zero_point, byte.bits)
    return made
