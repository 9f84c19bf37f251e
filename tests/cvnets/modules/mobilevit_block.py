import math

import torch
import torch.nn.functional as F
from torch import nn

from cvnets.layers import ConvLayer2d
from cvnets.layers.normalization.layer_norm import LayerNorm, LayerNorm2D_NCHW
from cvnets.modules.transformer import LinearAttnFFN, TransformerEncoder


class MobileViTBlock(nn.Module):
    def __init__(
        self, in_channels, transformer_dim, ffn_dim, n_transformer_blocks=2, num_heads=4, dropout=0.0, patch_h=2, patch_w=2, no_fusion=False
    ):
        super().__init__()
        self.local_rep = nn.Sequential()
        self.local_rep.add_module("conv_3x3", ConvLayer2d(in_channels, in_channels, 3))
        self.local_rep.add_module("conv_1x1", ConvLayer2d(in_channels, transformer_dim, 1, use_norm=False, use_act=False))
        layers = [TransformerEncoder(transformer_dim, ffn_dim, num_heads, dropout=dropout) for _ in range(n_transformer_blocks)]
        self.global_rep = nn.Sequential(*layers, LayerNorm(transformer_dim))
        self.conv_proj = ConvLayer2d(transformer_dim, in_channels, 1)
        self.fusion = None if no_fusion else ConvLayer2d(2 * in_channels, in_channels, 3)
        self.patch_h = patch_h
        self.patch_w = patch_w
        self.patch_area = patch_h * patch_w

    def unfolding(self, feature_map):
        batch, channels, orig_h, orig_w = feature_map.shape
        rows, columns = math.ceil(orig_h / self.patch_h), math.ceil(orig_w / self.patch_w)
        new_size = rows * self.patch_h, columns * self.patch_w
        interpolate = new_size != (orig_h, orig_w)
        if interpolate:
            feature_map = F.interpolate(feature_map, size=new_size, mode="bilinear", align_corners=False)
        grid = feature_map.reshape(batch, channels, rows, self.patch_h, columns, self.patch_w)
        patches = grid.permute(0, 3, 5, 2, 4, 1).reshape(batch * self.patch_area, rows * columns, channels)
        info = {
            "orig_size": (orig_h, orig_w),
            "batch_size": batch,
            "interpolate": interpolate,
            "total_patches": rows * columns,
            "num_patches_w": columns,
            "num_patches_h": rows,
        }
        return patches, info

    def folding(self, patches, info_dict):
        batch, rows, columns = info_dict["batch_size"], info_dict["num_patches_h"], info_dict["num_patches_w"]
        grid = patches.reshape(batch, self.patch_h, self.patch_w, rows, columns, -1).permute(0, 5, 3, 1, 4, 2)
        feature_map = grid.reshape(batch, -1, rows * self.patch_h, columns * self.patch_w)
        if info_dict["interpolate"]:
            feature_map = F.interpolate(feature_map, size=info_dict["orig_size"], mode="bilinear", align_corners=False)
        return feature_map

    def forward_spatial(self, x):
        patches, info_dict = self.unfolding(self.local_rep(x))
        for layer in self.global_rep:
            patches = layer(patches)
        fm = self.conv_proj(self.folding(patches=patches, info_dict=info_dict))
        return fm if self.fusion is None else self.fusion(torch.cat((x, fm), dim=1))

    def forward_temporal(self, x, x_prev=None):
        patches, info_dict = self.unfolding(self.local_rep(x))
        for layer in self.global_rep:
            patches = layer(x=patches, x_prev=x_prev) if isinstance(layer, TransformerEncoder) else layer(patches)
        fm = self.conv_proj(self.folding(patches=patches, info_dict=info_dict))
        return (fm if self.fusion is None else self.fusion(torch.cat((x, fm), dim=1))), patches

    def forward(self, x, *args, **kwargs):
        if isinstance(x, tuple):
            return self.forward_temporal(x=x[0], x_prev=x[1])
        return self.forward_spatial(x)


class MobileViTBlockv2(nn.Module):
    def __init__(
        self, in_channels, attn_unit_dim, n_attn_blocks=2, attn_dropout=0.0, dropout=0.0, patch_h=2, patch_w=2, coreml_compatible=False
    ):
        super().__init__()
        self.local_rep = nn.Sequential(
            ConvLayer2d(in_channels, in_channels, 3, groups=in_channels),
            ConvLayer2d(in_channels, attn_unit_dim, 1, use_norm=False, use_act=False),
        )
        layers = [LinearAttnFFN(attn_unit_dim, 2 * attn_unit_dim, attn_dropout=attn_dropout, dropout=dropout) for _ in range(n_attn_blocks)]
        self.global_rep = nn.Sequential(*layers, LayerNorm2D_NCHW(attn_unit_dim))
        self.conv_proj = ConvLayer2d(attn_unit_dim, in_channels, 1, use_act=False)
        self.patch_h = patch_h
        self.patch_w = patch_w
        self.patch_area = patch_h * patch_w
        self.enable_coreml_compatible_fn = coreml_compatible

    def unfolding_pytorch(self, feature_map):
        batch, channels, height, width = feature_map.shape
        patch = self.patch_h, self.patch_w
        return F.unfold(feature_map, patch, stride=patch).reshape(batch, channels, self.patch_area, -1), (height, width)

    def folding_pytorch(self, patches, output_size):
        patch = self.patch_h, self.patch_w
        return F.fold(patches.flatten(1, 2), output_size, patch, stride=patch)

    def resize_input_if_needed(self, x):
        height, width = x.shape[2:]
        if height % self.patch_h or width % self.patch_w:
            new_size = math.ceil(height / self.patch_h) * self.patch_h, math.ceil(width / self.patch_w) * self.patch_w
            x = F.interpolate(x, size=new_size, mode="bilinear", align_corners=True)
        return x

    def forward_spatial(self, x, *args, **kwargs):
        patches, output_size = self.unfolding_pytorch(self.local_rep(self.resize_input_if_needed(x)))
        return self.conv_proj(self.folding_pytorch(self.global_rep(patches), output_size))

    def forward_temporal(self, x, x_prev, *args, **kwargs):
        patches, output_size = self.unfolding_pytorch(self.local_rep(self.resize_input_if_needed(x)))
        for layer in self.global_rep:
            patches = layer(x=patches, x_prev=x_prev) if isinstance(layer, LinearAttnFFN) else layer(patches)
        return self.conv_proj(self.folding_pytorch(patches, output_size)), patches

    def forward(self, x, *args, **kwargs):
        if isinstance(x, tuple):
            return self.forward_temporal(x=x[0], x_prev=x[1])
        return self.forward_spatial(x)
