"""What fused forwards are made of: parts of any library's modules, and the ops that run them on channels-last maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mvit_kernels import ops
from mvit_kernels.ops.library import dense, is_channels_last

from . import devices, weights
from .weights import Convolution


class V1Layer(NamedTuple):
    """x += proj(attention(norm1(x))); x += fc2(act(fc1(norm2(x)))) on tokens."""

    norm1: Any  # nn.LayerNorm
    qkv: tuple[nn.Linear, ...]  # one for all three, or one each
    heads: int
    scale: float
    proj: nn.Linear
    norm2: Any
    fc1: nn.Linear
    fc2: nn.Linear
    activation: str


class V2Layer(NamedTuple):
    """x += out(separable_attention(qkv(norm1(x)))); x += fc2(act(fc1(norm2(x)))) on a map."""

    norm1: Any  # nn.GroupNorm with one group
    qkv: Any  # these: nn.Conv2d 1x1 with bias
    out: Any
    norm2: Any
    fc1: Any
    fc2: Any
    activation: str


class V1Parts(NamedTuple):
    """A whole block: x -> second(first(x)) -> layers -> proj(norm(...)) -> fusion of x and that, if there is one."""

    first: Convolution
    second: Convolution
    layers: list[V1Layer]
    norm: Any
    proj: Convolution
    fusion: Convolution | None


class V2Parts(NamedTuple):
    """A whole block: x -> second(first(x)) -> layers -> proj(norm(...))."""

    first: Convolution
    second: Convolution
    layers: list[V2Layer]
    norm: Any
    proj: Convolution


Tensor = torch.Tensor
Patch = tuple[int, int]


def autocast(x: Tensor) -> Tensor:
    """x in the dtype that convolutions and linear layers take it in: under autocast the fused ops round where those would, or later."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) and x.dtype != torch.float64 else x


def channels_last(x: Tensor) -> Tensor:
    """x as the layers of a block take it in."""
    return autocast(x).contiguous(memory_format=torch.channels_last)


def given_back(y: Tensor, x: Tensor) -> Tensor:
    """y in the memory format that what made it of x gives. On a GPU as it is: a convolution there takes channels_last maps without a copy,
    whatever its weights are in, and gives them on."""
    last = is_channels_last(x) or devices.off_cpu(x)
    return dense(y, last)


