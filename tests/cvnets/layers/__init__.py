from .conv_layer import ConvLayer2d
from .dropout import Dropout
from .identity import Identity
from .linear_attention import LinearSelfAttention
from .linear_layer import LinearLayer
from .multi_head_attention import MultiHeadAttention
from .softmax import Softmax

__all__ = ["ConvLayer2d", "Dropout", "Identity", "LinearLayer", "LinearSelfAttention", "MultiHeadAttention", "Softmax"]
