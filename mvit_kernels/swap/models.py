"""Our own reference models (mvit_kernels.models), whose blocks keep what lies between their convolutions in `global_representation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from mvit_kernels.models import mobilevit, mobilevitv2

from .blocks import V1Block, V2Attention, V2Block
from .obstacles import CONV, ORDER_FREE, Kind, Place, not_replaced, one_of


class MobileViTBlock(V1Block, mobilevit.MobileViTBlock):
    def global_representation(self, x: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().global_representation(x)
        return self._on_tokens(x, lambda tokens: self.norm(self.transformer(tokens)))


class SeparableAttention(V2Attention, mobilevitv2.SeparableAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self._obstacle() is not None else self._attend(x)


_ATTENTION = one_of(
    Kind(SeparableAttention, children={"qkv_proj": CONV, "out_proj": CONV}),
    Kind(mobilevitv2.SeparableAttention, not_replaced),
)
_MLP = one_of(Kind(mobilevitv2.ConvFeedForward, others=ORDER_FREE))
_LAYER = one_of(
    Kind(
        mobilevitv2.SeparableTransformerLayer,
        children={"norm1": ORDER_FREE, "attn": _ATTENTION, "norm2": ORDER_FREE, "mlp": _MLP},
    )
)


class MobileViTv2Block(V2Block, mobilevitv2.MobileViTv2Block):
    _places: ClassVar[Mapping[str, Place]] = {"transformer": one_of(Kind(nn.Sequential, others=_LAYER)), "norm": ORDER_FREE}

    def global_representation(self, x: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().global_representation(x)
        return self._global(x, self.transformer, self.transformer, self.norm)


REPLACEMENTS = {
    mobilevit.MobileViTBlock: MobileViTBlock,
    mobilevitv2.MobileViTv2Block: MobileViTv2Block,
    mobilevitv2.SeparableAttention: SeparableAttention,
}
