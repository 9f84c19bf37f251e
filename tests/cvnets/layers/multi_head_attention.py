import torch
from torch import nn

from .dropout import Dropout
from .linear_layer import LinearLayer
from .softmax import Softmax


class MultiHeadAttention(nn.Module):
    def __init__(self, embed_dim, num_heads, attn_dropout=0.0, coreml_compatible=False):
        super().__init__()
        self.qkv_proj = LinearLayer(embed_dim, 3 * embed_dim)
        self.attn_dropout = Dropout(attn_dropout)
        self.out_proj = LinearLayer(embed_dim, embed_dim)
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.softmax = Softmax(dim=-1)
        self.num_heads = num_heads
        self.embed_dim = embed_dim
        self.coreml_compatible = coreml_compatible

    def forward(self, x_q, x_kv=None, key_padding_mask=None, attn_mask=None, *args, **kwargs):
        dim = self.embed_dim
        x_kv = x_q if x_kv is None else x_kv
        weight, bias = self.qkv_proj.weight, self.qkv_proj.bias
        query = self._heads(torch.nn.functional.linear(x_q, weight[:dim], bias[:dim])) * self.scaling
        key = self._heads(torch.nn.functional.linear(x_kv, weight[dim : 2 * dim], bias[dim : 2 * dim]))
        value = self._heads(torch.nn.functional.linear(x_kv, weight[2 * dim :], bias[2 * dim :]))
        scores = query @ key.transpose(-1, -2)
        if attn_mask is not None:
            scores = scores + attn_mask.unsqueeze(1)
        if key_padding_mask is not None:
            scores = scores.masked_fill(key_padding_mask[:, None, None].bool(), float("-inf"))
        scores = self.attn_dropout(self.softmax(scores.float()).to(scores.dtype))
        return self.out_proj((scores @ value).transpose(1, 2).flatten(2))

    def _heads(self, x):
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