def rows(x: Tensor) -> Tensor:
    """A map (B, C, H, W) as a matrix, a pixel a row: a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_map(matrix: Tensor, like: Tensor) -> Tensor:
    """The matrix as a channels-last map of the batch, height and width of `like`."""
    batch, _, height, width = like.shape
    return matrix.view(batch, height, width, matrix.shape[1]).permute(0, 3, 1, 2)


def convolution(
    x: Tensor, part: Convolution, backend: str | None, second: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:  # fmt: skip
    ((weight, bias),) = weights.convolutions(part)
    if part.depthwise:
        return ops.depthwise_conv2d(x, weight, bias, stride=part.stride, activation=part.activation, backend=backend)
    return ops.conv2d(
        x, weight, bias, second=second, residual=residual, stride=part.stride, activation=part.activation, backend=backend
    )  # fmt: skip


def inverted_residual(
    x: Tensor, expand: Convolution | None, depthwise: Convolution, reduce: Convolution, residual: bool, backend: Any,
    before: Convolution | None = None,
) -> Tensor:  # fmt: skip
    """before: a 1x1 convolution that x has yet to go through. expand: None if x went through it."""
    filtering, reducing = weights.convolutions(depthwise, reduce)
    weight, bias = None, None
    if expand is not None:
        weight, bias = _biased(weights.convolutions(expand)[0] if before is None else weights.merged(None, before, expand))
    y: Any = ops.inverted_residual(
        x, weight, bias, *_biased(filtering), *reducing, stride=depthwise.stride, residual=residual, activation=depthwise.activation,
        backend=backend,
    )  # fmt: skip
    return y


def expanded_and_filtered(
    x: Tensor, expand: Convolution | None, depthwise: Convolution, backend: str | None, before: Convolution | None
) -> Tensor:
    """An inverted residual without its reduction; before and expand as of `inverted_residual`."""
    if before is not None and expand is not None:
        x = ops.conv2d(x, *weights.merged(None, before, expand), activation=expand.activation, backend=backend)
    elif expand is not None:
        x = convolution(x, expand, backend)
    return convolution(x, depthwise, backend)


def _biased(weight_and_bias: weights.Weights) -> tuple[Tensor, Tensor]:
    """With zeros where there is no bias."""
    weight, bias = weight_and_bias
    return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias


def is_inverted_residual(expand: Convolution, depthwise: Convolution, reduce: Convolution) -> bool:
    """Whether `inverted_residual` computes the three one after another."""
    pointwise = all(part.conv.kernel_size == (1, 1) == part.conv.stride for part in (expand, reduce))
    return pointwise and depthwise.depthwise and expand.activation == depthwise.activation and reduce.activation == "none"


def is_depthwise_and_pointwise(depthwise: Convolution, pointwise: Convolution) -> bool:
    return depthwise.depthwise and pointwise.conv.kernel_size == (1, 1) == pointwise.conv.stride and pointwise.activation == "none"


def is_pointwise(part: Convolution) -> bool:
    return part.conv.kernel_size == (1, 1) == part.conv.stride and part.conv.groups == 1


def small_inverted_residual(like: Tensor, expand: Convolution | None, depthwise: Convolution, reduce: Convolution) -> tuple[Any, ...]:
    """What `inverted_residual` chooses a backend by, for a map of one pixel with the dtype and device of `like`."""
    channels = depthwise.conv.in_channels if expand is None else expand.conv.in_channels
    matrix, bias = (None, None) if expand is None else (expand.conv.weight, depthwise.conv.bias)
    return (
        like.new_empty(1, channels, 1, 1), matrix, bias, depthwise.conv.weight, depthwise.conv.bias, reduce.conv.weight, reduce.conv.bias,
        depthwise.stride, False, depthwise.activation,
    )  # fmt: skip


def depthwise_and_pointwise(x: Tensor, depthwise: Convolution, pointwise: Convolution, backend: str | None) -> Any:
    """The map, and its moments."""
    filtering, reducing = weights.convolutions(depthwise, pointwise)
    return ops.inverted_residual(
        x, None, None, *_biased(filtering), *reducing, stride=depthwise.stride, activation=depthwise.activation, collect=True,
        backend=backend,
    )  # fmt: skip


def v2_layers(
    x: Tensor, moments: Tensor | None, layers: Sequence[V2Layer], patch_size: Patch | None, backend: str | None
) -> tuple[Tensor, Tensor | None]:
    """The layers on a map, or on (B, d, P, N) without a patch; with the moments of x and of the result, if they are known."""
    for layer in layers:
        result: Any = ops.separable_attention_block(
            x, layer.norm1.weight, layer.norm1.bias, layer.qkv.weight, layer.qkv.bias, layer.out.weight, layer.out.bias, layer.norm1.eps,
            patch_size=patch_size, moments=moments, collect=True, backend=backend,
        )  # fmt: skip
        x, moments = result
        result = ops.feed_forward(
            x, layer.norm2.weight, layer.norm2.bias, layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, layer.fc2.bias, layer.norm2.eps,
            norm="group", activation=layer.activation, moments=moments, collect=True, backend=backend,
        )  # fmt: skip
        x, moments = result
    return x, moments


def v1_layers(x: Tensor, layers: Sequence[V1Layer], patch_size: Patch, backend: str | None) -> Tensor:
    """The layers on a channels-last map of whole patches."""
    for layer in layers:
        weight, bias = weights.linears(layer.norm1, *layer.qkv)
        tokens = rows(x)
        qkv: Any = ops.gemm(tokens, weight, bias, layer_norm=True, eps=layer.norm1.eps, backend=backend)
        y = ops.patch_attention(as_map(qkv, x), layer.heads, patch_size, layer.scale, backend=backend)
        tokens = ops.gemm(rows(y), layer.proj.weight, layer.proj.bias, residual=tokens, backend=backend)  # type: ignore[assignment]
        x = ops.feed_forward(  # type: ignore[assignment]
            as_map(tokens, x), layer.norm2.weight, layer.norm2.bias, layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, layer.fc2.bias,
            layer.norm2.eps, norm="layer", activation=layer.activation, backend=backend,
        )  # fmt: skip
    return x


def projection(
    x: Tensor, moments: Tensor | None, norm: Any, part: Convolution, backend: str | None, then: Convolution | None = None
) -> Tensor:
    """A norm and the 1x1 convolution behind it, and another one behind that. moments: of x, for GroupNorm; None for LayerNorm over the
    channels of each pixel."""
    weight, bias = weights.projection(norm, part) if then is None else weights.merged(norm, part, then)
    activation = part.activation if then is None else then.activation
    y: Any = ops.gemm(
        rows(x), weight, bias, moments=moments, layer_norm=moments is None, eps=norm.eps, activation=activation, backend=backend
    )  # fmt: skip
    return as_map(y, x)
