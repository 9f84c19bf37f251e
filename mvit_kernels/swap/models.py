"""Our own reference models (mvit_kernels.models), whose blocks keep what lies between their convolutions in `global_representation`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from mvit_kernels.models import mobilevit, mobilevitv2

from .blocks import V1Block, V2Attention, V2Block
from .obstacles import ORDER_FREE, Rules, not_replaced, only


class MobileViTBlock(V1Block, mobilevit.MobileViTBlock):
    def global_representation(self, x: torch.Tensor) -> torch.Tensor:
        return self._on_tokens(x, lambda tokens: self.norm(self.transformer(tokens)))


class SeparableAttention(V2Attention, mobilevitv2.SeparableAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._attend(x)


class MobileViTv2Block(V2Block, mobilevitv2.MobileViTv2Block):
    _bypassed = ("transformer", "norm")
    _rules: ClassVar[Rules] = {
        **ORDER_FREE,
        SeparableAttention: None,
        mobilevitv2.SeparableAttention: not_replaced,
        mobilevitv2.ConvFeedForward: None,
        mobilevitv2.SeparableTransformerLayer: None,
        nn.Sequential: only(mobilevitv2.SeparableTransformerLayer),
    }

    def global_representation(self, x: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().global_representation(x)
        if not self._setting.attention:
            return self._on_patches(x, lambda patches: self.norm(self.transformer(patches)))
        for layer in self.transformer:
            x = self._layer_on_map(layer, x)
        return self.norm(x)

    def _layer_on_map(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attend(layer.attn, layer.norm1(x))
        return x + layer.mlp(layer.norm2(x))


REPLACEMENTS = {
    mobilevit.MobileViTBlock: MobileViTBlock,
    mobilevitv2.MobileViTv2Block: MobileViTv2Block,
    mobilevitv2.SeparableAttention: SeparableAttention,
}
