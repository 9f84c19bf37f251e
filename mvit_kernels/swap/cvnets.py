"""ml-cvnets' MobileViT and MobileViTv2 blocks (cvnets/modules/mobilevit_block.py) and what stands around them, from version 0.2.

A pair (x, x_prev), which its blocks take for video, and masked or cross-attention run the original forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from cvnets import layers
from cvnets.layers.normalization.layer_norm import LayerNorm
from cvnets.modules import mobilenetv2, mobilevit_block, transformer
from torch import nn

from . import blocks
from .blocks import Block, V1Attention, V1Block, V2Attention, V2Block, round_up
from .fused import V1Layer, V1Parts, V2Layer, V2Parts
from .obstacles import (
    ACTIVATION,
    BATCH_NORM,
    CONVOLUTION,
    GROUP_NORM,
    LINEAR,
    ORDER_FREE,
    POINTWISE,
    SKIPPED,
    Kind,
    Obstacle,
    Place,
    activation_name,
    has_bias,
    last_axis,
    not_replaced,
    one_of,
)
from .weights import Convolution


def _and_derived(place: Place) -> Place:
    """With the classes that cvnets derives from torch's without changing what they do."""
    derived = {
        subclass: replace(kind, type=subclass)
        for base, kind in place.items()
        for subclass in base.__subclasses__()
        if subclass.__module__.startswith("cvnets.") and subclass.forward is base.forward
    }
    return {**place, **derived}


def _takes_tokens(linear: Any) -> str | None:
    return "takes channels first" if getattr(linear, "channel_first", False) else has_bias(linear)


def _over_keys(softmax: nn.Softmax) -> str | None:
    return None if softmax.dim == -1 else "is not over the last dimension"


_SKIPPED = {**_and_derived(SKIPPED), **one_of(Kind(layers.Identity))}  # which is none of torch's
_SOFTMAX = _and_derived(one_of(Kind(nn.Softmax, _over_keys)))
_ConvLayer = layers.ConvLayer2d if hasattr(layers, "ConvLayer2d") else layers.ConvLayer  # its name before version 0.3


_ACTIVATION = _and_derived(ACTIVATION)
_CONV_PARTS = one_of(
    Kind(nn.Sequential, children={"conv": _and_derived(CONVOLUTION), "norm": _and_derived(BATCH_NORM), "act": _ACTIVATION})
)
_FOLDED = one_of(Kind(_ConvLayer, children={"block": _CONV_PARTS}))
_LayerNorm = one_of(Kind(LayerNorm, last_axis))
_LINEAR: Place = {**_and_derived(LINEAR), **(one_of(Kind(layers.LinearLayer, _takes_tokens)) if hasattr(layers, "LinearLayer") else {})}


def _convolution(module: Any) -> Convolution:
    block = module.block
    return Convolution(block.conv, getattr(block, "norm", None), activation_name(getattr(block, "act", None)))


class ConvLayer(blocks.ConvLayer, _ConvLayer):  # type: ignore[misc, valid-type]
    _places: ClassVar[Mapping[str, Place]] = {"block": _CONV_PARTS}

    def _parts(self) -> Convolution:
        return _convolution(self)


class InvertedResidual(blocks.InvertedResidual, mobilenetv2.InvertedResidual):
    _places: ClassVar[Mapping[str, Place]] = {"block": one_of(Kind(nn.Sequential, others=_FOLDED))}

    def _obstacle(self) -> Obstacle | None:
        # Without an expansion, where its ratio is 1.
        return super()._obstacle() if len(self.block) == 3 else Obstacle(self, "does not expand")

    def _parts(self) -> tuple[Convolution, Convolution, Convolution]:
        return _convolution(self.block.exp_1x1), _convolution(self.block.conv_3x3), _convolution(self.block.red_1x1)

    def _residual(self) -> bool:
        return self.use_res_connect


class MultiHeadAttention(V1Attention, layers.MultiHeadAttention):
    _places: ClassVar[Mapping[str, Place]] = {"softmax": _SOFTMAX, "attn_dropout": _SKIPPED}

    def forward(self, x_q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        special = self.coreml_compatible or any(arg is not None for arg in (*args, *kwargs.values()))
        if special or self._obstacle() is not None:
            return super().forward(x_q, *args, **kwargs)
        batch, length, _ = x_q.shape
        qkv = self.qkv_proj(x_q).reshape(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, self.embed_dim))


class _PatchSize(Block):
    patch_h: int
    patch_w: int

    def _patch_size(self) -> tuple[int, int]:
        return self.patch_h, self.patch_w


