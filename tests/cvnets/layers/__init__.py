from .conv_layer import ConvLayer2d
from .dropout import Dropout
from .linear_attention import LinearSelfAttention
from .multi_head_attention import MultiHeadAttention
from .normalization import LayerNorm, LayerNorm2D_NCHW

__all__ = ["ConvLayer2d", "Dropout", "LayerNorm", "LayerNorm2D_NCHW", "LinearSelfAttention", "MultiHeadAttention"]
