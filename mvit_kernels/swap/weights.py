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
from mvit_kernels.reference.folding import fold_batch_norm, fold_norm_affine, merge_linear

from . import devices, folds

Weights = tuple[torch.Tensor, torch.Tensor | None]


class Convolution(NamedTuple):
    """A convolution, the BatchNorm behind it if there is one, the name of the activation behind both, and a factor for each channel of the
    result (layer scale), if there is no activation."""

    conv: nn.Conv2d
    norm: Any  # nn.BatchNorm2d or None
    activation: str
    scale: Any = None

    @property
    def depthwise(self) -> bool:
        return self.conv.groups > 1

    @property
    def stride(self) -> int:
        return self.conv.stride[0]


# Recipes for `packed` and `folds.fold`: equal ones are the same recipe. Folding is done in float64 and rounded once, to float32 (not in a
# float64 model). The first source is the one whose layer a captured network names the result by.


def _exact(*tensors: torch.Tensor | None) -> list[Any]:
    return [None if each is None else each.double() for each in tensors]


def _first(sources: Sequence[torch.Tensor | None]) -> torch.Tensor:
    assert sources[0] is not None
    return sources[0]


def _rounded(weight: torch.Tensor, bias: torch.Tensor, like: torch.Tensor) -> Weights:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return weight.to(dtype), bias.to(dtype)


@dataclass(frozen=True)
class _BatchNorms:
    """Of several convolutions: the eps of each one's BatchNorm, or None where it has none; and whether it has a layer scale."""

    eps: tuple[float | None, ...]
    scaled: tuple[bool, ...]

    def __call__(self, *sources: torch.Tensor | None) -> tuple[Weights, ...]:
        left, folded = list(sources), []
        for eps, scaled in zip(self.eps, self.scaled, strict=True):
            weight, bias, scale = left.pop(0), left.pop(0), left.pop(0)
            assert weight is not None
            if eps is None and not scaled:
                folded.append((weight, bias))
                continue
            arguments: list[Any] = _exact(weight, bias)
            if eps is not None:
                arguments = [*fold_batch_norm(*[*arguments, *_exact(*left[:4]), eps])]
                del left[:4]
            exact_weight, exact_bias = arguments
            folded.append(_rounded(*_scaled(exact_weight, exact_bias, scale), weight))
        return tuple(folded)


def _scaled(weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None) -> tuple[Any, Any]:
    """float64: what is behind a layer, too."""
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    if scale is None:
        return weight, bias
    exact = scale.double()
    return weight * exact.reshape(-1, *[1] * (weight.ndim - 1)), bias * exact


@dataclass(frozen=True)
class _NormThenBatchNorm:
    """A 1x1 convolution behind a norm's gamma and beta, then its BatchNorm."""

    eps: float

    def __call__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, gamma: torch.Tensor, beta: torch.Tensor, *norm: torch.Tensor
    ) -> Weights:
        gamma, beta, exact, bias, *statistics = _exact(gamma, beta, weight, bias, *norm)
        exact = exact.flatten(1)
        if statistics:
            arguments = [exact, bias, *statistics, self.eps]
            exact, bias = fold_batch_norm(*arguments)
        return _rounded(*fold_norm_affine(exact, bias, gamma, beta), weight)


@dataclass(frozen=True)
class _NormThenLinear:
    """One linear layer or several side by side, (weight, bias) pairs, behind a norm's gamma and beta, which come last."""

    def __call__(self, *sources: torch.Tensor | None) -> Weights:
        *pairs, gamma, beta = _exact(*sources)
        folded = [fold_norm_affine(w, b, gamma, beta) for w, b in zip(pairs[::2], pairs[1::2], strict=True)]
        weight, bias = (torch.cat(each) for each in zip(*folded, strict=True))
        return _rounded(weight, bias, _first(sources))


@dataclass(frozen=True)
class _Merged:
    """The second of two 1x1 convolutions with nothing between, the first, and a norm's gamma and beta, or None of both, in front; eps of
    each one's BatchNorm, or None."""

    eps: tuple[float | None, float | None]

    def __call__(self, *sources: torch.Tensor | None) -> Weights:
        layers: list[Any] = []
        *left, gamma, beta = _exact(*sources)
        for eps in self.eps:
            layer, left = left[:2], left[2:]
            if eps is not None:
                arguments: list[Any] = [*layer, *left[:4], eps]
                layer, left = [*fold_batch_norm(*arguments)], left[4:]
            layers.append(layer)
        second, first = layers
        weight, bias = merge_linear(*first, *second)
        if gamma is not None:
            weight, bias = fold_norm_affine(weight.flatten(1), bias, gamma, beta)
        return _rounded(weight, bias, _first(sources))


