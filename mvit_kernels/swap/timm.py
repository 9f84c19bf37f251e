"""timm's MobileViT, MobileViTv2 and semobilevit (timm/models/mobilevit.py)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import ConvMlp, DropPath, GroupNorm1
from timm.models import mobilevit
from torch import nn

from .blocks import V1Block, V2Attention, V2Block, round_up
from .obstacles import ORDER_FREE, Obstacle, Rules, not_replaced, only


class MobileVitBlock(V1Block, mobilevit.MobileVitBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_1x1(self.conv_kxk(x))
        y = self.conv_proj(self._on_tokens(y, lambda tokens: self.norm(self.transformer(tokens))))
        return y if self.conv_fusion is None else self.conv_fusion(torch.cat((x, y), dim=1))


class LinearSelfAttention(V2Attention, mobilevit.LinearSelfAttention):
    _bypassed = ("attn_drop",)

    def forward(self, x: torch.Tensor, x_prev: torch.Tensor | None = None) -> torch.Tensor:
        if x_prev is not None or self._obstacle() is not None:
            return super().forward(x, x_prev)
        return self.out_drop(self._attend(x))


def _inactive_drop_path(module: DropPath) -> str | None:
    return "is active" if module.training and module.drop_prob else None


class MobileVitV2Block(V2Block, mobilevit.MobileVitV2Block):
    _bypassed = ("transformer", "norm")
    _rules: ClassVar[Rules] = {
        **ORDER_FREE,
        GroupNorm1: None,
        ConvMlp: None,
        DropPath: _inactive_drop_path,
        LinearSelfAttention: None,
        mobilevit.LinearSelfAttention: not_replaced,
        mobilevit.LinearTransformerBlock: None,
        nn.Sequential: only(mobilevit.LinearTransformerBlock),
    }

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
        if not self._setting.attention:
            return self.conv_proj(self._on_patches(x, lambda patches: self.norm(self.transformer(patches))))
        for layer in self.transformer:
            x = self._layer_on_map(layer, x)
        return self.conv_proj(self.norm(x))

    def _layer_on_map(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attend(layer.attn, layer.norm1(x))
        return x + layer.mlp(layer.norm2(x))


REPLACEMENTS = {
    mobilevit.MobileVitBlock: MobileVitBlock,
    mobilevit.MobileVitV2Block: MobileVitV2Block,
    mobilevit.LinearSelfAttention: LinearSelfAttention,
}
