"""Our own reference models (mvit_kernels.models), whose blocks keep what lies between their convolutions in `global_representation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from mvit_kernels.models import layers, mobilevit, mobilevitv2

from . import blocks
from .blocks import V1Block, V2Attention, V2Block, round_up
from .fused import V1Layer, V1Parts, V2Layer, V2Parts
from .obstacles import (
    ACTIVATION,
    BATCH_NORM,
    CONV,
    CONVOLUTION,
    GROUP_NORM,
    LAYER_NORM,
    LINEAR,
    ORDER_FREE,
    POINTWISE,
    SKIPPED,
    Kind,
    Place,
    activation_name,
    not_replaced,
    one_of,
)
from .weights import Convolution

_CONV_PARTS: Mapping[str, Place] = {"conv": CONVOLUTION, "bn": BATCH_NORM, "act": ACTIVATION}
_CONV_NORM_ACT = one_of(Kind(layers.ConvNormAct, children=_CONV_PARTS))


def _convolution(module: Any) -> Convolution:
    return Convolution(module.conv, module.bn, activation_name(module.act))


class ConvNormAct(blocks.ConvLayer, layers.ConvNormAct):
    _places: ClassVar[Mapping[str, Place]] = _CONV_PARTS

    def _parts(self) -> Convolution:
        return _convolution(self)


class InvertedResidual(blocks.InvertedResidual, layers.InvertedResidual):
    _places: ClassVar[Mapping[str, Place]] = {name: _CONV_NORM_ACT for name in ("conv1_1x1", "conv2_kxk", "conv3_1x1")}

    def _parts(self) -> tuple[Convolution, Convolution, Convolution]:
        return _convolution(self.conv1_1x1), _convolution(self.conv2_kxk), _convolution(self.conv3_1x1)

    def _residual(self) -> bool:
        return self.has_skip


class ClassifierHead(blocks.Head, layers.ClassifierHead):
    _places: ClassVar[Mapping[str, Place]] = {"drop": SKIPPED, "fc": LINEAR}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        prepared = self._prepared_for(x)
        return super().forward(x) if prepared is None else self._run(x, prepared)

    def _parts(self) -> nn.Linear:
        return self.fc  # type: ignore[return-value]


_CONV_PLACES: Mapping[str, Place] = {"conv_kxk": _CONV_NORM_ACT, "conv_1x1": CONVOLUTION, "conv_proj": _CONV_NORM_ACT}

_V1_LAYER = one_of(
    Kind(
        mobilevit.TransformerLayer,
        children={
            "norm1": LAYER_NORM,
            "attn": one_of(Kind(mobilevit.MultiHeadAttention, others=LINEAR, watched=("training", "num_heads"))),
            "norm2": LAYER_NORM,
            "mlp": one_of(Kind(mobilevit.FeedForward, children={"act": ACTIVATION}, others=LINEAR)),
        },
        others=SKIPPED,
    )
)


class MobileViTBlock(V1Block, mobilevit.MobileViTBlock):
    _layer_places: ClassVar[Mapping[str, Place]] = {"transformer": one_of(Kind(nn.Sequential, others=_V1_LAYER)), "norm": LAYER_NORM}
    _conv_places: ClassVar[Mapping[str, Place]] = {**_CONV_PLACES, "conv_fusion": _CONV_NORM_ACT}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        prepared = self._prepared_for(x)
        return super().forward(x) if prepared is None else self._run(x, prepared)

    def global_representation(self, x: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().global_representation(x)
        return self._represented(x, self.norm, lambda tokens: self.norm(self.transformer(tokens)))

    def _parts(self) -> V1Parts:
        first, second = _convolution(self.conv_kxk), Convolution(self.conv_1x1, None, "none")
        return V1Parts(first, second, self._layers(), self.norm, _convolution(self.conv_proj), _convolution(self.conv_fusion))

    def _layers(self) -> list[V1Layer]:
        return [_v1_layer(layer) for layer in self.transformer]


def _v1_layer(layer: Any) -> V1Layer:
    attention, mlp = layer.attn, layer.mlp
    heads = attention.num_heads
    scale = (attention.proj.in_features // heads) ** -0.5
    return V1Layer(
        layer.norm1, (attention.qkv,), heads, scale, attention.proj, layer.norm2, mlp.fc1, mlp.fc2, activation_name(mlp.act)
    )  # fmt: skip


class SeparableAttention(V2Attention, mobilevitv2.SeparableAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self._obstacle() is not None else self._attend(x)


def _v2_layer_place(attention: Place, norm: Place, mlp: Place) -> Place:
    children = {"norm1": norm, "attn": attention, "norm2": norm, "mlp": mlp}
    return one_of(Kind(nn.Sequential, others=one_of(Kind(mobilevitv2.SeparableTransformerLayer, children=children))))


_ATTENTION = one_of(
    Kind(SeparableAttention, children={"qkv_proj": CONV, "out_proj": CONV}),
    Kind(mobilevitv2.SeparableAttention, not_replaced),
)
_FUSED_ATTENTION = one_of(Kind(SeparableAttention, others=POINTWISE), Kind(mobilevitv2.SeparableAttention, not_replaced))
_FUSED_MLP = one_of(Kind(mobilevitv2.ConvFeedForward, children={"act": ACTIVATION}, others=POINTWISE))


class MobileViTv2Block(V2Block, mobilevitv2.MobileViTv2Block):
    _places: ClassVar[Mapping[str, Place]] = {
        "transformer": _v2_layer_place(_ATTENTION, ORDER_FREE, one_of(Kind(mobilevitv2.ConvFeedForward, others=ORDER_FREE))),
        "norm": ORDER_FREE,
    }
    _layer_places: ClassVar[Mapping[str, Place]] = {"transformer": _v2_layer_place(_FUSED_ATTENTION, GROUP_NORM, _FUSED_MLP)}
    _norm_places: ClassVar[Mapping[str, Place]] = {"norm": GROUP_NORM}
    _conv_places: ClassVar[Mapping[str, Place]] = {**_CONV_PLACES, **_norm_places}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2], x.shape[3]
        whole = round_up(size, self.patch_size)
        prepared = self._prepared_for(x) if whole == size or self.odd_maps == "resize" else None
        if prepared is None:
            return super().forward(x)
        if whole != size:
            x = F.interpolate(x, whole, mode="bilinear", align_corners=True)
        return self._run(x, prepared)

    def global_representation(self, x: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().global_representation(x)
        return self._global(x, self.transformer, self.transformer, self.norm)

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
    layers.InvertedResidual: InvertedResidual,
    layers.ClassifierHead: ClassifierHead,
    mobilevit.MobileViTBlock: MobileViTBlock,
    mobilevitv2.MobileViTv2Block: MobileViTv2Block,
    mobilevitv2.SeparableAttention: SeparableAttention,
}
