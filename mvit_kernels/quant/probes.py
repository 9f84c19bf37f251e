"""What a quantizer does to the results of those that take what it quantizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from mvit_kernels import reference
from mvit_kernels.graph import Node
from mvit_kernels.graph.interpreter import evaluate
from mvit_kernels.ops.pack_weight import MOST

from .affine import Quantizer
from .rounding import along_inputs

Tensor = torch.Tensor
Fake = Callable[[Tensor], Tensor]
ACCUMULATOR = 2**30  # sums of products are int32, and a bias comes to them
_TINY = 2.0**-40


class Metric(Protocol):
    """How far results are from exact ones. All are (P, N) or maps with channels second; weight: how much each of them counts."""

    name: str

    def by_row(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """(N,), of each output channel."""

    def total(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> float:
        """Of all."""

    def by_image(self, exact: Tensor, y: Tensor, weight: Tensor | None, images: int) -> Tensor:
        """(images,): they lie one after the other in the first axis."""


class Hessian:
    """The sum of w (y - exact)^2, where w is the square of the loss's gradient: what the error adds to the loss, to second order."""

    name = "hessian"

    def by_row(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        error = (y - exact).square_()
        return (error if weight is None else error.mul_(weight)).sum(0)

    def total(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> float:
        error = (y - exact).square_()
        return float((error if weight is None else error.mul_(weight)).sum())

    def by_image(self, exact: Tensor, y: Tensor, weight: Tensor | None, images: int) -> Tensor:
        error = (y - exact).square_()
        return (error if weight is None else error.mul_(weight)).reshape(images, -1).sum(1).double()


class Cosine:
    """1 - the cosine of the angle between both."""

    name = "cosine"

    def by_row(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        return 1 - F.cosine_similarity(exact.double(), y.double(), 0)

    def total(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> float:
        return 1 - float(F.cosine_similarity(exact.double().flatten(), y.double().flatten(), 0))

    def by_image(self, exact: Tensor, y: Tensor, weight: Tensor | None, images: int) -> Tensor:
        return 1 - F.cosine_similarity(exact.double().reshape(images, -1), y.double().reshape(images, -1), 1)


def most_sum(node: Node, bits: int) -> int:
    """Of the sizes of integer weights of an output channel."""
    return MOST[bits] * node.weights["weight"][0].numel()


class Product:
    """A convolution or linear map at some positions of its result.

    x (P, T, C) are what it multiplies there: T taps of C input channels; `inside` (P, T, 1) is 0 at taps beyond the border, or None where
    there are none. weight (P, N): how much its results count.
    """

    def __init__(self, node: Node, bits: int, x: Tensor, inside: Tensor | None, weight: Tensor | None, metric: Metric) -> None:
        self.node, self.bits, self.inside, self.importance, self.metric = node, bits, inside, weight, metric
        self.w = node.weights["weight"].detach().float()
        self.depthwise = node.kind == "depthwise_conv2d"
        self.x, self.exact = x, self._of(x, self.w)

    def _of(self, x: Tensor, w: Tensor) -> Tensor:
        taps = w.flatten(1 if self.depthwise else 2) if w.ndim == 4 else w[:, :, None]  # (C, T) or (N, C, T)
        if self.depthwise:
            y = x[:, 0] * taps[:, 0]
            for i in range(1, taps.shape[1]):
                y.addcmul_(x[:, i], taps[:, i])
        else:
            y = x.flatten(1) @ taps.transpose(1, 2).flatten(1).T
        bias = self.node.weights.get("bias")
        if bias is not None:
            y += bias.float()
        return reference.activate(y, self.node.settings.get("activation", "none"))

    def rounded(self, fold: Tensor | None, stretch: Tensor) -> Tensor:
        """The weight that integers stand for, on real inputs."""
        w = self.w.double() if fold is None else self.w.double() * along_inputs(self.node, fold)
        rows = w.flatten(1)
        most = MOST[self.bits]
        scale = (rows.abs().amax(1) / most * stretch).clamp_min(_TINY)[:, None]
        q = ((rows / scale).round_().clamp_(-most, most) * scale).reshape(w.shape)
        return (q if fold is None else q / along_inputs(self.node, fold)).float()

    def inputs(self, affine: Quantizer) -> Tensor:
        x = affine.fake(self.x, 2)
        return x if self.inside is None else x.mul_(self.inside)

    def errors(self, x: Tensor, w: Tensor) -> Tensor:
        """(N,), of x from `inputs` and w from `rounded`."""
        return self.metric.by_row(self.exact, self._of(x, w), self.importance)

    def by_image(self, affine: Quantizer, w: Tensor, images: int) -> Tensor:
        return self.metric.by_image(self.exact, self._of(self.inputs(affine), w), self.importance, images)

    def error(self, affine: Quantizer, w: Tensor) -> float:
        return self.metric.total(self.exact, self._of(self.inputs(affine), w), self.importance)


class Whole(Product):
    """At all positions: x is a map (B, C, H, W), or vectors (B, C)."""

    def _of(self, x: Tensor, w: Tensor) -> Tensor:
        bias = self.node.weights.get("bias")
        bias = None if bias is None else bias.float()
        if x.ndim == 2:
            y = F.linear(x, w, bias)
        else:
            groups = x.shape[1] if self.depthwise else 1
            y = F.conv2d(x, w, bias, self.node.settings["stride"], w.shape[-1] // 2, groups=groups)
        y = reference.activate(y, self.node.settings.get("activation", "none"))
        return y.movedim(1, -1).reshape(-1, y.shape[1])

    def inputs(self, affine: Quantizer) -> Tensor:
        return affine.fake(self.x)


@dataclass
class Around:
    """Any node that takes a result, on whole maps of a few images; or a result by itself, where node is None.

    inputs: of the node, floats; those of the numbers `which` have the quantizer that is looked for.
    """

    node: Node | None
    inputs: list[Tensor]
    which: tuple[int, ...]
    weight: Tensor | None
    metric: Metric

    def __post_init__(self) -> None:
        self.exact = self._of(self.inputs)

    def _of(self, inputs: list[Tensor]) -> Tensor:
        return inputs[0] if self.node is None else evaluate(self.node, inputs)

    def error(self, fake: Fake) -> float:
        return self.metric.total(self.exact, self._faked(fake), self.weight)

    def by_image(self, fake: Fake, images: int) -> Tensor:
        return self.metric.by_image(self.exact, self._faked(fake), self.weight, images)

    def _faked(self, fake: Fake) -> Tensor:
        return self._of([fake(x) if i in self.which else x for i, x in enumerate(self.inputs)])
