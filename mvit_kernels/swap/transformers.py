"""transformers' MobileViT and MobileViTV2 (models/mobilevit, models/mobilevitv2): classification and segmentation.

Gradient checkpointing wraps the forward of a block from outside and works with these as with the originals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import SiLUActivation
from transformers.models.mobilevit import modeling_mobilevit as mobilevit
from transformers.models.mobilevitv2 import modeling_mobilevitv2 as mobilevitv2

from . import blocks
from .blocks import Block, Prepared, V1Attention, V1Block, V2Attention, V2Block, round_up
from .fused import V1Layer, V1Parts, V2Layer, V2Parts
from .obstacles import (
    ACTIVATION,
    ACTIVATIONS,
    BATCH_NORM,
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

ACTIVATIONS[SiLUActivation] = "silu"
_ACTIVATION: Place = {**ACTIVATION, **one_of(Kind(SiLUActivation))}
_CONV_PARTS: Mapping[str, Place] = {"convolution": CONVOLUTION, "normalization": BATCH_NORM, "activation": _ACTIVATION}


def _convolution(module: Any) -> Convolution:
    return Convolution(module.convolution, module.normalization, activation_name(module.activation))


class _ConvLayer(blocks.ConvLayer):
    _places: ClassVar[Mapping[str, Place]] = _CONV_PARTS

    def _parts(self) -> Convolution:
        return _convolution(self)


class MobileViTConvLayer(_ConvLayer, mobilevit.MobileViTConvLayer):
    pass


class MobileViTV2ConvLayer(_ConvLayer, mobilevitv2.MobileViTV2ConvLayer):
    pass


_CONVS = one_of(Kind(mobilevit.MobileViTConvLayer, children=_CONV_PARTS), Kind(mobilevitv2.MobileViTV2ConvLayer, children=_CONV_PARTS))


class _InvertedResidual(blocks.InvertedResidual):
    _places: ClassVar[Mapping[str, Place]] = {name: _CONVS for name in ("expand_1x1", "conv_3x3", "reduce_1x1")}

    def _parts(self) -> tuple[Convolution, Convolution, Convolution]:
        return _convolution(self.expand_1x1), _convolution(self.conv_3x3), _convolution(self.reduce_1x1)

    def _residual(self) -> bool:
        return self.use_residual


class MobileViTInvertedResidual(_InvertedResidual, mobilevit.MobileViTInvertedResidual):
    pass


class MobileViTV2InvertedResidual(_InvertedResidual, mobilevitv2.MobileViTV2InvertedResidual):
    pass


class MobileViTSelfAttention(V1Attention, mobilevit.MobileViTSelfAttention):
    _places: ClassVar[Mapping[str, Place]] = {"dropout": SKIPPED}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().forward(hidden_states)
        batch, length, _ = hidden_states.shape
        heads = batch, length, self.num_attention_heads, self.attention_head_size
        query = self.query(hidden_states).view(heads).transpose(1, 2)
        key = self.key(hidden_states).view(heads).transpose(1, 2)
        value = self.value(hidden_states).view(heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(query, key, value)
        return y.transpose(1, 2).reshape(batch, length, self.all_head_size)


class _Layer(Block):
    patch_height: int
    patch_width: int
    _conv_places: ClassVar[Mapping[str, Place]] = {name: _CONVS for name in ("conv_kxk", "conv_1x1", "conv_projection")}

    def _patch_size(self) -> tuple[int, int]:
        return self.patch_height, self.patch_width


_V1_ATTENTION = one_of(
    Kind(
        mobilevit.MobileViTAttention,
        children={
            "attention": one_of(
                *(
                    Kind(kind, others={**LINEAR, **SKIPPED}, watched=("training", "num_attention_heads", "attention_head_size"))
                    for kind in (MobileViTSelfAttention, mobilevit.MobileViTSelfAttention)
                )
            ),
            "output": one_of(Kind(mobilevit.MobileViTSelfOutput, others={**LINEAR, **SKIPPED})),
        },
    )
)
_V1_LAYER = one_of(
    Kind(
        mobilevit.MobileViTTransformerLayer,
        children={
            "attention": _V1_ATTENTION,
            "intermediate": one_of(Kind(mobilevit.MobileViTIntermediate, children={"dense": LINEAR, "intermediate_act_fn": _ACTIVATION})),
            "output": one_of(Kind(mobilevit.MobileViTOutput, others={**LINEAR, **SKIPPED})),
            "layernorm_before": LAYER_NORM,
            "layernorm_after": LAYER_NORM,
        },
    )
)


class MobileViTLayer(_Layer, V1Block, mobilevit.MobileViTLayer):
    _layer_places: ClassVar[Mapping[str, Place]] = {
        "transformer": one_of(Kind(mobilevit.MobileViTTransformer, children={"layer": one_of(Kind(nn.ModuleList, others=_V1_LAYER))})),
        "layernorm": LAYER_NORM,
    }
    _conv_places: ClassVar[Mapping[str, Place]] = {**_Layer._conv_places, "fusion": _CONVS}

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        prepared = self._prepared_for(features)
        if prepared is not None:
            return self._with_downsampling(features, prepared)
        if self._obstacle() is not None:
            return super().forward(features)
        if self.downsampling_layer is not None:
            features = self.downsampling_layer(features)
        x = self.conv_1x1(self.conv_kxk(features))
        x = self.conv_projection(self._represented(x, self.layernorm, lambda tokens: self.layernorm(self.transformer(tokens))))
        return self.fusion(torch.cat((features, x), dim=1))

    def _with_downsampling(self, features: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        return self._run(features if self.downsampling_layer is None else self.downsampling_layer(features), prepared)

    def _parts(self) -> V1Parts:
        first, second, proj, fusion = map(_convolution, (self.conv_kxk, self.conv_1x1, self.conv_projection, self.fusion))
        return V1Parts(first, second, self._layers(), self.layernorm, proj, fusion)

    def _layers(self) -> list[V1Layer]:
        return [_v1_layer(layer) for layer in self.transformer.layer]


def _v1_layer(layer: Any) -> V1Layer:
    attention = layer.attention.attention
    return V1Layer(
        layer.layernorm_before, (attention.query, attention.key, attention.value), attention.num_attention_heads,
        attention.attention_head_size**-0.5, layer.attention.output.dense, layer.layernorm_after, layer.intermediate.dense,
        layer.output.dense, activation_name(layer.intermediate.intermediate_act_fn),
    )  # fmt: skip


class MobileViTV2LinearSelfAttention(V2Attention, mobilevitv2.MobileViTV2LinearSelfAttention):
    _places: ClassVar[Mapping[str, Place]] = {"attn_dropout": SKIPPED}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) if self._obstacle() is not None else self._attend(hidden_states)


_ORDER_FREE: Place = {**ORDER_FREE, **one_of(Kind(SiLUActivation))}


def _v2_transformer(norm: Place, conv: Place, activated: Place) -> Place:
    """`norm`, and the children of convolutional layers, where they stand: `activated` in the first of a feed-forward, else `conv`."""
    layer, first = (one_of(Kind(mobilevitv2.MobileViTV2ConvLayer, others=children)) for children in (conv, activated))
    attention = one_of(
        Kind(MobileViTV2LinearSelfAttention, children={"qkv_proj": layer, "out_proj": layer}, others=SKIPPED),
        Kind(mobilevitv2.MobileViTV2LinearSelfAttention, not_replaced),
    )
    feed_forward = one_of(Kind(mobilevitv2.MobileViTV2FFN, children={"conv1": first, "conv2": layer}, others=SKIPPED))
    children = {"layernorm_before": norm, "attention": attention, "layernorm_after": norm, "ffn": feed_forward}
    layers = one_of(Kind(nn.ModuleList, others=one_of(Kind(mobilevitv2.MobileViTV2TransformerLayer, children=children, others=SKIPPED))))
    return one_of(Kind(mobilevitv2.MobileViTV2Transformer, children={"layer": layers}))


class MobileViTV2Layer(_Layer, V2Block, mobilevitv2.MobileViTV2Layer):
    _places: ClassVar[Mapping[str, Place]] = {
        "transformer": _v2_transformer(_ORDER_FREE, _ORDER_FREE, _ORDER_FREE),
        "layernorm": _ORDER_FREE,
    }
    _layer_places: ClassVar[Mapping[str, Place]] = {"transformer": _v2_transformer(GROUP_NORM, POINTWISE, {**POINTWISE, **_ACTIVATION})}
    _norm_places: ClassVar[Mapping[str, Place]] = {"layernorm": GROUP_NORM}
    _conv_places: ClassVar[Mapping[str, Place]] = {**_Layer._conv_places, **_norm_places}
    _branches = ("layernorm_before", "attention", "layernorm_after", "ffn")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        prepared = self._prepared_for(features) if self._divides(features) else None
        if prepared is not None:
            return self._with_downsampling(features, prepared)
        if self._obstacle() is not None:
            return super().forward(features)
        if self.downsampling_layer is not None:
            features = self.downsampling_layer(features)
        x = self.conv_1x1(self.conv_kxk(features))
        return self.conv_projection(self._global_representation(x))

    def _divides(self, features: torch.Tensor) -> bool:
        """Whether the map that attention sees is of whole patches."""
        down = self.downsampling_layer
        stride = 1 if down is None else down.conv_3x3.convolution.stride[0]
        size = -(-features.shape[2] // stride), -(-features.shape[3] // stride)
        return round_up(size, self._patch_size()) == size

    def _with_downsampling(self, features: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        return self._run(features if self.downsampling_layer is None else self.downsampling_layer(features), prepared)

    def _global_representation(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2], x.shape[3]
        if round_up(size, self._patch_size()) != size:
            patches, size = self.unfolding(x)  # drops the rest of the map, which folding fills with zeros
            return self.folding(self.layernorm(self.transformer(patches)), size)
        return self._global(x, self.transformer, self.transformer.layer, self.layernorm)

    def _parts(self) -> V2Parts:
        first, second, proj = map(_convolution, (self.conv_kxk, self.conv_1x1, self.conv_projection))
        return V2Parts(first, second, self._layers(), self.layernorm, proj)

    def _layers(self) -> list[V2Layer]:
        return [_v2_layer(layer) for layer in self.transformer.layer]


def _v2_layer(layer: Any) -> V2Layer:
    attention, ffn = layer.attention, layer.ffn
    return V2Layer(
        layer.layernorm_before, attention.qkv_proj.convolution, attention.out_proj.convolution, layer.layernorm_after,
        ffn.conv1.convolution, ffn.conv2.convolution, activation_name(ffn.conv1.activation),
    )  # fmt: skip


REPLACEMENTS = {
    mobilevit.MobileViTConvLayer: MobileViTConvLayer,
    mobilevit.MobileViTInvertedResidual: MobileViTInvertedResidual,
    mobilevit.MobileViTLayer: MobileViTLayer,
    mobilevit.MobileViTSelfAttention: MobileViTSelfAttention,
    mobilevitv2.MobileViTV2ConvLayer: MobileViTV2ConvLayer,
    mobilevitv2.MobileViTV2InvertedResidual: MobileViTV2InvertedResidual,
    mobilevitv2.MobileViTV2Layer: MobileViTV2Layer,
    mobilevitv2.MobileViTV2LinearSelfAttention: MobileViTV2LinearSelfAttention,
}
