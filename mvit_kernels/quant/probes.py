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

from .affine import Affine
from .rounding import along_inputs

Tensor = torch.Tensor
Fake = Callable[[Tensor], Tensor]
_ACCUMULATOR = 2**30  # sums of products are int32, and a bias comes to them
_TINY = 2.0**-40


class Metric(Protocol):
    """How far results are from exact ones. All are (P, N) or maps with channels second; weight: how much each of them counts."""

    name: str

    def by_row(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """(N,), of each output channel."""

    def total(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> float:
        """Of all."""


class Hessian:
    """The sum of w (y - exact)^2, where w is the square of the loss's gradient: what the error adds to the loss, to second order."""

    name = "hessian"

    def by_row(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        error = (y - exact).square_()
        return (error if weight is None else error.mul_(weight)).sum(0)

    def total(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> float:
        error = (y - exact).square_()
        return float((error if weight is None else error.mul_(weight)).sum())


class Cosine:
    """1 - the cosine of the angle between both."""

    name = "cosine"

    def by_row(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        return 1 - F.cosine_similarity(exact.double(), y.double(), 0)

    def total(self, exact: Tensor, y: Tensor, weight: Tensor | None) -> float:
        return 1 - float(F.cosine_similarity(exact.double().flatten(), y.double().flatten(), 0))


class Product:
    """A convolution or linear map at some positions of its result.

    x (P, C, T) are what it multiplies there: C input channels, T taps; `inside` (P, 1, T) is 0 at taps beyond the border, or None where
    there are none. weight (P, N): how much its results count.
    """

    def __init__(self, node: Node, bits: int, x: Tensor, inside: Tensor | None, weight: Tensor | None, metric: Metric) -> None:
        self.node, self.bits, self.inside, self.importance, self.metric = node, bits, inside, weight, metric
        self.w = node.weights["weight"].detach().float()
        self.depthwise = node.kind == "depthwise_conv2d"
        self.x, self.exact = x, self._of(x, self.w)

    def _of(self, x: Tensor, w: Tensor) -> Tensor:
        y = torch.einsum("pct,ct->pc", x, w.flatten(1)) if self.depthwise else x.flatten(1) @ w.flatten(1).T
        bias = self.node.weights.get("bias")
        if bias is not None:
            y = y + bias.float()
        return reference.activate(y, self.node.settings.get("activation", "none"))

    def allows(self, affine: Affine) -> bool:
        """Whether sums of products stay far from overflow."""
        return affine.farthest() * MOST[self.bits] * self.w[0].numel() < _ACCUMULATOR

    def rounded(self, fold: Tensor | None, stretch: Tensor) -> Tensor:
        """The weight that integers stand for, on real inputs."""
        w = self.w.double() if fold is None else self.w.double() * along_inputs(self.node, fold)
        rows = w.flatten(1)
        most = MOST[self.bits]
        scale = (rows.abs().amax(1) / most * stretch).clamp_min(_TINY)[:, None]
        q = ((rows / scale).round_().clamp_(-most, most) * scale).reshape(w.shape)
        return (q if fold is None else q / along_inputs(self.node, fold)).float()

    def inputs(self, fake: Fake | None) -> Tensor:
        if fake is None:
            return self.x
        x = fake(self.x)
        return x if self.inside is None else x.mul_(self.inside)

    def errors(self, x: Tensor, w: Tensor) -> Tensor:
        """(N,), of x from `inputs` and w from `rounded`."""
        return self.metric.by_row(self.exact, self._of(x, w), self.importance)

    def error(self, fake: Fake, w: Tensor) -> float:
        return self.metric.total(self.exact, self._of(self.inputs(fake), w), self.importance)


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
        inputs = [fake(x) if i in self.which else x for i, x in enumerate(self.inputs)]
        return self.metric.total(self.exact, self._of(inputs), self.weight)