_V1_ATTENTION = {"qkv_proj": _LINEAR, "out_proj": _LINEAR, "softmax": _SOFTMAX, "attn_dropout": _SKIPPED}
_V1_MHA = one_of(
    Kind(MultiHeadAttention, children=_V1_ATTENTION, watched=("training", "num_heads", "scaling")),
    Kind(layers.MultiHeadAttention, not_replaced),
)
_V1_LAYER = one_of(
    Kind(
        transformer.TransformerEncoder,
        children={
            "pre_norm_mha": one_of(Kind(nn.Sequential, others={**_LayerNorm, **_V1_MHA, **_SKIPPED})),
            "pre_norm_ffn": one_of(Kind(nn.Sequential, others={**_LayerNorm, **_LINEAR, **_ACTIVATION, **_SKIPPED})),
        },
        others=_SKIPPED,
    )
)


class MobileViTBlock(_PatchSize, V1Block, mobilevit_block.MobileViTBlock):
    _layer_places: ClassVar[Mapping[str, Place]] = {"global_rep": one_of(Kind(nn.Sequential, others={**_LayerNorm, **_V1_LAYER}))}
    _conv_places: ClassVar[Mapping[str, Place]] = {
        "local_rep": one_of(Kind(nn.Sequential, others=_FOLDED)), "conv_proj": _FOLDED, "fusion": _FOLDED
    }  # fmt: skip

    def forward_spatial(self, x: torch.Tensor) -> torch.Tensor:
        prepared = self._prepared_for(x)
        if prepared is not None:
            return self._run(x, prepared)
        if self._obstacle() is not None:
            return super().forward_spatial(x)
        y = self.conv_proj(self._represented(self.local_rep(x), self.global_rep[-1], self._global_representation))
        return y if self.fusion is None else self.fusion(torch.cat((x, y), dim=1))

    def _global_representation(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self.global_rep:
            tokens = layer(tokens)
        return tokens

    def _standing_back(self, x: torch.Tensor) -> bool:
        if super()._standing_back(x):
            return True
        # cvnets' LayerNorm takes as many tokens as channels for channels first.
        height, width = round_up((x.shape[2], x.shape[3]), self._patch_size())
        channels = getattr(self.global_rep[-1], "normalized_shape", (0,))[0]
        return height * width // (self.patch_h * self.patch_w) == channels

    def _layer_obstacle(self) -> Obstacle | None:
        obstacle = super()._layer_obstacle()
        if obstacle is None and not _is_stack(self.global_rep, transformer.TransformerEncoder, _V1_SEQUENCES, _LayerNorm):
            return Obstacle(self, "is no stack of transformer layers with a norm behind")
        return obstacle

    def _parts(self) -> V1Parts:
        first, second = map(_convolution, self.local_rep)
        fusion = None if self.fusion is None else _convolution(self.fusion)
        return V1Parts(first, second, self._layers(), self.global_rep[-1], _convolution(self.conv_proj), fusion)

    def _layers(self) -> list[V1Layer]:
        return [_v1_layer(layer) for layer in self.global_rep[:-1]]


def _without_dropout(sequence: nn.Sequential) -> list[Any]:
    return [module for module in sequence if type(module) not in _SKIPPED]


def _is_stack(stack: Any, kind: type, sequences: Mapping[str, tuple[Place, ...]], norm: Place) -> bool:
    """All of `stack` but the last, a norm, are of the kind, and their sequences, without dropout, hold what is expected, in that order."""
    return (
        type(stack[-1]) in norm
        and all(type(layer) is kind for layer in stack[:-1])
        and all(
            len(modules) == len(places) and all(type(m) in place for m, place in zip(modules, places, strict=True))
            for layer in stack[:-1]
            for name, places in sequences.items()
            for modules in [_without_dropout(getattr(layer, name))]
        )
    )


_V1_SEQUENCES = {"pre_norm_mha": (_LayerNorm, _V1_MHA), "pre_norm_ffn": (_LayerNorm, _LINEAR, _ACTIVATION, _LINEAR)}


def _v1_layer(layer: Any) -> V1Layer:
    norm1, attention = _without_dropout(layer.pre_norm_mha)
    norm2, fc1, act, fc2 = _without_dropout(layer.pre_norm_ffn)
    return V1Layer(
        norm1, (attention.qkv_proj,), attention.num_heads, attention.scaling, attention.out_proj, norm2, fc1, fc2, activation_name(act)
    )  # fmt: skip


class LinearSelfAttention(V2Attention, layers.LinearSelfAttention):
    _places: ClassVar[Mapping[str, Place]] = {"attn_dropout": _SKIPPED}

    def forward(self, x: torch.Tensor, x_prev: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        if x_prev is not None or self._obstacle() is not None:
            return super().forward(x, x_prev, *args, **kwargs)
        return self._attend(x)


_LEAF = _and_derived(ORDER_FREE)
_GROUP_NORM = _and_derived(GROUP_NORM)
_CONV_LAYER = one_of(Kind(_ConvLayer, children={"block": one_of(Kind(nn.Sequential, others=_LEAF))}))
_BLOCK = {"conv": _and_derived(POINTWISE)}
_POINTWISE = one_of(Kind(_ConvLayer, children={"block": one_of(Kind(nn.Sequential, children=_BLOCK))}))
_ACTIVATED = one_of(Kind(_ConvLayer, children={"block": one_of(Kind(nn.Sequential, children={**_BLOCK, "act": _ACTIVATION}))}))


def _v2_attention(projection: Place) -> Place:
    return one_of(
        Kind(LinearSelfAttention, children={"qkv_proj": projection, "out_proj": projection}, others=_SKIPPED),
        Kind(layers.LinearSelfAttention, not_replaced),
    )


def _v2_layers(leaf: Place, projection: Place, feed_forward: Place) -> Place:
    children = {
        "pre_norm_attn": one_of(Kind(nn.Sequential, others={**leaf, **_v2_attention(projection)})),
        "pre_norm_ffn": one_of(Kind(nn.Sequential, others={**leaf, **feed_forward})),
    }
    return one_of(Kind(nn.Sequential, others={**leaf, **one_of(Kind(transformer.LinearAttnFFN, children=children))}))


_V2_SEQUENCES = {"pre_norm_attn": (_GROUP_NORM, _v2_attention(_POINTWISE)), "pre_norm_ffn": (_GROUP_NORM, _ACTIVATED, _ACTIVATED)}


class MobileViTBlockv2(_PatchSize, V2Block, mobilevit_block.MobileViTBlockv2):
    _norm_places: ClassVar[Mapping[str, Place]] = {}  # it is one of the layers
    _places: ClassVar[Mapping[str, Place]] = {"global_rep": _v2_layers({**_LEAF, **_CONV_LAYER}, _CONV_LAYER, _CONV_LAYER)}
    _layer_places: ClassVar[Mapping[str, Place]] = {"global_rep": _v2_layers({**_GROUP_NORM, **_SKIPPED}, _POINTWISE, _ACTIVATED)}
    _conv_places: ClassVar[Mapping[str, Place]] = {"local_rep": one_of(Kind(nn.Sequential, others=_FOLDED)), "conv_proj": _FOLDED}

    def _obstacle(self) -> Obstacle | None:
        return self._for_coreml() or super()._obstacle()

    def _layer_obstacle(self) -> Obstacle | None:
        obstacle = self._for_coreml() or super()._layer_obstacle()
        if obstacle is None and not _is_stack(self.global_rep, transformer.LinearAttnFFN, _V2_SEQUENCES, _GROUP_NORM):
            return Obstacle(self, "is no stack of attention layers with a norm behind")
        if obstacle is None and any("act" in _without_dropout(layer.pre_norm_ffn)[2].block._modules for layer in self.global_rep[:-1]):
            return Obstacle(self, "has an activation behind a feed-forward")
        return obstacle

    def _for_coreml(self) -> Obstacle | None:
        return Obstacle(self, "was made for CoreML") if self.enable_coreml_compatible_fn else None

    def forward_spatial(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        prepared = self._prepared_for(x)
        if prepared is None and self._obstacle() is not None:
            return super().forward_spatial(x, *args, **kwargs)
        x = self.resize_input_if_needed(x)
        if prepared is not None:
            return self._run(x, prepared)
        x = self.local_rep(x)
        if not self._mvit_kernels_setting.attention:
            return self.conv_proj(self._on_patches(x, self.global_rep))
        if self._layer_obstacle() is None and not self._standing_back(x):
            return self.conv_proj(self._normalized(self.global_rep[-1], self._transformed(x)))
        for layer in self.global_rep:
            x = self._layer_on_map(layer, x) if isinstance(layer, transformer.LinearAttnFFN) else layer(x)
        return self.conv_proj(x)

    def _layer_on_map(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        y = x
        for module in layer.pre_norm_attn:
            y = self._attend(module, y) if isinstance(module, layers.LinearSelfAttention) else module(y)
        x = x + y
        return x + layer.pre_norm_ffn(x)

    def _parts(self) -> V2Parts:
        first, second = map(_convolution, self.local_rep)
        return V2Parts(first, second, self._layers(), self.global_rep[-1], _convolution(self.conv_proj))

    def _layers(self) -> list[V2Layer]:
        return [_v2_layer(layer) for layer in self.global_rep[:-1]]


def _v2_layer(layer: Any) -> V2Layer:
    norm1, attention = _without_dropout(layer.pre_norm_attn)
    norm2, first, second = _without_dropout(layer.pre_norm_ffn)
    qkv, out, fc1, fc2 = (each.block.conv for each in (attention.qkv_proj, attention.out_proj, first, second))
    return V2Layer(norm1, qkv, out, norm2, fc1, fc2, activation_name(getattr(first.block, "act", None)))


REPLACEMENTS = {
    _ConvLayer: ConvLayer,
    mobilenetv2.InvertedResidual: InvertedResidual,
    mobilevit_block.MobileViTBlock: MobileViTBlock,
    mobilevit_block.MobileViTBlockv2: MobileViTBlockv2,
    layers.MultiHeadAttention: MultiHeadAttention,
    layers.LinearSelfAttention: LinearSelfAttention,
}
