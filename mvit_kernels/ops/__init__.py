"""The ops, registered in the torch namespace `mvit_kernels`: one file an op, each with schema, checks, fake, backward and backends."""

from .backend import BackendInfo, backends, native, use_backend, warn_of_missing_kernels
from .conv2d import conv2d
from .depthwise_conv2d import depthwise_conv2d
from .feed_forward import feed_forward
from .gemm import gemm
from .group_norm import group_norm
from .inverted_residual import inverted_residual
from .layer_norm import layer_norm
from .pack_weight import PackedWeight, pack_weight
from .patch_attention import patch_attention
from .patches import fold_patches, unfold_patches
from .qconv2d import QConv2d, prepare_qconv2d, qconv2d
from .qgemm import QGemm, prepare_qgemm, qgemm, qgemm_accumulate
from .separable_attention import separable_attention
from .separable_attention_block import separable_attention_block

__all__ = [
    "BackendInfo",
    "PackedWeight",
    "QConv2d",
    "QGemm",
    "backends",
    "conv2d",
    "depthwise_conv2d",
    "feed_forward",
    "fold_patches",
    "gemm",
    "group_norm",
    "inverted_residual",
    "layer_norm",
    "pack_weight",
    "patch_attention",
    "prepare_qconv2d",
    "prepare_qgemm",
    "qconv2d",
    "qgemm",
    "qgemm_accumulate",
    "separable_attention",
    "separable_attention_block",
    "unfold_patches",
    "use_backend",
]

if native is None:
    warn_of_missing_kernels()
