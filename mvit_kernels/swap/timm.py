"""timm's MobileViT, MobileViTv2 and semobilevit (timm/models/mobilevit.py), and what they take from timm/models/byobnet.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm import layers
from timm.layers import ConvMlp, DropPath, GroupNorm1
from timm.models import byobnet, mobilevit
from torch import nn

from . import blocks
from .blocks import V1Block, V2Attention, V2Block, round_up
from .fused import V1Layer, V1Parts, V2Layer, V2Parts
from .obstacles import (
    ACTIVATION,
    ACTIVATIONS,
    CONV,
    CONVOLUTION,
    GROUP_NORM,
    LAYER_NORM,
    LINEAR,
    ORDER_FREE,
    POINTWISE,
    SKIPPED,
    Kind,
    Obstacle,
    Place,
    activation_name,
    evaluates,
    exact_gelu,
    inactive,
    not_replaced,
    one_group,
    one_of,
)
from .weights import Convolution

_SKIPPED: Place = {**SKIPPED, **one_of(Kind(DropPath, inactive("drop_prob")))}
_ORDER_FREE: Place = {**ORDER_FREE, **one_of(Kind(GroupNorm1))}
_IDENTITY = one_of(Kind(nn.Identity))

ACTIVATIONS[layers.activations.GELU] = "gelu"  # which is always the exact one
GELUS: Place = one_of(Kind(nn.GELU, exact_gelu, watched=("approximate",)), Kind(layers.activations.GELU))
_BATCH_NORM = one_of(Kind(layers.BatchNormAct2d, evaluates, children={"drop": _IDENTITY, "act": {**ACTIVATION, **GELUS}}))
_CONV_PARTS: Mapping[str, Place] = {"conv": CONVOLUTION, "bn": _BATCH_NORM}
CONV_NORM_ACT = one_of(Kind(layers.ConvNormAct, children=_CONV_PARTS))  # with anti-aliasing, `aa` is in no place


def _convolution(module: Any) -> Convolution:
    return Convolution(module.conv, module.bn, activation_name(module.bn.act))


class ConvNormAct(blocks.ConvLayer, layers.ConvNormAct):
    _places: ClassVar[Mapping[str, Place]] = _CONV_PARTS

    def _obstacle(self) -> Obstacle | None:
        return Obstacle(self, "has anti-aliasing") if getattr(self, "aa", None) is not None else super()._obstacle()

    def _parts(self) -> Convolution:
        return _convolution(self)


class BottleneckBlock(blocks.InvertedResidual, byobnet.BottleneckBlock):
    """An inverted residual where it is linear behind a depthwise convolution, as MobileViT's are."""

    _places: ClassVar[Mapping[str, Place]] = {
        **{name: CONV_NORM_ACT for name in ("conv1_1x1", "conv2_kxk", "conv3_1x1")},
        **{name: _SKIPPED for name in ("shortcut", "conv2b_kxk", "attn", "attn_last", "drop_path", "act")},
    }

    def _parts(self) -> tuple[Convolution, Convolution, Convolution]:
        return _convolution(self.conv1_1x1), _convolution(self.conv2_kxk), _convolution(self.conv3_1x1)

    def _residual(self) -> bool:
        return self.shortcut is not None


def _one_pixel(pool: nn.AdaptiveAvgPool2d) -> str | None:
    return None if pool.output_size in (1, (1, 1)) else "keeps more than one pixel"


def _from_channels(flatten: nn.Flatten) -> str | None:
    return None if (flatten.start_dim, flatten.end_dim) == (1, -1) else "keeps an axis beside channels"


_POOL: Mapping[str, Place] = {
    "pool": one_of(Kind(nn.AdaptiveAvgPool2d, _one_pixel, watched=("output_size",))),
    "flatten": one_of(Kind(nn.Flatten, _from_channels, watched=("start_dim", "end_dim"))),
}


class ClassifierHead(blocks.Head, layers.ClassifierHead):
    _places: ClassVar[Mapping[str, Place]] = {
        "global_pool": one_of(Kind(layers.SelectAdaptivePool2d, children=_POOL)), "drop": SKIPPED, "fc": LINEAR, "flatten": _IDENTITY
    }  # fmt: skip

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        prepared = None if pre_logits else self._prepared_for(x)
        return super().forward(x, pre_logits) if prepared is None else self._run(x, prepared)

    def _parts(self) -> nn.Linear:
        return self.fc


_CONV_PLACES: Mapping[str, Place] = {"conv_kxk": CONV_NORM_ACT, "conv_1x1": CONVOLUTION, "conv_proj": CONV_NORM_ACT}

_V1_ATTENTION = one_of(
    Kind(
        layers.Attention,
        lambda attention: None if isinstance(attention.scale, float) else "has a scale that is no number",
        children={"qkv": LINEAR, "proj": LINEAR},
        others=SKIPPED,
        watched=("training", "num_heads", "head_dim", "fused_attn", "scale"),
    )
)
_V1_MLP = one_of(Kind(layers.Mlp, children={"fc1": LINEAR, "act": ACTIVATION, "fc2": LINEAR}, others=SKIPPED))
_V1_LAYER = one_of(
    Kind(
        mobilevit.TransformerBlock,
        children={"norm1": LAYER_NORM, "attn": _V1_ATTENTION, "norm2": LAYER_NORM, "mlp": _V1_MLP},
        others=_SKIPPED,
    )
)