def _kept(recipe: Any, sources: Sequence[torch.Tensor | None], *parts: Convolution) -> Any:
    if folds.are_ops():
        return folds.fold(recipe, sources)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in sources)):
        return recipe.__call__(*sources)  # by name: to call an object, Dynamo of torch 2.11 asks for its hash before it has its fields
    # Torch does not count what batch_norm in training does to its statistics: on the CPU what they hold is compared, elsewhere, where that
    # cannot be read, the number of batches tells, which torch counts up beside them.
    norms = [part.norm for part in parts if part.norm is not None]
    if not any(devices.off_cpu(each.running_mean) for each in norms):
        return packed(recipe, *sources, contents=[x for each in norms for x in (each.running_mean, each.running_var)])
    batches = [each.num_batches_tracked for each in norms]
    return recipe(*sources) if any(each is None for each in batches) else packed(recipe, *sources, beside=batches)


def _batch_norm(norm: Any) -> tuple[torch.Tensor, ...]:
    return () if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)


def convolutions(*parts: Convolution) -> tuple[Weights, ...]:
    """(weight, bias) of each convolution with its BatchNorm."""
    if folds.are_ops() and len(parts) > 1:  # each by its own name
        return tuple([convolutions(part)[0] for part in parts])
    if folds.are_ops() and parts[0].norm is None and parts[0].scale is None:
        return ((parts[0].conv.weight, parts[0].conv.bias),)
    sources = [tensor for part in parts for tensor in (part.conv.weight, part.conv.bias, part.scale, *_batch_norm(part.norm))]
    eps = tuple([None if part.norm is None else part.norm.eps for part in parts])
    return _kept(_BatchNorms(eps, tuple([part.scale is not None for part in parts])), sources, *parts)


def projection(norm: Any, part: Convolution) -> Weights:
    """(weight, bias) of the linear map that a 1x1 convolution with its BatchNorm makes behind a normalisation; weight is a matrix."""
    eps = 0.0 if part.norm is None else part.norm.eps
    sources = (part.conv.weight, part.conv.bias, norm.weight, norm.bias, *_batch_norm(part.norm))
    return _kept(_NormThenBatchNorm(eps), sources, part)


def merged(norm: Any, first: Convolution, second: Convolution) -> Weights:
    """(weight, bias) of two 1x1 convolutions with nothing between; weight is a matrix where a normalisation stands before them."""
    before = (None, None) if norm is None else (norm.weight, norm.bias)
    sources = [tensor for part in (second, first) for tensor in (part.conv.weight, part.conv.bias, *_batch_norm(part.norm))]
    second_eps, first_eps = (None if part.norm is None else part.norm.eps for part in (second, first))
    return _kept(_Merged((second_eps, first_eps)), (*sources, *before), first, second)


def linears(norm: Any, *layers: nn.Linear) -> Weights:
    """(weight, bias) of linear layers side by side behind a normalisation."""
    return _kept(_NormThenLinear(), (*(tensor for layer in layers for tensor in (layer.weight, layer.bias)), norm.weight, norm.bias))


@dataclass(frozen=True)
class _ScaledLinear:
    """A linear layer, then a factor for each of its results."""

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor) -> Weights:
        return _rounded(*_scaled(weight.double(), bias.double(), scale), weight)


@dataclass(frozen=True)
class _HeadsThenParts:
    """A linear layer behind a norm, whose results are queries, keys and values of one head, then of the next: cut into all queries, all
    keys and all values. parts: how many of each a head has."""

    parts: tuple[int, int, int]

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> tuple[Weights, ...]:
        folded = fold_norm_affine(*_exact(weight, bias, gamma, beta))
        heads = [each.unflatten(0, (-1, sum(self.parts))).split(self.parts, dim=1) for each in folded]
        return tuple([_rounded(w.flatten(0, 1), b.flatten(0, 1), weight) for w, b in zip(*heads, strict=True)])


@dataclass(frozen=True)
class _PositionBias:
    """What attention adds to its scores: a table (heads, distances), looked up for each query and key; mixed as the scores are."""

    def __call__(self, table: torch.Tensor, places: torch.Tensor, mixture: torch.Tensor | None) -> torch.Tensor:
        bias = table.double()[:, places]
        if mixture is not None:
            bias = torch.einsum("hg,gnm->hnm", mixture.double().flatten(1), bias)
        return bias.to(torch.float64 if table.dtype == torch.float64 else torch.float32)


