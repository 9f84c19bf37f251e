"""ml-cvnets' MobileViT and MobileViTv2 blocks (cvnets/modules/mobilevit_block.py), from version 0.2.

A pair (x, x_prev), which its blocks take for video, and masked or cross-attention run the original forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from cvnets import layers
from cvnets.modules import mobilevit_block, transformer
from torch import nn

from .blocks import Block, V1Attention, V1Block, V2Attention, V2Block
from .obstacles import ORDER_FREE, SKIPPED, Kind, Obstacle, Place, not_replaced, one_of


def _and_derived(place: Place) -> Place:
    """With the classes that cvnets derives from torch's without changing what they do."""
    derived = {
        subclass: replace(kind, type=subclass)
        for base, kind in place.items()
        for subclass in base.__subclasses__()
        if subclass.__module__.startswith("cvnets.") and subclass.forward is base.forward
    }
    return {**place, **derived}


def _over_keys(softmax: nn.Softmax) -> str | None:
    return None if softmax.dim == -1 else "is not over the last dimension"


_SKIPPED = _and_derived(SKIPPED)
_SOFTMAX = _and_derived(one_of(Kind(nn.Softmax, _over_keys)))
_ConvLayer = layers.ConvLayer2d if hasattr(layers, "ConvLayer2d") else layers.ConvLayer  # its name before version 0.3


class MultiHeadAttention(V1Attention, layers.MultiHeadAttention):
    _places: ClassVar[Mapping[str, Place]] = {"softmax": _SOFTMAX, "attn_dropout": _SKIPPED}

    def forward(self, x_q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        special = self.coreml_compatible or any(arg is not None for arg in (*args, *kwargs.values()))
        if special or self._obstacle() is not None:
            return super().forward(x_q, *args, **kwargs)
        batch, length, _ = x_q.shape
        qkv = self.qkv_proj(x_q).reshape(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, self.embed_dim))


class _PatchSize(Block):
    patch_h: int
    patch_w: int

    def _patch_size(self) -> tuple[int, int]:
        return self.patch_h, self.patch_w


class MobileViTBlock(_PatchSize, V1Block, mobilevit_block.MobileViTBlock):
    def forward_spatial(self, x: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().forward_spatial(x)
        y = self.conv_proj(self._on_tokens(self.local_rep(x), self._global_representation))
        return y if self.fusion is None else self.fusion(torch.cat((x, y), dim=1))

    def _global_representation(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self.global_rep:
            tokens = layer(tokens)
        return tokens


class LinearSelfAttention(V2Attention, layers.LinearSelfAttention):
    _places: ClassVar[Mapping[str, Place]] = {"attn_dropout": _SKIPPED}

    def forward(self, x: torch.Tensor, x_prev: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        if x_prev is not None or self._obstacle() is not None:
            return super().forward(x, x_prev, *args, **kwargs)
        return self._attend(x)


_LEAF = _and_derived(ORDER_FREE)
_CONV_LAYER = one_of(Kind(_ConvLayer, children={"block": one_of(Kind(nn.Sequential, others=_LEAF))}))
_ATTENTION = one_of(
    Kind(LinearSelfAttention, children={"qkv_proj": _CONV_LAYER, "out_proj": _CONV_LAYER}, others=_SKIPPED),
    Kind(layers.LinearSelfAttention, not_replaced),
)
_ORDER_FREE: Place = {**_LEAF, **_CONV_LAYER}
_LAYER = one_of(
    Kind(
        transformer.LinearAttnFFN,
        children={
            "pre_norm_attn": one_of(Kind(nn.Sequential, others={**_ORDER_FREE, **_ATTENTION})),
            "pre_norm_ffn": one_of(Kind(nn.Sequential, others=_ORDER_FREE)),
        },
    )
)


class MobileViTBlockv2(_PatchSize, V2Block, mobilevit_block.MobileViTBlockv2):
    _places: ClassVar[Mapping[str, Place]] = {"global_rep": one_of(Kind(nn.Sequential, others={**_ORDER_FREE, **_LAYER}))}

    def _obstacle(self) -> Obstacle | None:
        return Obstacle(self, "was made for CoreML") if self.enable_coreml_compatible_fn else super()._obstacle()

    def forward_spatial(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().forward_spatial(x, *args, **kwargs)
        x = self.local_rep(self.resize_input_if_needed(x))
        if not self._mvit_kernels_setting.attention:
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
