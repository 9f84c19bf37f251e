"""timm's EfficientFormer (timm/models/efficientformer.py) and EfficientFormerV2 (timm/models/efficientformer_v2.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm import layers
from timm.models import efficientformer, efficientformer_v2
from torch import nn

from . import blocks
from . import efficientformer as forwards
from .obstacles import (
    ACTIVATION,
    BATCH_NORM,
    CONV,
    CONVOLUTION,
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
from .timm import CONV_NORM_ACT, GELUS
from .timm import REPLACEMENTS as BUILDING_BLOCKS
from .weights import Convolution

_DROP_PATH: Place = {**one_of(Kind(layers.DropPath, inactive("drop_prob"))), **one_of(Kind(nn.Identity))}
_LAYER_SCALE = one_of(Kind(layers.LayerScale), Kind(layers.LayerScale2d))

# --- V1 ---


def _of_three(pool: nn.AvgPool2d) -> str | None:
    return None if (pool.kernel_size, pool.stride, pool.padding, pool.count_include_pad) == (3, 1, 1, False) else "is no mean of 3x3 pixels"


_POOLING = one_of(Kind(efficientformer.Pooling, children={"pool": one_of(Kind(nn.AvgPool2d, _of_three))}))


_CONV_MLP = one_of(
    Kind(
        efficientformer.ConvMlpWithNorm,
        children={"fc1": CONVOLUTION, "norm1": BATCH_NORM, "act": {**ACTIVATION, **GELUS}, "fc2": CONVOLUTION, "norm2": BATCH_NORM},
        others=SKIPPED,
    )
)


class MetaBlock2d(forwards.PoolingBlock, efficientformer.MetaBlock2d):
    _places: ClassVar[Mapping[str, Place]] = {
        "token_mixer": _POOLING, "ls1": _LAYER_SCALE, "mlp": _CONV_MLP, "ls2": _LAYER_SCALE, "drop_path1": _DROP_PATH,
        "drop_path2": _DROP_PATH,
    }  # fmt: skip


class TokenAttention(forwards.TokenAttention, efficientformer.Attention):
    def _sizes(self) -> tuple[int, tuple[int, int, int]]:
        return self.num_heads, (self.key_dim, self.key_dim, self.val_dim)


_TOKEN_ATTENTION = one_of(Kind(TokenAttention, others=LINEAR), Kind(efficientformer.Attention, not_replaced))
_MLP = one_of(Kind(layers.Mlp, children={"fc1": LINEAR, "act": {**ACTIVATION, **GELUS}, "fc2": LINEAR}, others=SKIPPED))


class MetaBlock1d(forwards.TokenBlock, efficientformer.MetaBlock1d):
    _places: ClassVar[Mapping[str, Place]] = {
        "norm1": LAYER_NORM, "token_mixer": _TOKEN_ATTENTION, "ls1": _LAYER_SCALE, "norm2": LAYER_NORM, "mlp": _MLP, "ls2": _LAYER_SCALE,
        "drop_path1": _DROP_PATH, "drop_path2": _DROP_PATH,
    }  # fmt: skip


class Downsample(blocks.ConvLayer, efficientformer.Downsample):
    _places: ClassVar[Mapping[str, Place]] = {"conv": CONVOLUTION, "norm": BATCH_NORM}

    def _parts(self) -> Convolution:
        return Convolution(self.conv, self.norm, "none")


# --- V2 ---

_NORM_PARTS: Mapping[str, Place] = {"conv": CONVOLUTION, "bn": BATCH_NORM}
_CONV_NORM = one_of(Kind(efficientformer_v2.ConvNorm, children=_NORM_PARTS))
_MLP_V2 = one_of(
    Kind(
        efficientformer_v2.ConvMlpWithNorm, children={"fc1": CONV_NORM_ACT, "mid": CONV_NORM_ACT, "fc2": _CONV_NORM}, others=SKIPPED
    )
)  # fmt: skip


def _convolution(module: Any, scale: Any = None) -> Convolution:
    return Convolution(module.conv, module.bn, activation_name(getattr(module.bn, "act", None)), scale)


class ConvNorm(blocks.ConvLayer, efficientformer_v2.ConvNorm):
    _places: ClassVar[Mapping[str, Place]] = _NORM_PARTS

    def _parts(self) -> Convolution:
        return _convolution(self)


_TALKING: Mapping[str, Place] = {"talking_head1": CONV, "talking_head2": CONV}
_MAP_PARTS: Mapping[str, Place] = {
    **_TALKING, "act": GELUS, "upsample": one_of(Kind(nn.Upsample, watched=("scale_factor", "mode", "align_corners"))),
    **dict.fromkeys(("stride_conv", "q", "k", "v", "v_local", "proj"), _CONV_NORM),
}  # fmt: skip


class Attention2d(forwards.MapAttention, efficientformer_v2.Attention2d):
    _places: ClassVar[Mapping[str, Place]] = _TALKING
    _fused_parts: ClassVar[Mapping[str, Place]] = _MAP_PARTS
    _convolution = staticmethod(_convolution)

    def _heads(self) -> int:
        return self.num_heads


def _of_one(pool: nn.AvgPool2d) -> str | None:
    return None if (pool.kernel_size, pool.stride, pool.padding) == (1, 2, 0) else "takes no second pixels"


_QUERY = one_of(
    Kind(
        efficientformer_v2.LocalGlobalQuery,
        children={"local": CONVOLUTION, "proj": _CONV_NORM, "pool": one_of(Kind(nn.AvgPool2d, _of_one))},
    )
)


_DOWN_PARTS: Mapping[str, Place] = {"q": _QUERY, "act": GELUS, **dict.fromkeys(("k", "v", "v_local", "proj"), _CONV_NORM)}


class Attention2dDownsample(forwards.MapAttention, efficientformer_v2.Attention2dDownsample):
    _fused_parts: ClassVar[Mapping[str, Place]] = _DOWN_PARTS
    _convolution = staticmethod(_convolution)

    def _heads(self) -> int:
        return self.num_heads


_DOWN_ATTENTION = one_of(
    Kind(Attention2dDownsample, children=_DOWN_PARTS), Kind(efficientformer_v2.Attention2dDownsample, not_replaced)
)  # fmt: skip


class AttentionDownsample(forwards.AttentionDownsample, efficientformer_v2.Downsample):
    _places: ClassVar[Mapping[str, Place]] = {"conv": _CONV_NORM, "attn": _DOWN_ATTENTION}
    _convolution = staticmethod(_convolution)


_MAP_ATTENTION = one_of(Kind(Attention2d, children=_MAP_PARTS), Kind(efficientformer_v2.Attention2d, not_replaced))


class EfficientFormerV2Block(forwards.AttentionBlock, efficientformer_v2.EfficientFormerV2Block):
    _places: ClassVar[Mapping[str, Place]] = {
        "token_mixer": _MAP_ATTENTION, "ls1": _LAYER_SCALE, "mlp": _MLP_V2, "ls2": _LAYER_SCALE, "drop_path1": _DROP_PATH,
        "drop_path2": _DROP_PATH,
    }  # fmt: skip
    _convolution = staticmethod(_convolution)


REPLACEMENTS = {
    layers.ConvNormAct: BUILDING_BLOCKS[layers.ConvNormAct],
    efficientformer.MetaBlock2d: MetaBlock2d,
    efficientformer.MetaBlock1d: MetaBlock1d,
    efficientformer.Attention: TokenAttention,
    efficientformer.Downsample: Downsample,
    efficientformer_v2.ConvNorm: ConvNorm,
    efficientformer_v2.EfficientFormerV2Block: EfficientFormerV2Block,
    efficientformer_v2.Attention2d: Attention2d,
    efficientformer_v2.Attention2dDownsample: Attention2dDownsample,
    efficientformer_v2.Downsample: AttentionDownsample,
}
