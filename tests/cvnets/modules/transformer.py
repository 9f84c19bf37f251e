from torch import nn

from cvnets.layers import ConvLayer2d, Dropout, Identity, LinearLayer, LinearSelfAttention, MultiHeadAttention
from cvnets.layers.activation import Swish
from cvnets.layers.normalization.layer_norm import LayerNorm, LayerNorm2D_NCHW


class TransformerEncoder(nn.Module):
    def __init__(self, embed_dim, ffn_latent_dim, num_heads, attn_dropout=0.0, dropout=0.0, ffn_dropout=0.0):
        super().__init__()
        self.pre_norm_mha = nn.Sequential(
            LayerNorm(embed_dim), MultiHeadAttention(embed_dim, num_heads, attn_dropout=attn_dropout), Dropout(dropout)
        )
        self.pre_norm_ffn = nn.Sequential(
            LayerNorm(embed_dim),
            LinearLayer(embed_dim, ffn_latent_dim),
            Swish(),
            Dropout(ffn_dropout),
            LinearLayer(ffn_latent_dim, embed_dim),
            Dropout(dropout),
        )
        self.drop_path = Identity()

    def forward(self, x, x_prev=None, key_padding_mask=None, attn_mask=None):
        norm, attention, dropout = self.pre_norm_mha
        y = attention(x_q=norm(x), x_kv=x_prev, key_padding_mask=key_padding_mask, attn_mask=attn_mask)
        x = x + self.drop_path(dropout(y))
        return x + self.drop_path(self.pre_norm_ffn(x))


class LinearAttnFFN(nn.Module):
    def __init__(self, embed_dim, ffn_latent_dim, attn_dropout=0.0, dropout=0.0, ffn_dropout=0.0):
        super().__init__()
        self.pre_norm_attn = nn.Sequential(
            LayerNorm2D_NCHW(embed_dim), LinearSelfAttention(embed_dim, attn_dropout=attn_dropout), Dropout(dropout)
        )
        self.pre_norm_ffn = nn.Sequential(
            LayerNorm2D_NCHW(embed_dim),
            ConvLayer2d(embed_dim, ffn_latent_dim, 1, bias=True, use_norm=False),
            Dropout(ffn_dropout),
            ConvLayer2d(ffn_latent_dim, embed_dim, 1, bias=True, use_norm=False, use_act=False),
            Dropout(dropout),
        )

    def forward(self, x, x_prev=None, *args, **kwargs):
        if x_prev is None:
            x = x + self.pre_norm_attn(x)
        else:
            norm, attention, dropout = self.pre_norm_attn
            x = x + dropout(attention(norm(x), x_prev))
        return x + self.pre_norm_ffn(x)
