"""ml-cvnets' MobileViT and MobileViTv2 blocks (cvnets/modules/mobilevit_block.py), from version 0.2.

A pair (x, x_prev), which its blocks take for video, and masked or cross-attention run the original forward.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from cvnets import layers
from cvnets.modules import mobilevit_block, transformer
from torch import nn

from .blocks import V1Attention, V1Block, V2Attention, V2Block
from .obstacles import ORDER_FREE, Obstacle, Rules, not_replaced, only

# cvnets derives its own classes from torch's without changing what they do.
_BASES: Rules = {**ORDER_FREE, nn.Softmax: None}
_LAYERS: Rules = {
    subclass: rule
    for base, rule in _BASES.items()
    for subclass in (base, *base.__subclasses__())
    if subclass is base or (subclass.__module__.startswith("cvnets.") and subclass.forward is base.forward)
}
_CONV_LAYER = layers.ConvLayer2d if hasattr(layers, "ConvLayer2d") else layers.ConvLayer  # its name before version 0.3


class MultiHeadAttention(V1Attention, layers.MultiHeadAttention):
    _bypassed = ("softmax", "attn_dropout")
    _rules = _LAYERS

    def forward(self, x_q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        special = self.coreml_compatible or any(arg is not None for arg in (*args, *kwargs.values()))
        if special or self._obstacle() is not None:
            return super().forward(x_q, *args, **kwargs)
        batch, length, _ = x_q.shape
        qkv = self.qkv_proj(x_q).reshape(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, self.embed_dim))


class MobileViTBlock(V1Block, mobilevit_block.MobileViTBlock):
    def _patch_size(self) -> tuple[int, int]:
        return self.patch_h, self.patch_w

    def forward_spatial(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_proj(self._on_tokens(self.local_rep(x), self._global_representation))
        return y if self.fusion is None else self.fusion(torch.cat((x, y), dim=1))

    def _global_representation(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self.global_rep:
            tokens = layer(tokens)
        return tokens


class LinearSelfAttention(V2Attention, layers.LinearSelfAttention):
    _bypassed = ("attn_dropout",)
    _rules = _LAYERS

    def forward(self, x: torch.Tensor, x_prev: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        if x_prev is not None or self._obstacle() is not None:
            return super().forward(x, x_prev, *args, **kwargs)
        return self._attend(x)


_INNER: Rules = {
    **_LAYERS,
    _CONV_LAYER: None,
    LinearSelfAttention: None,
    layers.LinearSelfAttention: not_replaced,
    transformer.LinearAttnFFN: None,
}


class MobileViTBlockv2(V2Block, mobilevit_block.MobileViTBlockv2):
    _bypassed = ("global_rep",)
    _rules: ClassVar[Rules] = {**_INNER, nn.Sequential: only(*_INNER)}

    def _patch_size(self) -> tuple[int, int]:
        return self.patch_h, self.patch_w

    def _obstacle(self) -> Obstacle | None:
        return Obstacle(self, "was made for CoreML") if self.enable_coreml_compatible_fn else super()._obstacle()

    def forward_spatial(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().forward_spatial(x, *args, **kwargs)
        x = self.local_rep(self.resize_input_if_needed(x))
        if not self._setting.attention:
            return self.conv_proj(self._on_patches(x, self.global_rep))
        for layer in self.global_rep:
            x = self._layer_on_map(layer, x) if isinstance(layer, transformer.LinearAttnFFN) else layer(x)
        return self.conv_proj(x)

    def _layer_on_map(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        y = x
        for module in layer.pre_norm_attn:
            y = self._attend(module, y) if isinstance(module, layers.LinearSelfAttention) else module(y)
        x = x + y
        return x + layer.pre_norm_ffn(x)


REPLACEMENTS = {
    mobilevit_block.MobileViTBlock: MobileViTBlock,
    mobilevit_block.MobileViTBlockv2: MobileViTBlockv2,
    layers.MultiHeadAttention: MultiHeadAttention,
    layers.LinearSelfAttention: LinearSelfAttention,
}
