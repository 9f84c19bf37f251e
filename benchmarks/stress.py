"""Networks that compute the same function from weights that are harder to quantize.

Each variant provokes one of the four problems of hybrid networks that Q-HyViT (arXiv 2303.12557, section 1) names, by moving factors and
constants between layers where the network does not notice: what one layer is multiplied by, those that read it are divided by. Where it
does notice (between SiLUs, in front of zero padding) nothing is moved. The function is the same in real arithmetic; a test holds it to
that in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from mvit_kernels.models.layers import InvertedResidual
from mvit_kernels.models.mobilevit import MobileViT, MobileViTBlock
from mvit_kernels.models.mobilevitv2 import MobileViTv2, MobileViTv2Block

Tensor = torch.Tensor
OUTLIERS, OUTLIER = 2, 48.0  # channels of each map, and how many times the others they are
SPREAD = 3.0  # factors of channels lie between 2^-SPREAD and 2^SPREAD
OFFSET = 32.0  # in standard deviations of a map's widest channel
LIFT = 40.0  # of the maps that enter transformers, whose standard deviation is about 1


def stressed(model: nn.Module, variant: str, seed: int = 0) -> nn.Module:
    """A copy of a MobileViT v1 or v2 of `mk.create_model`, in evaluation: the same function by other weights.

    Raises TypeError or ValueError for another model or variant.
    """
    if not isinstance(model, (MobileViT, MobileViTv2)):
        raise TypeError(f"stressed: model: expected a MobileViT or MobileViTv2, got {type(model).__name__}")
    if variant not in VARIANTS:
        raise ValueError(f"stressed: variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")
    own = copy.deepcopy(model).eval()
    with torch.no_grad():
        VARIANTS[variant](own, torch.Generator().manual_seed(seed))
    return own


def _unequal_channels(model: nn.Module, generator: torch.Generator) -> None:
    """Dynamic ranges: those of channels differ by up to 2^(2 SPREAD)."""
    for chain in _chains(model):
        chain.scale(_spread(chain.channels, generator))
    for layer in _transformer_layers(model):
        _scale_attention(layer, lambda count: _spread(count, generator))


def _outlier_channels(model: nn.Module, generator: torch.Generator) -> None:
    """A few channels far beyond the others."""
    for chain in _chains(model):
        chain.scale(_outliers(chain.channels, generator))
    for layer in _transformer_layers(model):
        _scale_attention(layer, lambda count: _outliers(count, generator))


def _one_sided(model: nn.Module, _: torch.Generator) -> None:
    """Zero-point overflow: maps that are positive everywhere, at the entry of transformers (their norms subtract it again) and between
    inverted residuals (the next layer's mean does)."""
    for chain in _chains(model):
        if not chain.padded:
            chain.shift(OFFSET)
    for block in _blocks(model):
        old = block.conv_1x1
        new = nn.Conv2d(old.in_channels, old.out_channels, 1).to(old.weight).eval()
        new.weight.copy_(old.weight)
        new.bias.fill_(LIFT)  # type: ignore[union-attr]
        block.conv_1x1 = new


def _mixed_norms(model: nn.Module, generator: torch.Generator) -> None:
    """BatchNorm, LayerNorm and GroupNorm whose factors differ by channel as far as those of maps in `_unequal_channels`, and residual
    streams 16 times as large, which norms divide by again."""
    for chain in _chains(model):
        for each in chain.writers:
            _move(each.conv, each.bn, _spread(chain.channels, generator))
    for block in _blocks(model):
        for norm, reader in _norms(block):
            factors = _spread(norm.weight.numel(), generator).to(norm.weight)
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            _divide_inputs(reader, factors)
            norm.eps *= 256.0
        for writer in (block.conv_1x1, *(each for layer in block.transformer for each in _residuals(layer))):
            for value in writer.parameters():
                value.mul_(16.0)


VARIANTS: dict[str, Callable[[nn.Module, torch.Generator], None]] = {
    "unequal_channels": _unequal_channels,
    "one_sided": _one_sided,
    "outlier_channels": _outlier_channels,
    "mixed_norms": _mixed_norms,
}


class _Chain:
    """A map that BatchNorms write and convolutions read, with no activation between: inverted residuals that are added up, and what
    takes their sum."""

    def __init__(self, writers: list[nn.Module], readers: list[nn.Module], fusion: nn.Conv2d | None, padded: bool) -> None:
        """writers, readers: a convolution and its norm each; fusion: reads the map beside another; padded: readers see zeros around it."""
        self.writers, self.readers, self.fusion, self.padded = writers, readers, fusion, padded
        self.channels: int = writers[0].bn.num_features  # type: ignore[union-attr,assignment]

    def scale(self, factors: Tensor) -> None:
        for each in self.writers:
            each.bn.weight.mul_(factors.to(each.bn.weight))
            each.bn.bias.mul_(factors.to(each.bn.bias))
        for each in self.readers:
            _divide_inputs(each.conv, factors)
        if self.fusion is not None:
            first = self.fusion.weight[:, : self.channels]
            first.div_(factors.to(first).reshape(1, -1, 1, 1))

    def shift(self, deviations: float) -> None:
        """Every channel by the same, which the first writer adds."""
        first = self.writers[0].bn
        amount = deviations * float(first.weight.abs().max())
        first.bias.add_(amount)
        for each in self.readers:
            each.bn.running_mean.add_(amount * each.conv.weight.sum((1, 2, 3)))


def _chains(model: nn.Module) -> Iterator[_Chain]:
    modules = [module for stage in model.stages for module in stage]  # type: ignore[union-attr]
    for i, module in enumerate(modules):
        if not isinstance(module, InvertedResidual) or module.has_skip:
            continue
        run = [module]
        while isinstance(modules[i + len(run)], InvertedResidual) and modules[i + len(run)].has_skip:
            run.append(modules[i + len(run)])
        after = modules[i + len(run)]
        padded = not isinstance(after, InvertedResidual)
        readers = [each.conv1_1x1 for each in run[1:]] + [after.conv_kxk if padded else after.conv1_1x1]
        fusion = after.conv_fusion.conv if isinstance(after, MobileViTBlock) else None
        yield _Chain([each.conv3_1x1 for each in run], readers, fusion, padded)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    yield from (module for module in model.modules() if isinstance(module, (MobileViTBlock, MobileViTv2Block)))


def _transformer_layers(model: nn.Module) -> Iterator[nn.Module]:
    for block in _blocks(model):
        yield from block.transformer  # type: ignore[misc]


def _residuals(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """What is added to the stream."""
    attention = layer.attn
    return (attention.out_proj if hasattr(attention, "out_proj") else attention.proj), layer.mlp.fc2


def _norms(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """(norm, what reads it)."""
    for layer in block.transformer:  # type: ignore[union-attr]
        attention = layer.attn
        yield layer.norm1, attention.qkv_proj if hasattr(attention, "qkv_proj") else attention.qkv
        yield layer.norm2, layer.mlp.fc1
    yield block.norm, block.conv_proj.conv


def _scale_attention(layer: nn.Module, factors: Callable[[int], Tensor]) -> None:
    """Channels of values, which pass a sum over pixels or relu; of MobileViT those of queries too, against keys."""
    attention, out = layer.attn, _residuals(layer)[0]
    dim = out.weight.shape[0]
    by_value = factors(dim)
    if hasattr(attention, "qkv_proj"):
        _scale_rows(attention.qkv_proj, slice(1 + dim, None), by_value)
    else:
        by_query = factors(dim)
        _scale_rows(attention.qkv, slice(0, dim), by_query)
        _scale_rows(attention.qkv, slice(dim, 2 * dim), 1 / by_query)
        _scale_rows(attention.qkv, slice(2 * dim, None), by_value)
    _divide_inputs(out, by_value)


def _scale_rows(layer: nn.Module, rows: slice, factors: Tensor) -> None:
    for value in layer.parameters():
        part = value[rows]
        part.mul_(factors.to(part).reshape(-1, *(1,) * (part.ndim - 1)))


def _divide_inputs(layer: nn.Module, factors: Tensor) -> None:
    weight = layer.weight
    depthwise = weight.ndim == 4 and weight.shape[1] == 1
    axis = 0 if depthwise else 1
    weight.div_(factors.to(weight).reshape([-1 if i == axis else 1 for i in range(weight.ndim)]))


def _move(conv: nn.Module, norm: nn.Module, factors: Tensor) -> None:
    """From what a BatchNorm multiplies by into the convolution before it."""
    factors = factors.to(conv.weight)
    conv.weight.mul_(factors.reshape(-1, 1, 1, 1))
    norm.running_mean.mul_(factors)
    norm.weight.div_(factors)


def _spread(count: int, generator: torch.Generator) -> Tensor:
    return 2.0 ** (SPREAD * (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1))


def _outliers(count: int, generator: torch.Generator) -> Tensor:
    factors = torch.ones(count, dtype=torch.float64)
    factors[torch.randperm(count, generator=generator)[:OUTLIERS]] = OUTLIER
    return factors
