import torch.nn.functional as F
from torch import nn

from .conv_layer import ConvLayer2d
from .dropout import Dropout


class LinearSelfAttention(nn.Module):
    def __init__(self, embed_dim, attn_dropout=0.0):
        super().__init__()
        self.qkv_proj = ConvLayer2d(embed_dim, 1 + 2 * embed_dim, 1, bias=True, use_norm=False, use_act=False)
        self.attn_dropout = Dropout(attn_dropout)
        self.out_proj = ConvLayer2d(embed_dim, embed_dim, 1, bias=True, use_norm=False, use_act=False)
        self.embed_dim = embed_dim

    def forward(self, x, x_prev=None, *args, **kwargs):
        dim = self.embed_dim
        if x_prev is None:
            query, key, value = self.qkv_proj(x).split([1, dim, dim], dim=1)
        else:
            conv = self.qkv_proj.block.conv
            query, key = F.conv2d(x_prev, conv.weight[: 1 + dim], conv.bias[: 1 + dim]).split([1, dim], dim=1)
            value = F.conv2d(x, conv.weight[1 + dim :], conv.bias[1 + dim :])
        scores = self.attn_dropout(F.softmax(query, dim=-1))
        context = (key * scores).sum(dim=-1, keepdim=True)
        return self.out_proj(F.relu(value) * context)
