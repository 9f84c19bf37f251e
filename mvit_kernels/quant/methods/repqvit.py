"""RepQ-ViT: quantizers of channels for what norms give, which the layers behind absorb, and logarithms to the base sqrt(2) for softmax.

Li, Xiao, Yang and Gu 2023, "RepQ-ViT: scale reparameterization for post-training quantization of vision transformers" (arXiv 2212.08254),
for comparison. Each channel of a norm has a scale s_c and a zero-point z_c. The paper divides gamma and beta of the norm by r_c = s_c / s,
with s the mean, shifts them by what z_c differs from the mean, and multiplies the columns of the weights behind by r_c (section 3.3): then
one quantizer for all channels does the same. Here norms have neither gamma nor beta, as these are in the weights already, and the bytes of
a norm have scales and zero-points of channels, which weights and biases of products absorb (`Channels`): the same numbers.

Ranges are cut at both ends by that of TAILS that has the least squared error, as in the published code; weights too, after they absorbed
scales. Otherwise than there, weights are symmetric, as kernels have them, and convolutions, which are most of a hybrid network, have as few
bits as everything else.
"""

from __future__ import annotations

import torch

from mvit_kernels.graph import Node
from mvit_kernels.ops.pack_weight import MOST

from ..histogram import BINS, Histogram, Part, histograms
from ..layout import NORMS
from ..representation import TINY, Byte, Channels, Representation, bits_of, byte_members, byte_of, single
from ..rounding import fold_of, is_rounded
from ..simulated import RootLogSoftmax
from ..softmaxes import attentions, key_of, see_scores
from .base import Found, Task
from .cut import find_by, room, squared_error

Tensor = torch.Tensor
TAILS = (1e-3, 1e-4, 1e-5)


def find(task: Task) -> Found:
    found = find_by(task, cut, squared_error, "mse")
    representations = {**found.representations, **_norms(task), **_softmax(task)}
    stretch, layout = {}, task.layout
    for node in layout.program:
        if is_rounded(node, task.config) and node.weights["weight"].numel():
            source = representations.get(layout.key(node.inputs[0], "byte")) if node.name in layout.integer else None
            stretch[node.name] = _weight(node, source, task.config.weight_bits_of(node.name))
    more = {key: fields for key, fields in found.more.items() if not isinstance(representations.get(key), Channels)}
    return Found(representations, stretch, more)


def cut(pictures: list[Histogram], bits: int, farthest: float) -> Byte:
    """The range of all pictures without the tail with which it has the least squared error."""
    candidates = []
    for tail in TAILS:
        lows, highs = zip(*(picture.quantiles(tail) for picture in pictures), strict=True)
        candidates.append(_byte(min(lows), max(highs), bits, farthest))
    return min(candidates, key=lambda byte: squared_error(pictures, byte))


def _byte(low: float, high: float, bits: int, farthest: float) -> Byte:
    """Of a range that may be without 0, if its zero-point is not too far for that."""
    most = 2**bits - 1
    if high > low:
        scale = single(max((high - low) / most, TINY))
        zero_point = round(-low / scale)
        if max(abs(zero_point), abs(most - zero_point)) <= farthest:
            return Byte(scale, zero_point, bits)
    return byte_of(low, high, bits)


def _norms(task: Task) -> dict[str, Representation]:
    """By key. What is in one group with other results keeps the scale of that."""
    layout = task.layout
    wanted = {
        key: name for key, (name, form) in layout.needed().items()
        if form == "byte" and key == name and layout.program[name].kind in NORMS and byte_members(layout, name) == [name]
    }  # fmt: skip
    parts: dict[str, list[Part]] = {name: [(name, c, c + 1) for c in range(layout.program[name].size[0])] for name in wanted.values()}
    every = {part for each in parts.values() for part in each}
    seen = histograms(layout.program, task.batches, task.ranges, every, task.progress, task.share) if every else {}
    found: dict[str, Representation] = {}
    for key, name in wanted.items():
        bytes_ = [cut([seen[part]], bits_of(task.config, name), room(task, [name])) for part in parts[name]]
        found[key] = Channels(tuple(each.scale for each in bytes_), tuple(each.zero_point for each in bytes_), bytes_[0].bits)
    return found


def _softmax(task: Task) -> dict[str, Representation]:
    """By key: of the quantiles of TAILS, the largest weight with the least squared error."""
    nodes = attentions(task.layout)
    counts: dict[int, dict[str, Tensor]] = {number: {} for number, _ in task.share.of(task.batches)}

    def see(number: int, name: str, scores: Tensor) -> None:
        index = (scores.softmax(-1).reshape(-1) * BINS).long().clamp_max_(BINS - 1)
        counts[number][name] = torch.bincount(index, minlength=BINS).double()

    if nodes:
        see_scores(task.layout.program, nodes, task.batches, see, "softmax", task.progress, task.share)
    pieces = task.share.gathered(counts)
    made: dict[str, Representation] = {}
    for node in nodes:
        picture = Histogram(0.0, 1.0, torch.stack([piece[node.name] for piece in pieces]).sum(0))
        bits, weights = bits_of(task.config, node.name), picture.centers()
        candidates = [RootLogSoftmax(single(picture.quantiles(tail)[1]), bits) for tail in TAILS]

        def error(candidate: RootLogSoftmax, picture: Histogram = picture, weights: Tensor = weights) -> float:
            return float((picture.counts * (candidate.quantized(weights) - weights).square()).sum())

        made[key_of(node.name)] = min(candidates, key=error)
    return made


def _weight(node: Node, source: Representation | None, bits: int) -> Tensor:
    """(N,) factors of the scale of the largest weight."""
    weight, most = node.weights["weight"].detach().double(), MOST[bits]
    if isinstance(source, Channels):
        weight = weight * fold_of(node, source)
    sizes = weight.abs().flatten(1)
    largest = sizes.amax(1).clamp_min(torch.finfo(torch.float64).tiny)
    ends = sizes.quantile(1 - torch.tensor(TAILS, dtype=torch.float64), 1)  # (tails, N)
    steps = (ends / most).clamp_min(2.0**-40)[:, :, None]
    errors = torch.stack([((sizes / step).round().clamp_max(most) * step - sizes).square().sum(1) for step in steps])
    return (ends / largest).gather(0, errors.argmin(0)[None])[0].clamp_min(2.0**-10)