@dataclass(frozen=True)
class _WithEverySecondPixel:
    """A depthwise 3x3 of stride 2 whose result every second pixel is added to: one more in the middle of each filter."""

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        middle = torch.zeros_like(weight)
        middle[:, :, 1, 1] = 1.0
        return weight + middle


def scaled_linear(layer: nn.Linear, scale: torch.Tensor) -> Weights:
    """(weight, bias) of a linear layer and the layer scale behind it."""
    return _kept(_ScaledLinear(), (layer.weight, layer.bias, scale))


def queries_keys_values(norm: Any, layer: nn.Linear, parts: tuple[int, int, int]) -> tuple[Weights, Weights, Weights]:
    """(weight, bias) of each, of a linear layer behind a normalisation that makes `parts` of them for each head."""
    return _kept(_HeadsThenParts(parts), (layer.weight, layer.bias, norm.weight, norm.bias))


def position_bias(table: torch.Tensor, places: torch.Tensor, mixture: torch.Tensor | None = None) -> torch.Tensor:
    """(heads, queries, keys), behind the mixture of scores if there is one."""
    return _kept(_PositionBias(), (table, places, mixture))


def with_every_second_pixel(conv: nn.Conv2d) -> Weights:
    """(weight, bias) of a depthwise 3x3 of stride 2 plus every second pixel."""
    return _kept(_WithEverySecondPixel(), (conv.weight,)), conv.bias


# --- Mobile-Former ---


def dealt(channels: int, runs: int) -> torch.Tensor:
    """(C,): which channel stands at each place after `runs` runs of channels have been dealt out in turn (nn.ChannelShuffle)."""
    return torch.arange(channels).reshape(runs, -1).T.reshape(-1)


@dataclass(frozen=True)
class _Grouped:
    """A 1x1 convolution in groups with its BatchNorm, between shuffles: runs that are dealt out before it, and of its results (1: none).
    A group is a block on the diagonal of one matrix, and a shuffle an order of its columns or rows."""

    eps: float
    groups: int
    before: int
    behind: int

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None, *norm: torch.Tensor) -> Weights:
        arguments: list[Any] = [*_exact(weight, bias, *norm), self.eps]
        matrix, shift = fold_batch_norm(*arguments)
        whole = torch.block_diag(*matrix.flatten(1).chunk(self.groups))
        whole = whole[:, dealt(whole.shape[1], self.before).argsort()]
        rows = dealt(whole.shape[0], self.behind)
        return _rounded(whole[rows, :, None, None], shift[rows], weight)


@dataclass(frozen=True)
class _Slopes:
    """The layer that makes the slopes of a dynamic ReLU, as `ops.dynamic_relu` takes them: 2 hard_sigmoid(u) - 1 = clip(u / 3), for
    channels from before they are shuffled in `runs`."""

    runs: int

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor) -> Weights:
        order = dealt(weight.shape[0] // 2, self.runs).argsort()
        rows = torch.cat([order, order + order.numel()])
        return _rounded(weight.double()[rows] / 3, bias.double()[rows] / 3, weight)


@dataclass(frozen=True)
class _Doubled:
    def __call__(self, weight: torch.Tensor, bias: torch.Tensor) -> Weights:
        return 2 * weight, bias


@dataclass(frozen=True)
class _LinearThenBatchNorm:
    eps: float

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor, *norm: torch.Tensor) -> Weights:
        arguments: list[Any] = [*_exact(weight, bias, *norm), self.eps]
        return _rounded(*fold_batch_norm(*arguments), weight)


def grouped_convolution(part: Convolution, before: int = 1, behind: int = 1) -> Weights:
    """(weight, bias) of a 1x1 convolution in groups with its BatchNorm as one without; before, behind: runs that are dealt out."""
    recipe = _Grouped(part.norm.eps, part.conv.groups, before, behind)
    return _kept(recipe, (part.conv.weight, part.conv.bias, *_batch_norm(part.norm)), part)


def slopes(layer: nn.Linear, runs: int = 1) -> Weights:
    """(weight, bias) of the layer in front of the hard-sigmoid of a dynamic ReLU."""
    return _kept(_Slopes(runs), (layer.weight, layer.bias))


def doubled(layer: nn.Linear) -> Weights:
    """(weight, bias) of a linear layer of twice what it is given."""
    return _kept(_Doubled(), (layer.weight, layer.bias))


def linear_with_norm(layer: nn.Linear, norm: nn.BatchNorm1d) -> Weights:
    """(weight, bias) of a linear layer and the BatchNorm behind it."""
    part: Any = Convolution(layer, norm, "none")  # type: ignore[arg-type]
    return _kept(_LinearThenBatchNorm(norm.eps), (layer.weight, layer.bias, *_batch_norm(norm)), part)
