"""timm's MobileViT, MobileViTv2 and semobilevit (timm/models/mobilevit.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.layers import ConvMlp, DropPath, GroupNorm1
from timm.models import mobilevit
from torch import nn

from .blocks import V1Block, V2Attention, V2Block, round_up
from .obstacles import CONV, ORDER_FREE, SKIPPED, Kind, Obstacle, Place, inactive, not_replaced, one_of


class MobileVitBlock(V1Block, mobilevit.MobileVitBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().forward(x)
        y = self.conv_1x1(self.conv_kxk(x))
        y = self.conv_proj(self._on_tokens(y, lambda tokens: self.norm(self.transformer(tokens))))
        return y if self.conv_fusion is None else self.conv_fusion(torch.cat((x, y), dim=1))


_SKIPPED: Place = {**SKIPPED, **one_of(Kind(DropPath, inactive("drop_prob")))}
_ORDER_FREE: Place = {**ORDER_FREE, **one_of(Kind(GroupNorm1))}


class LinearSelfAttention(V2Attention, mobilevit.LinearSelfAttention):
    _places: ClassVar[Mapping[str, Place]] = {"attn_drop": _SKIPPED}

    def forward(self, x: torch.Tensor, x_prev: torch.Tensor | None = None) -> torch.Tensor:
        if x_prev is not None or self._obstacle() is not None:
            return super().forward(x, x_prev)
        return self.out_drop(self._attend(x))


_ATTENTION = one_of(
    Kind(LinearSelfAttention, children={"qkv_proj": CONV, "out_proj": CONV}, others=_SKIPPED),
    Kind(mobilevit.LinearSelfAttention, not_replaced),
)
_MLP = one_of(Kind(ConvMlp, others=_ORDER_FREE))
_LAYER = one_of(
    Kind(
        mobilevit.LinearTransformerBlock,
        children={"norm1": _ORDER_FREE, "attn": _ATTENTION, "norm2": _ORDER_FREE, "mlp": _MLP},
        others=_SKIPPED,
    )
)


class MobileVitV2Block(V2Block, mobilevit.MobileVitV2Block):
    _places: ClassVar[Mapping[str, Place]] = {"transformer": one_of(Kind(nn.Sequential, others=_LAYER)), "norm": _ORDER_FREE}

    def _obstacle(self) -> Obstacle | None:
        return Obstacle(self, "was made while timm was set exportable") if self.coreml_exportable else super()._obstacle()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._obstacle() is not None:
            return super().forward(x)
        size = x.shape[2], x.shape[3]
        whole = round_up(size, self.patch_size)
        if whole != size:
            x = F.interpolate(x, size=whole, mode="bilinear", align_corners=True)
        x = self.conv_1x1(self.conv_kxk(x))
        return self.conv_proj(self._global(x, self.transformer, self.transformer, self.norm))


REPLACEMENTS = {
    mobilevit.MobileVitBlock: MobileVitBlock,
    mobilevit.MobileVitV2Block: MobileVitV2Block,
    mobilevit.LinearSelfAttention: LinearSelfAttention,
}
