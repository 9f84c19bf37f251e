"""Gradients of a loss at the results of a program whose values are quantized by min and max."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from mvit_kernels.graph import Node, Program, run

from .affine import fake_quantize
from .config import QuantConfig
from .layout import Layout
from .representation import Representation, Stream
from .rounding import is_rounded, round_weight, with_rounded_weight

Tensor = torch.Tensor
Loss = Callable[[Any, Any], Tensor]


def divergence(y: Any, exact: Any) -> Tensor:
    """The default loss: of logits (B, classes), Kullback and Leibler's divergence of their softmax from that of the exact ones; of other
    floats half their squared distance, a mean over all but the images. Summed over images and results."""
    total = torch.zeros(())
    for a, b in zip(pytree.tree_leaves(y), pytree.tree_leaves(exact), strict=True):
        if not isinstance(a, Tensor) or not a.is_floating_point() or not a.numel():
            continue
        if a.ndim == 2 and a.shape[1] > 1:
            total = total + F.kl_div(F.log_softmax(a, 1), F.log_softmax(b, 1), reduction="sum", log_target=True)
        else:
            total = total + 0.5 * (a - b).square().sum() / max(a[0].numel(), 1)
    return total


class Gradients:
    """Of a program with quantizers by `found`, as if rounding were not there (straight through)."""

    def __init__(self, layout: Layout, found: Mapping[str, Representation], config: QuantConfig, loss: Loss | None) -> None:
        self.layout, self.found, self.loss = layout, found, loss or divergence
        changed = {}
        for node in layout.program:
            if is_rounded(node, config):
                node = with_rounded_weight(node, round_weight(node, config, None))
            # Tensors of inference mode cannot be kept for a backward pass.
            changed[node.name] = replace(node, weights={key: value.detach().clone() for key, value in node.weights.items()})
        self.program: Program = layout.program.rewritten(changed)

    def __call__(self, images: Tensor, exact: Any) -> dict[str, Tensor]:
        """The gradient at every result, by name; 0 where the loss does not depend on it."""
        grads: dict[str, Tensor] = {}

        def watch(node: Node, y: Tensor) -> Tensor | None:
            if not isinstance(y, Tensor) or not y.requires_grad:
                return None
            y.register_hook(lambda grad, name=node.name: grads.__setitem__(name, grad))
            found = self.found.get(self.layout.key(node.name, "byte"))
            if found is None or isinstance(found, Stream):
                return None
            with torch.no_grad():
                change = fake_quantize(found, y.detach()) - y.detach()
            return y + change

        x = images.detach().clone().requires_grad_()
        y = run(self.program, x, watch)
        loss = self.loss(y, exact)
        if self.loss is divergence and not loss.requires_grad:
            raise ValueError(
                'quantize: model: expected results in floats, as the method weighs errors by their effect there, got none; "minmax", '
                '"percentile", "omse", "easyquant", "fqvit" and "repqvit" do not'
            )
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            got = f"a tensor of {loss.numel()}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"quantize: loss: expected a function of (results, exact results) to one number with a gradient, got {got}")
        if self.loss is not divergence and bool(loss.isnan()):  # of ours it is values that overflow, which are told by name elsewhere
            raise ValueError("quantize: loss: expected a number, got nan")
        torch.autograd.grad(loss.sum(), x)
        return self._normalized(grads, images.shape[0])

    def _normalized(self, grads: dict[str, Tensor], images: int) -> dict[str, Tensor]:
        """With a gradient of length 1 at the results for each image. Of an image that the network is sure about the loss has hardly any,
        and a few others would decide everything."""
        squares = [grads[name].reshape(images, -1).square().sum(1) for name in set(self.layout.program.outputs) if name in grads]
        length = torch.stack(squares).sum(0).sqrt() if squares else torch.ones(images)
        factor = torch.where(length > 0, 1 / length.clamp_min(1e-30), 0.0)
        return {name: grad * factor.reshape(-1, *(1,) * (grad.ndim - 1)) for name, grad in grads.items()}