class MobileVitBlock(V1Block, mobilevit.MobileVitBlock):
    _layer_places: ClassVar[Mapping[str, Place]] = {"transformer": one_of(Kind(nn.Sequential, others=_V1_LAYER)), "norm": LAYER_NORM}
    _conv_places: ClassVar[Mapping[str, Place]] = {**_CONV_PLACES, "conv_fusion": CONV_NORM_ACT}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        prepared = self._prepared_for(x)
        if prepared is not None:
            return self._run(x, prepared)
        if self._obstacle() is not None:
            return super().forward(x)
        y = self.conv_1x1(self.conv_kxk(x))
        y = self.conv_proj(self._represented(y, self.norm, lambda tokens: self.norm(self.transformer(tokens))))
        return y if self.conv_fusion is None else self.conv_fusion(torch.cat((x, y), dim=1))

    def _parts(self) -> V1Parts:
        first, second = _convolution(self.conv_kxk), Convolution(self.conv_1x1, None, "none")
        fusion = None if self.conv_fusion is None else _convolution(self.conv_fusion)
        return V1Parts(first, second, self._layers(), self.norm, _convolution(self.conv_proj), fusion)

    def _layers(self) -> list[V1Layer]:
        return [_v1_layer(layer) for layer in self.transformer]


def _v1_layer(layer: Any) -> V1Layer:
    attention, mlp = layer.attn, layer.mlp
    scale = attention.head_dim**-0.5 if attention.fused_attn else attention.scale  # as torch's fused attention has it, whatever timm's says
    return V1Layer(
        layer.norm1, (attention.qkv,), attention.num_heads, scale, attention.proj, layer.norm2, mlp.fc1, mlp.fc2, activation_name(mlp.act)
    )  # fmt: skip


class LinearSelfAttention(V2Attention, mobilevit.LinearSelfAttention):
    _places: ClassVar[Mapping[str, Place]] = {"attn_drop": _SKIPPED}

    def forward(self, x: torch.Tensor, x_prev: torch.Tensor | None = None) -> torch.Tensor:
        if x_prev is not None or self._obstacle() is not None:
            return super().forward(x, x_prev)
        return self.out_drop(self._attend(x))


def _v2_places(attention: Place, norm: Place, mlp: Place) -> Place:
    children = {"norm1": norm, "attn": attention, "norm2": norm, "mlp": mlp}
    return one_of(Kind(nn.Sequential, others=one_of(Kind(mobilevit.LinearTransformerBlock, children=children, others=_SKIPPED))))


def _v2_attention(projection: Place) -> Place:
    return one_of(
        Kind(LinearSelfAttention, children={"qkv_proj": projection, "out_proj": projection}, others=_SKIPPED),
        Kind(mobilevit.LinearSelfAttention, not_replaced),
    )


_GROUP_NORM: Place = {**GROUP_NORM, **one_of(Kind(GroupNorm1, one_group, watched=("num_groups",)))}
_FUSED_MLP = one_of(Kind(ConvMlp, children={"fc1": POINTWISE, "act": ACTIVATION, "fc2": POINTWISE}, others=SKIPPED))


class MobileVitV2Block(V2Block, mobilevit.MobileVitV2Block):
    _places: ClassVar[Mapping[str, Place]] = {
        "transformer": _v2_places(_v2_attention(CONV), _ORDER_FREE, one_of(Kind(ConvMlp, others=_ORDER_FREE))),
        "norm": _ORDER_FREE,
    }
    _layer_places: ClassVar[Mapping[str, Place]] = {"transformer": _v2_places(_v2_attention(POINTWISE), _GROUP_NORM, _FUSED_MLP)}
    _norm_places: ClassVar[Mapping[str, Place]] = {"norm": _GROUP_NORM}
    _conv_places: ClassVar[Mapping[str, Place]] = {**_CONV_PLACES, **_norm_places}

    def _obstacle(self) -> Obstacle | None:
        return self._exportable() or super()._obstacle()

    def _layer_obstacle(self) -> Obstacle | None:
        return self._exportable() or super()._layer_obstacle()

    def _exportable(self) -> Obstacle | None:
        return Obstacle(self, "was made while timm was set exportable") if self.coreml_exportable else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        prepared = self._prepared_for(x)
        if prepared is None and self._obstacle() is not None:
            return super().forward(x)
        size = x.shape[2], x.shape[3]
        whole = round_up(size, self.patch_size)
        if whole != size:
            x = F.interpolate(x, size=whole, mode="bilinear", align_corners=True)
        if prepared is not None:
            return self._run(x, prepared)
        x = self.conv_1x1(self.conv_kxk(x))
        return self.conv_proj(self._global(x, self.transformer, self.transformer, self.norm))

    def _parts(self) -> V2Parts:
        first, second = _convolution(self.conv_kxk), Convolution(self.conv_1x1, None, "none")
        return V2Parts(first, second, self._layers(), self.norm, _convolution(self.conv_proj))

    def _layers(self) -> list[V2Layer]:
        return [_v2_layer(layer) for layer in self.transformer]


def _v2_layer(layer: Any) -> V2Layer:
    attention, mlp = layer.attn, layer.mlp
    return V2Layer(
        layer.norm1, attention.qkv_proj, attention.out_proj, layer.norm2, mlp.fc1, mlp.fc2, activation_name(mlp.act)
    )  # fmt: skip


REPLACEMENTS = {
    layers.ConvNormAct: ConvNormAct,
    byobnet.BottleneckBlock: BottleneckBlock,
    layers.ClassifierHead: ClassifierHead,
    mobilevit.MobileVitBlock: MobileVitBlock,
    mobilevit.MobileVitV2Block: MobileVitV2Block,
    mobilevit.LinearSelfAttention: LinearSelfAttention,
}
