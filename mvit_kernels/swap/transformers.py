"""transformers' MobileViT and MobileViTV2 (models/mobilevit, models/mobilevitv2): classification and segmentation.

Gradient checkpointing wraps the forward of a block from outside and works with these as with the originals.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import SiLUActivation
from transformers.models.mobilevit import modeling_mobilevit as mobilevit
from transformers.models.mobilevitv2 import modeling_mobilevitv2 as mobilevitv2

from .blocks import V1Attention, V1Block, V2Attention, V2Block, round_up
from .obstacles import ORDER_FREE, Rules, not_replaced, only


class MobileViTSelfAttention(V1Attention, mobilevit.MobileViTSelfAttention):
    _bypassed = ("dropout",)

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


class MobileViTLayer(V1Block, mobilevit.MobileViTLayer):
    def _patch_size(self) -> Any:
        return self.patch_height, self.patch_width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.downsampling_layer is not None:
            features = self.downsampling_layer(features)
        x = self.conv_1x1(self.conv_kxk(features))
        x = self.conv_projection(self._on_tokens(x, lambda tokens: self.layernorm(self.transformer(tokens))))
        return self.fusion(torch.cat((features, x), dim=1))


class MobileViTV2LinearSelfAttention(V2Attention, mobilevitv2.MobileViTV2LinearSelfAttention):
    _bypassed = ("attn_dropout",)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) if self._obstacle() is not None else self._attend(hidden_states)


class MobileViTV2Layer(V2Block, mobilevitv2.MobileViTV2Layer):
    _bypassed = ("transformer", "layernorm")
    _rules: ClassVar[Rules] = {
        **ORDER_FREE,
        SiLUActivation: None,
        mobilevitv2.MobileViTV2ConvLayer: None,
        mobilevitv2.MobileViTV2FFN: None,
        MobileViTV2LinearSelfAttention: None,
        mobilevitv2.MobileViTV2LinearSelfAttention: not_replaced,
        mobilevitv2.MobileViTV2TransformerLayer: None,
        mobilevitv2.MobileViTV2Transformer: None,
        nn.ModuleList: only(mobilevitv2.MobileViTV2TransformerLayer),
    }

    def _patch_size(self) -> Any:
        return self.patch_height, self.patch_width

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
        if not self._setting.attention:
            return self._on_patches(x, lambda patches: self.layernorm(self.transformer(patches)))
        for layer in self.transformer.layer:
            x = self._layer_on_map(layer, x)
        return self.layernorm(x)

    def _layer_on_map(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attend(layer.attention, layer.layernorm_before(x))
        return x + layer.ffn(layer.layernorm_after(x))


REPLACEMENTS = {
    mobilevit.MobileViTLayer: MobileViTLayer,
    mobilevit.MobileViTSelfAttention: MobileViTSelfAttention,
    mobilevitv2.MobileViTV2Layer: MobileViTV2Layer,
    mobilevitv2.MobileViTV2LinearSelfAttention: MobileViTV2LinearSelfAttention,
}
