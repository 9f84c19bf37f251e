"""transformers' MobileViT and MobileViTV2 (models/mobilevit, models/mobilevitv2): classification and segmentation.

Gradient checkpointing wraps the forward of a block from outside and works with these as with the originals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import SiLUActivation
from transformers.models.mobilevit import modeling_mobilevit as mobilevit
from transformers.models.mobilevitv2 import modeling_mobilevitv2 as mobilevitv2

from .blocks import Block, V1Attention, V1Block, V2Attention, V2Block, round_up
from .obstacles import ORDER_FREE, SKIPPED, Kind, Place, not_replaced, one_of


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


class _PatchSize(Block):
    patch_height: int
    patch_width: int

    def _patch_size(self) -> tuple[int, int]:
        return self.patch_height, self.patch_width


class MobileViTLayer(_PatchSize, V1Block, mobilevit.MobileViTLayer):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().forward(features)
        if self.downsampling_layer is not None:
            features = self.downsampling_layer(features)
        x = self.conv_1x1(self.conv_kxk(features))
        x = self.conv_projection(self._on_tokens(x, lambda tokens: self.layernorm(self.transformer(tokens))))
        return self.fusion(torch.cat((features, x), dim=1))


class MobileViTV2LinearSelfAttention(V2Attention, mobilevitv2.MobileViTV2LinearSelfAttention):
    _places: ClassVar[Mapping[str, Place]] = {"attn_dropout": SKIPPED}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) if self._obstacle() is not None else self._attend(hidden_states)


_ORDER_FREE: Place = {**ORDER_FREE, **one_of(Kind(SiLUActivation))}
_CONV_LAYER = one_of(Kind(mobilevitv2.MobileViTV2ConvLayer, others=_ORDER_FREE))
_ATTENTION = one_of(
    Kind(MobileViTV2LinearSelfAttention, children={"qkv_proj": _CONV_LAYER, "out_proj": _CONV_LAYER}, others=SKIPPED),
    Kind(mobilevitv2.MobileViTV2LinearSelfAttention, not_replaced),
)
_FFN = one_of(Kind(mobilevitv2.MobileViTV2FFN, others={**_ORDER_FREE, **_CONV_LAYER}))
_LAYER = one_of(
    Kind(
        mobilevitv2.MobileViTV2TransformerLayer,
        children={"layernorm_before": _ORDER_FREE, "attention": _ATTENTION, "layernorm_after": _ORDER_FREE, "ffn": _FFN},
        others=SKIPPED,
    )
)
_LAYERS = one_of(Kind(nn.ModuleList, others=_LAYER))


class MobileViTV2Layer(_PatchSize, V2Block, mobilevitv2.MobileViTV2Layer):
    _places: ClassVar[Mapping[str, Place]] = {
        "transformer": one_of(Kind(mobilevitv2.MobileViTV2Transformer, children={"layer": _LAYERS})),
        "layernorm": _ORDER_FREE,
    }
    _branches = ("layernorm_before", "attention", "layernorm_after", "ffn")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().forward(features)
        if self.downsampling_layer is not None:
            features = self.downsampling_layer(features)
        x = self.conv_1x1(self.conv_kxk(features))
        return self.conv_projection(self._global_representation(x))

    def _global_representation(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2], x.shape[3]
        if round_up(size, self._patch_size()) != size:
            patches, size = self.unfolding(x)  # drops the rest of the map, which folding fills with zeros
            return self.folding(self.layernorm(self.transformer(patches)), size)
        return self._global(x, self.transformer, self.transformer.layer, self.layernorm)


REPLACEMENTS = {
    mobilevit.MobileViTLayer: MobileViTLayer,
    mobilevit.MobileViTSelfAttention: MobileViTSelfAttention,
    mobilevitv2.MobileViTV2Layer: MobileViTV2Layer,
    mobilevitv2.MobileViTV2LinearSelfAttention: MobileViTV2LinearSelfAttention,
}
