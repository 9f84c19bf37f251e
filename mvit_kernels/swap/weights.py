"""Weights as the fused ops take them: norms folded in, and kept as long as the parameters they came from stay what they are.

Where a gradient or a trace must see how a weight came about, it is folded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from mvit_kernels.ops.packing import packed
from mvit_kernels.reference.folding import fold_batch_norm, fold_norm_affine

Weights = tuple[torch.Tensor, torch.Tensor | None]


class Convolution(NamedTuple):
    """A convolution, the BatchNorm behind it if there is one, and the name of the activation behind both."""

    conv: nn.Conv2d
    norm: Any  # nn.BatchNorm2d or None
    activation: str

    @property
    def depthwise(self) -> bool:
        return self.conv.groups > 1

    @property
    def stride(self) -> int:
        return self.conv.stride[0]


# Recipes for `packed`: equal ones are the same recipe. Folding is done in float64 and rounded once, to float32 (not in a float64 model).


def _exact(*tensors: torch.Tensor | None) -> list[Any]:
    return [None if each is None else each.double() for each in tensors]


def _rounded(weight: torch.Tensor, bias: torch.Tensor, like: torch.Tensor) -> Weights:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return weight.to(dtype), bias.to(dtype)


@dataclass(frozen=True)
class _BatchNorms:
    """Of several convolutions: the eps of each one's BatchNorm, or None where it has none."""

    eps: tuple[float | None, ...]

    def __call__(self, *sources: torch.Tensor | None) -> tuple[Weights, ...]:
        left, folded = list(sources), []
        for eps in self.eps:
            weight, bias = left.pop(0), left.pop(0)
            assert weight is not None
            if eps is None:
                folded.append((weight, bias))
            else:
                arguments = [*_exact(weight, bias, *left[:4]), eps]
                del left[:4]
                folded.append(_rounded(*fold_batch_norm(*arguments), weight))
        return tuple(folded)


@dataclass(frozen=True)
class _NormThenBatchNorm:
    """A norm's gamma and beta, then the 1x1 convolution, then its BatchNorm."""

    eps: float

    def __call__(
        self, gamma: torch.Tensor, beta: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *norm: torch.Tensor
    ) -> Weights:
        gamma, beta, exact, bias, *statistics = _exact(gamma, beta, weight, bias, *norm)
        exact = exact.flatten(1)
        if statistics:
            arguments = [exact, bias, *statistics, self.eps]
            exact, bias = fold_batch_norm(*arguments)
        return _rounded(*fold_norm_affine(exact, bias, gamma, beta), weight)


@dataclass(frozen=True)
class _NormThenLinear:
    """A norm's gamma and beta, then one linear layer or several side by side: (weight, bias) pairs."""

    def __call__(self, gamma: torch.Tensor, beta: torch.Tensor, *pairs: torch.Tensor | None) -> Weights:
        gamma_beta = _exact(gamma, beta)
        folded = [fold_norm_affine(*_exact(w, b), *gamma_beta) for w, b in zip(pairs[::2], pairs[1::2], strict=True)]
        weight, bias = (torch.cat(each) for each in zip(*folded, strict=True))
        return _rounded(weight, bias, gamma)


def _kept(recipe: Any, sources: Sequence[torch.Tensor | None], *parts: Convolution) -> Any:
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in sources)):
        return recipe(*sources)
    # Torch does not count what batch_norm in training does to its statistics.
    statistics = [tensor for part in parts if part.norm is not None for tensor in (part.norm.running_mean, part.norm.running_var)]
    return packed(recipe, *sources, contents=statistics)


def _batch_norm(norm: Any) -> tuple[torch.Tensor, ...]:
    return () if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)


def convolutions(*parts: Convolution) -> tuple[Weights, ...]:
    """(weight, bias) of each convolution with its BatchNorm."""
    sources = [tensor for part in parts for tensor in (part.conv.weight, part.conv.bias, *_batch_norm(part.norm))]
    return _kept(_BatchNorms(tuple([None if part.norm is None else part.norm.eps for part in parts])), sources, *parts)


def projection(norm: Any, part: Convolution) -> Weights:
    """(weight, bias) of the linear map that a 1x1 convolution with its BatchNorm makes behind a normalisation; weight is a matrix."""
    eps = 0.0 if part.norm is None else part.norm.eps
    sources = (norm.weight, norm.bias, part.conv.weight, part.conv.bias, *_batch_norm(part.norm))
    return _kept(_NormThenBatchNorm(eps), sources, part)


def linears(norm: Any, *layers: nn.Linear) -> Weights:
    """(weight, bias) of linear layers side by side behind a normalisation."""
    return _kept(_NormThenLinear(), (norm.weight, norm.bias, *(tensor for layer in layers for tensor in (layer.weight, layer.bias))))
