"""PTQ4ViT: twin uniform quantizers for softmax and for what SiLU or GELU gives, scales by what an error does to the loss.

Yuan, Xue, Chen, Wu and Sun 2022, "PTQ4ViT: post-training quantization for vision transformers with twin uniform quantization" (arXiv
2111.12293), for comparison. Every quantizer is symmetric; scales of weights and of what they multiply are searched in turns, three times,
among 100 from 0.01 to 1.2 times that of the largest value, by the error of the layer's result, weighted by the squares of its gradient
(section 3.2). Behind GELU the step below 0 is such that the bits just hold GELU's minimum, and the step above it is searched; softmax
is split at one of 2^0 to 2^-19 (section 3.1).

The paper's networks have GELU; SiLU has a lower minimum. Otherwise than in the published code inputs of convolutions are quantized too,
weights have a scale for each output channel, as kernels do, and no weight of softmax is in both of its ranges (`simulated.TwinSoftmax`).
As with "qhyvit", gradients have length 1 at the results for each image, and choices are held against where the search began.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mvit_kernels.graph.interpreter import evaluate

from ..affine import Candidates, Family, fake_quantize
from ..hessian import Gradients
from ..layout import COPIES, Layout
from ..parts import Part
from ..probes import Hessian
from ..representation import SEVERAL, TINY, Byte, Representation, bits_of, byte_members, representations, single
from ..samples import chunks, passes
from ..search import Plan, Search
from ..simulated import Twin, TwinSoftmax
from ..softmaxes import attentions, key_of, with_softmax
from .base import Found, Task, part_range, range_of

Tensor = torch.Tensor
GRID = tuple(torch.linspace(0.01, 1.2, 101, dtype=torch.float64)[:100].tolist())
ROUNDS = 3
SPLITS = tuple(2.0**-i for i in range(20))
LEAST = {"silu": 0.27846454, "gelu": 0.16997124}  # -min of x sigmoid(x), of x Phi(x)


def find(task: Task) -> Found:
    begun = _begun(task)
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        gradients = Gradients(task.layout, begun, task.config, task.loss)
        search = Search(task, begun, Plan(Hessian(), GRID, ROUNDS, _families), gradients)
        search.run()
        found = search.found()
        softmax, errors = _softmax(task, found, gradients)
    more, weights = search.decided()
    return Found({**found, **softmax}, search.stretch, more | errors, weights)


def _begun(task: Task) -> dict[str, Representation]:
    """By the largest value."""
    found: dict[str, Representation] = {}
    for key, value in representations(task.layout, task.ranges, task.config).items():
        found[key] = value
        if isinstance(value, SEVERAL):
            ranges = {part: part_range(task, key, f"{key}.{part}") for part in value.parts()}
            found[key] = type(value)(**{part: _symmetric(*ends, value.parts()[part].bits) for part, ends in ranges.items()})
        elif isinstance(value, Byte):
            low, high = range_of(task, key)
            least = _least(task.layout, key)
            found[key] = _symmetric(low, high, value.bits) if least is None else _twin(least, high, value.bits)
    return found


def _symmetric(low: float, high: float, bits: int) -> Byte:
    return Byte(single(max(_unit(max(-low, high), bits), TINY)), 2 ** (bits - 1), bits)


def _twin(least: float, high: float, bits: int) -> Twin:
    return Twin(single(least / 2 ** (bits - 1)), single(max(_unit(high, bits), TINY)), bits)


def _unit(largest: float, bits: int) -> float:
    return largest / (2 ** (bits - 1) - 0.5)


def _least(layout: Layout, key: str) -> float | None:
    """How far below 0 an activation goes that gives all that has this quantizer; None if there is none that gives all of it."""
    name, form = layout.needed()[key]
    if form != "byte" or key != name:
        return None
    writers = [layout.program[each] for each in byte_members(layout, name)]
    settings = [node.settings for node in writers if node.kind not in COPIES]
    functions = {each.get("activation", each.get("function")) if not each.get("residual") else None for each in settings}
    return LEAST.get(next(iter(functions)) or "") if len(functions) == 1 else None


@dataclass(frozen=True)
class _TwinFamily:
    """Twin uniform quantizers that differ in the step above 0."""

    unit: Twin

    def at(self, factor: float) -> Twin:
        return Twin(self.unit.negative, single(max(self.unit.positive * factor, TINY)), self.unit.bits)


def _families(part: Part, low: Tensor, high: Tensor) -> list[Candidates]:
    if isinstance(part.affine, Twin):
        return [_TwinFamily(Twin(part.affine.negative, max(_unit(float(high.max()), part.bits), TINY), part.bits))]
    low, high = low.double().min().reshape(1), high.double().max().reshape(1)
    unit = torch.maximum(-low, high).mul(1 / (2 ** (part.bits - 1) - 0.5)).clamp_min(TINY)
    return [Family("symmetric", low, high, unit, "zero", part.bits)]


def _softmax(
    task: Task, found: dict[str, Representation], gradients: Gradients
) -> tuple[dict[str, Representation], dict[str, dict[str, object]]]:
    """(by key, fields of decisions): the splits with the least error of what attention gives."""
    layout, metric, nodes = task.layout, Hessian(), attentions(task.layout)
    errors: dict[int, dict[str, Tensor]] = {}
    for seen in passes(layout.program, chunks(task.batches) if nodes else [], gradients, "softmax", task.progress, task.share):
        errors[seen.number] = {}
        for node in nodes:
            keys = [layout.key(name, form) for name, form in zip(node.inputs, layout.wanted(node), strict=True)]
            inputs = [fake_quantize(found[key], seen.values[name]) for key, name in zip(keys, node.inputs, strict=True)]
            grad = (seen.gradients or {}).get(node.name)
            weight = None if grad is None else grad.square()
            exact, bits = seen.values[node.name], bits_of(task.config, node.name)
            errors[seen.number][node.name] = torch.tensor(
                [metric.total(exact, evaluate(with_softmax(node, TwinSoftmax(split, bits)), inputs), weight) for split in SPLITS],
                dtype=torch.float64,
            )
    pieces, images = task.share.gathered(errors), sum(batch.shape[0] for batch in task.batches)
    made: dict[str, Representation] = {}
    more: dict[str, dict[str, object]] = {}
    for node in nodes:
        least, index = torch.stack([piece[node.name] for piece in pieces]).sum(0).min(0)
        made[key_of(node.name)] = TwinSoftmax(SPLITS[int(index)], bits_of(task.config, node.name))
        more[key_of(node.name)] = {"objective": metric.name, "error": float(least) / images}
    return made, more
