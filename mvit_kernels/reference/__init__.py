"""Every op in plain torch: the definition that kernels, tests and benchmarks are held against. Runs in any dtype, float64 included."""

from .group_norm import group_norm, group_norm_backward
from .inverted_residual import inverted_residual, inverted_residual_tiled
from .layer_norm import layer_norm, layer_norm_backward
from .patches import fold_patches, unfold_patches
from .separable_attention import separable_attention, separable_attention_backward
from .separable_attention_block import separable_attention_block, separable_attention_block_reduced

__all__ = [
    "fold_patches",
    "group_norm",
    "group_norm_backward",
    "inverted_residual",
    "inverted_residual_tiled",
    "layer_norm",
    "layer_norm_backward",
    "separable_attention",
    "separable_attention_backward",
    "separable_attention_block",
    "separable_attention_block_reduced",
    "unfold_patches",
]
