"""Containers of replaced modules: what their modules run one after another runs as one.

Between two kernels of one module lie microseconds; between two modules lies Python that has fallen out of the caches while they ran, which
at small sizes takes as long as the kernels. So a container is checked once for all modules inside, and their native calls run as one plan,
with one piece of memory for all that lies between (ops/replay.py). Where a module inside does anything but native calls, each runs by
itself as it would without the container.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from mvit_kernels.ops.backend import native

from . import devices, fused
from .blocks import InvertedResidual, Replacement, V2Block, round_up
from .obstacles import Kind, Obstacle, Place, inside, one_of, plain_attributes
from .weights import Convolution


class Sequential(Replacement, nn.Sequential):
    """nn.Sequential of replaced modules, in evaluation."""

    _option: ClassVar[str] = "conv"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):  # torch would make one of this class, which `accelerate` does not know
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def _ops(self) -> tuple[str, ...]:
        return ()

    def _fused_places(self) -> Mapping[str, Place]:
        return _places(self)

    def _fused_obstacle(self) -> Obstacle | None:
        if self.training or native is None or torch.compiler.is_compiling():
            return Obstacle(self, "runs nothing again")
        if not is_chain(self):
            return Obstacle(self, "holds a module that is not replaced")
        obstacle = inside(self, dict.fromkeys(self._modules))
        return obstacle or next((found for module in replaced(self) if (found := module._fused_obstacle()) is not None), None)

    def _parts(self) -> None:
        return None

    def _standing_back(self, x: torch.Tensor) -> bool:
        """On a GPU nothing is run again, and what a merged convolution spares (`graph/passes/merge_convolutions.py`) costs more memory."""
        return super()._standing_back(x) or devices.off_cpu(x)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        prepared = self._prepared_for(input)
        return super().forward(input) if prepared is None else self._run(input, prepared)

    def _fused(self, x: torch.Tensor, _: None) -> torch.Tensor:
        modules = list(replaced(self))
        before: Convolution | None = None  # what x has yet to go through, to be one with the expansion of the module that gets it
        expanded = False  # x went through that expansion
        for module, following in zip(modules, [*modules[1:], None], strict=True):
            then = _expansion(module, following, x)
            if isinstance(module, InvertedResidual) and (before or expanded or then):
                x, (expand, depthwise, reduce) = fused.autocast(x), module._parts()
                first = None if expanded else expand
                if then is None:
                    x = fused.inverted_residual(x, first, depthwise, reduce, False, module._backend, before)
                else:
                    x = fused.expanded_and_filtered(x, first, depthwise, module._backend, before)
                before, expanded = None if then is None else reduce, False
            elif isinstance(module, V2Block) and then is not None:
                x, expanded = module._fused(x, module._parts(), then), True
            else:
                x = module(x)
        return x


def _expansion(first: nn.Module, second: nn.Module | None, x: torch.Tensor) -> Convolution | None:
    """The first convolution of a module, if it is to be one with the last of the module before: if they are linear maps of pixels, nobody
    else takes what is between them, and their product costs less. x: what the first module gets."""
    if not isinstance(second, InvertedResidual) or second._residual():
        return None
    last: Convolution | None = None
    if isinstance(first, InvertedResidual):
        last = None if first._residual() else first._parts()[2]
    elif isinstance(first, V2Block):
        size = x.shape[2], x.shape[3]
        last = first._parts().proj if round_up(size, first._patch_size()) == size else None
    if last is None or last.activation != "none":
        return None
    expand = second._parts()[0]
    a, b = last.conv.weight, expand.conv.weight
    return expand if b.shape[0] * a.shape[1] <= a.numel() + b.numel() else None


def is_chain(module: nn.Module) -> bool:
    """Whether it is a container of replaced modules, two at least, and of nothing that computes besides."""
    return _holds_replaced(module) and len(list(replaced(module))) > 1


def replaced(container: nn.Module) -> Iterator[Replacement]:
    """In the order in which they run; one that stands twice runs twice."""
    for child in container._modules.values():
        if isinstance(child, nn.Sequential) and type(child) in _CONTAINERS:
            yield from replaced(child)
        elif isinstance(child, Replacement):
            yield child


_CONTAINERS = (nn.Sequential, Sequential)


def _holds_replaced(module: nn.Module) -> bool:
    return type(module) in _CONTAINERS and all(map(_is_known, module._modules.values()))


def _is_known(child: nn.Module | None) -> bool:
    if child is not None and type(child) in _CONTAINERS:
        return _holds_replaced(child)
    ours = type(child).__module__.startswith(f"{__package__}.")  # and not of a class that somebody derived
    return type(child) is nn.Identity or (isinstance(child, Replacement) and ours)


def _places(container: nn.Module) -> dict[str, Place]:
    """Where exactly these modules may stand, as they are now."""
    return {name: one_of(_kind(child)) for name, child in container._modules.items() if child is not None}


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, Sequential) or not isinstance(module, Replacement):
        return Kind(type(module), children=_places(module))
    return Kind(type(module), children=module._fused_places(), others=None, watched=plain_attributes(module))
