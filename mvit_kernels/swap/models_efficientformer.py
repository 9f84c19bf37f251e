"""Our own EfficientFormer and EfficientFormerV2 (mvit_kernels.models)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from mvit_kernels.models import distilled, efficientformer, efficientformerv2

from . import blocks
from . import efficientformer as forwards
from .obstacles import (
    ACTIVATION,
    BATCH_NORM,
    CONV,
    CONVOLUTION,
    GELU,
    LAYER_NORM,
    LINEAR,
    SKIPPED,
    Kind,
    Place,
    activation_name,
    inactive,
    not_replaced,
    one_of,
)
from .weights import Convolution

_DROP_PATH = one_of(Kind(distilled.DropPath, inactive("rate")))
_LAYER_SCALE = one_of(Kind(distilled.LayerScale, watched=("axis",)))
_IDENTITY = one_of(Kind(nn.Identity))

# --- V1 ---

_CONV_MLP = one_of(
    Kind(
        efficientformer.ConvMlp,
        children={"fc1": CONVOLUTION, "norm1": BATCH_NORM, "act": ACTIVATION, "fc2": CONVOLUTION, "norm2": BATCH_NORM},
        others=SKIPPED,
    )
)
_POOLING = one_of(Kind(efficientformer.Pooling, children={"pool": one_of(Kind(nn.AvgPool2d))}))


class PoolingBlock(forwards.PoolingBlock, efficientformer.PoolingBlock):
    _places: ClassVar[Mapping[str, Place]] = {
        "token_mixer": _POOLING, "ls1": _LAYER_SCALE, "mlp": _CONV_MLP, "ls2": _LAYER_SCALE, "drop_path": _DROP_PATH
    }  # fmt: skip


class TokenAttention(forwards.TokenAttention, efficientformer.Attention):
    def _sizes(self) -> tuple[int, tuple[int, int, int]]:
        return self.heads, (self.key_dim, self.key_dim, self.value_dim)


_TOKEN_ATTENTION = one_of(Kind(TokenAttention, others=LINEAR), Kind(efficientformer.Attention, not_replaced))
_MLP = one_of(Kind(efficientformer.Mlp, children={"fc1": LINEAR, "act": ACTIVATION, "fc2": LINEAR}, others=SKIPPED))


class TokenBlock(forwards.TokenBlock, efficientformer.AttentionBlock):
    _places: ClassVar[Mapping[str, Place]] = {
        "norm1": LAYER_NORM, "token_mixer": _TOKEN_ATTENTION, "ls1": _LAYER_SCALE, "norm2": LAYER_NORM, "mlp": _MLP, "ls2": _LAYER_SCALE,
        "drop_path": _DROP_PATH,
    }  # fmt: skip


# --- V2 ---

_CONV_PARTS: Mapping[str, Place] = {"conv": CONVOLUTION, "bn": BATCH_NORM, "act": ACTIVATION}
_CONV_NORM = one_of(Kind(efficientformerv2.ConvNorm, children=_CONV_PARTS))
_MLP_V2 = one_of(Kind(efficientformerv2.ConvMlp, children=dict.fromkeys(("fc1", "mid", "fc2"), _CONV_NORM), others=SKIPPED))


def _convolution(module: Any, scale: Any = None) -> Convolution:
    return Convolution(module.conv, module.bn, activation_name(module.act), scale)


class ConvNorm(blocks.ConvLayer, efficientformerv2.ConvNorm):
    _places: ClassVar[Mapping[str, Place]] = _CONV_PARTS

    def _parts(self) -> Convolution:
        return _convolution(self)


_TALKING: Mapping[str, Place] = {"talking_head1": CONV, "talking_head2": CONV}
_UPSAMPLE = one_of(Kind(nn.Upsample, watched=("scale_factor", "mode", "align_corners")), Kind(nn.Identity))
_MAP_PARTS: Mapping[str, Place] = {
    **_TALKING, "act": GELU, "upsample": _UPSAMPLE, "stride_conv": {**_CONV_NORM, **_IDENTITY},
    **dict.fromkeys(("q", "k", "v", "v_local", "proj"), _CONV_NORM),
}  # fmt: skip


class MapAttention(forwards.MapAttention, efficientformerv2.Attention):
    _places: ClassVar[Mapping[str, Place]] = _TALKING
    _fused_parts: ClassVar[Mapping[str, Place]] = _MAP_PARTS
    _convolution = staticmethod(_convolution)

    def _heads(self) -> int:
        return self.heads


_QUERY = one_of(Kind(efficientformerv2.LocalGlobalQuery, children={"local": CONVOLUTION, "proj": _CONV_NORM}))
_DOWN_PARTS: Mapping[str, Place] = {"q": _QUERY, "act": GELU, **dict.fromkeys(("k", "v", "v_local", "proj"), _CONV_NORM)}


class DownsampleAttention(forwards.MapAttention, efficientformerv2.AttentionDownsample):
    _fused_parts: ClassVar[Mapping[str, Place]] = _DOWN_PARTS
    _convolution = staticmethod(_convolution)

    def _heads(self) -> int:
        return self.heads


_DOWN_ATTENTION = one_of(Kind(DownsampleAttention, children=_DOWN_PARTS), Kind(efficientformerv2.AttentionDownsample, not_replaced))


class Downsample(forwards.AttentionDownsample, efficientformerv2.Downsample):
    _places: ClassVar[Mapping[str, Place]] = {"conv": _CONV_NORM, "attn": _DOWN_ATTENTION}
    _convolution = staticmethod(_convolution)


_MAP_ATTENTION = one_of(Kind(MapAttention, children=_MAP_PARTS), Kind(efficientformerv2.Attention, not_replaced))


class AttentionBlock(forwards.AttentionBlock, efficientformerv2.EfficientFormerV2Block):
    _places: ClassVar[Mapping[str, Place]] = {
        "token_mixer": _MAP_ATTENTION, "ls1": _LAYER_SCALE, "mlp": _MLP_V2, "ls2": _LAYER_SCALE, "drop_path": _DROP_PATH
    }  # fmt: skip
    _convolution = staticmethod(_convolution)


REPLACEMENTS = {
    efficientformer.PoolingBlock: PoolingBlock,
    efficientformer.AttentionBlock: TokenBlock,
    efficientformer.Attention: TokenAttention,
    efficientformerv2.ConvNorm: ConvNorm,
    efficientformerv2.EfficientFormerV2Block: AttentionBlock,
    efficientformerv2.Attention: MapAttention,
    efficientformerv2.AttentionDownsample: DownsampleAttention,
    efficientformerv2.Downsample: Downsample,
}
