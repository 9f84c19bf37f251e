"""Integer weights that make up for each other's rounding, and biases that make up for the rest, layer after layer.

A layer multiplies what the integers before it give, x, and should give what the float network has, t. For each row w of its weight, with
fixed scale, integers w' are looked for with a small

    sum over positions of (w' x + b' - t)^2.

The best b' is the mean of t - w' x, so only centred inputs matter: with H their second moments, the error of w' is (w' - w) H (w' - w)^T
and what the inputs' own rounding adds. Columns are rounded one after the other, those of the largest moment first, and each one's error is
made up for by those that are still open, as optimal brain surgeon has it:

    w'_i = round(w_i),   w_open -= (w_i - w'_i) / U_ii  U_i,open,   U upper triangular with H^-1 = U^T U.

As t was made by other inputs than x, w first goes some way to the w that is nearest to t with x, by ridge regression around w.

Hassibi and Stork 1993; Frantar, Ashkboos, Hoefler and Alistarh 2022, "GPTQ" (arXiv 2210.17323), section 3; Li, Yin, Lee, Wang, Xiao and
Panda 2025, "GPTAQ" (arXiv 2504.02692), for t; Nagel, van Baalen, Blankevoort and Welling 2019, "Data-free quantization through weight
equalization and bias correction" (arXiv 1906.04721), section 4.2, whose means are here those of calibration images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from tqdm import tqdm

from mvit_kernels.graph import Node, Program
from mvit_kernels.graph.integers import KINDS, prepare
from mvit_kernels.graph.interpreter import constant, evaluate
from mvit_kernels.ops.pack_weight import MOST

from .methods.base import Task
from .program import integer_program
from .representation import Channels, Representation
from .rounding import Layer, bias_of, fold_of, is_rounded
from .samples import chunks
from .state import Stage

Tensor = torch.Tensor
DAMP = 0.01  # of the mean of H's diagonal: what calibration shows of small directions is not believed
TRUST = 1.0  # likewise, of how far rows follow
_CANCELLED = 2.0**-40  # of the mean square of inputs: below it their variance is rounding


def reconstructed(task: Task, found: Mapping[str, Representation], layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """layers: by rounding alone, with the scales that are kept. Every layer of the program runs on all images, in floats and as integers,
    of which those before it are already reconstructed."""
    made: dict[str, Layer] = dict(layers)
    exact, integer = task.layout.program, integer_program(task.layout.program, found, task.config, layers)
    images = chunks(task.batches)
    floats, values = _Values(exact, images), _Values(integer, images)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for node in tqdm(list(integer), desc="reconstruction", unit="node", leave=False, disable=None if task.progress else True):
            if node.name in exact:
                source = exact[node.name]
                if is_rounded(source, task.config):
                    old = made[node.name]
                    make = partial(_reconstruct, task, found, source, node, old, floats, values)
                    made[node.name] = task.state.once(node.name, make).tensors
                    node = _with_layer(node, old, made[node.name])
                floats.add(source)
            values.add(node)
    return made


class _Values:
    """Results of a program, of all images, as long as somebody takes them."""

    def __init__(self, program: Program, images: list[Tensor]) -> None:
        self.images, self.by_name = images, dict[str, list[Tensor]]()
        self.last_use = {name: node.name for node in program for name in node.inputs}

    def add(self, node: Node) -> None:
        pieces = [[self.by_name[name][i] for name in node.inputs] for i in range(len(self.images))]
        if node.kind == "input":
            results = self.images
        elif node.kind == "constant":
            results = [constant(node, images) for images in self.images]
        elif node.kind in KINDS:
            step = prepare(node, None)
            results = [step(*inputs) for inputs in pieces]
        else:
            results = [evaluate(node, inputs) for inputs in pieces]
        self.by_name[node.name] = results
        for name in set(node.inputs):
            if self.last_use[name] == node.name:
                del self.by_name[name]


def _with_layer(node: Node, old: Layer, new: Layer) -> Node:
    """An integer node with another layer of the same scales; of a float node, the weights that this stands for."""
    if node.kind in KINDS:
        return replace(node, weights={**node.weights, **new})
    scale = new["weight_scale"].reshape(-1, *(1,) * (new["weight"].ndim - 1))
    weight = node.weights["weight"] + (new["weight"].float() - old["weight"].float()) * scale
    return replace(node, weights={**node.weights, "weight": weight, **bias_of(node, new)})


def _reconstruct(
    task: Task, found: Mapping[str, Representation], source: Node, node: Node, layer: Layer, floats: _Values, values: _Values
) -> Stage:  # fmt: skip
    """source: the float node; node: the same in the integer program; layer: as it was rounded."""
    weight = source.weights["weight"].double()
    taken = found.get(task.layout.key(source.inputs[0], "byte")) if source.name in task.layout.integer else None
    if isinstance(taken, Channels):
        weight = weight * fold_of(source, taken)
    linear = replace(source, settings={**source.settings, "activation": "none", "residual": False})
    groups = weight.shape[0] if source.kind == "depthwise_conv2d" else 1
    rows = weight.reshape(groups, -1, weight[0].numel())
    moments = _Moments(rows)
    products = len(source.inputs) - bool(source.settings.get("residual"))
    for i in range(len(values.images)):
        x = _real(node, torch.cat([values.by_name[name][i] for name in node.inputs[:products]], 1))
        t = evaluate(linear, [floats.by_name[name][i] for name in source.inputs[:products]])
        moments.add(_columns(source, x, groups), t.movedim(1, -1).reshape(-1, groups, rows.shape[1]).movedim(0, 1).double())
    if not moments.are_finite():
        raise ValueError(f"quantize: calibration: expected finite values, got others at {source.name}")
    scale = layer["weight_scale"].double().reshape(groups, -1, 1)
    rows = moments.followed(rows)
    q = rounded_together(rows / scale, moments.centred(), MOST[task.config.weight_bits_of(source.name)])
    bias = moments.bias(q * scale).reshape(-1).float()
    return Stage({**layer, "weight": q.reshape(weight.shape).to(torch.int8), "bias": bias})


def _real(node: Node, x: Tensor) -> Tensor:
    """What the weights multiply: reals that are linear in the integers."""
    if node.kind not in KINDS:
        return x.double()
    zero = node.weights.get("a_zero_point", torch.tensor(node.settings.get("a_zero_point", 0)))
    zero = zero.double().reshape(1, -1, *(1,) * (x.ndim - 2))
    return (x.double() - zero) * node.settings["a_scale"]


def _columns(node: Node, x: Tensor, groups: int) -> Tensor:
    """(groups, P, K): what a row of the weight is multiplied with at every position."""
    if x.ndim == 2:
        return x[None]
    kernel, stride = node.weights["weight"].shape[-1], node.settings["stride"]
    columns = F.unfold(x, kernel, padding=kernel // 2, stride=stride)  # (B, C k k, L)
    return columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


class _Moments:
    """Of (groups, P, K) inputs x and (groups, P, N) results t, over any number of calls."""

    def __init__(self, rows: Tensor) -> None:
        groups, results, depth = rows.shape
        self.count = 0
        self.x, self.t = rows.new_zeros(groups, depth), rows.new_zeros(groups, results)
        self.xx, self.tx = rows.new_zeros(groups, depth, depth), rows.new_zeros(groups, results, depth)

    def add(self, x: Tensor, t: Tensor) -> None:
        self.count += x.shape[1]
        self.x += x.sum(1)
        self.t += t.sum(1)
        self.xx += x.mT @ x
        self.tx += t.mT @ x

    def are_finite(self) -> bool:
        return all(bool(each.isfinite().all()) for each in (self.xx, self.tx))

    def centred(self) -> Tensor:
        """(groups, K, K), with positive diagonals also where an input never changes."""
        mean = self.x / self.count
        h = self.xx / self.count - mean[:, :, None] * mean[:, None, :]
        least = _CANCELLED * (self.xx.diagonal(dim1=1, dim2=2) / self.count).amax(1)
        return h + _diagonal(torch.where(least > 0, least, 1.0), h)

    def followed(self, w: Tensor) -> Tensor:
        """Rows w (groups, N, K), moved towards those with the least squares of w x + b - t."""
        h, mean = self.centred(), self.x / self.count
        crossed = self.tx / self.count - (self.t / self.count)[:, :, None] * mean[:, None, :]
        held = h + _diagonal(TRUST * h.diagonal(dim1=1, dim2=2).mean(1), h)
        return w + torch.linalg.solve(held, (crossed - w @ h).mT).mT

    def bias(self, w: Tensor) -> Tensor:
        """(groups, N): with which w x has the mean of t."""
        return (self.t - (w @ self.x[:, :, None])[:, :, 0]) / self.count


def _diagonal(values: Tensor, like: Tensor) -> Tensor:
    return values[:, None, None] * torch.eye(like.shape[1], dtype=like.dtype)


def rounded_together(w: Tensor, moments: Tensor, most: int) -> Tensor:
    """Integers for rows w (groups, N, K), in units of each row's scale, by positive moments (groups, K, K) of what they multiply."""
    diagonal = moments.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(1, descending=True)
    w = w.gather(2, order[:, None].expand_as(w))
    held = moments + _diagonal(DAMP * diagonal.mean(1), moments)
    held = held.gather(1, order[:, :, None].expand_as(held)).gather(2, order[:, None].expand_as(held))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(held)), upper=True)
    q = torch.empty_like(w)
    for i in range(w.shape[2]):
        q[:, :, i] = w[:, :, i].round().clamp(-most, most)
        error = (w[:, :, i] - q[:, :, i]) / upper[:, i, i, None]
        w[:, :, i:] -= error[:, :, None] * upper[:, None, i, i:]
    return torch.empty_like(q).scatter_(2, order[:, None].expand_as(q), q)
