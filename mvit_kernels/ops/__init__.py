"""The ops, registered in the torch namespace `mvit_kernels`: one file an op, each with schema, checks, fake, backward and backends."""

from mvit_kernels.reference import exponential_table

from .attention import attention
from .avg_pool import avg_pool
from .backend import BackendInfo, backends, native, use_backend, warn_of_missing_kernels
from .compile_cache import tag_caches
from .conv2d import conv2d
from .conv2d_dynamic_relu import conv2d_dynamic_relu
from .depthwise_conv2d import depthwise_conv2d
from .dynamic_relu import dynamic_relu
from .feed_forward import feed_forward
from .gemm import gemm
from .group_norm import group_norm
from .hard_gate import hard_gate
from .inverted_residual import inverted_residual
from .layer_norm import layer_norm
from .pack_weight import PackedWeight, pack_weight
from .patch_attention import patch_attention
from .patches import fold_patches, unfold_patches
from .pool_mixer import pool_mixer
from .qadd import qadd
from .qattention import QAttention, prepare_qattention, qattention
from .qavg_pool import qavg_pool
from .qconv2d import QConv2d, prepare_qconv2d, qconv2d
from .qconv2d_dynamic_relu import QConv2dDynamicRelu, prepare_qconv2d_dynamic_relu
from .qdepthwise_conv2d import QDepthwiseConv2d, prepare_qdepthwise_conv2d, qdepthwise_conv2d
from .qfeed_forward import QFeedForward, prepare_qfeed_forward
from .qgemm import QGemm, prepare_qgemm, qgemm, qgemm_accumulate
from .qinverted_residual import QInvertedResidual, prepare_qinverted_residual
from .qlookup import qlookup
from .qnorm import QNorm, prepare_qnorm, qnorm
from .qnorm_gemm import QNormGemm, prepare_qnorm_gemm, qnorm_gemm
from .qpatch_attention import qpatch_attention
from .qpool_mixer import QPoolMixer, prepare_qpool_mixer, qpool_mixer
from .qresize import qresize
from .qseparable_attention import (
    QSeparableContext,
    QSeparableGate,
    prepare_qseparable_context,
    prepare_qseparable_gate,
    qseparable_context,
    qseparable_gate,
)
from .qseparable_attention_block import QSeparableAttentionBlock, prepare_qseparable_attention_block
from .quantize import dequantize, quantize, quantize_rows
from .resize import resize
from .separable_attention import separable_attention
from .separable_attention_block import separable_attention_block
from .stream import dequantize_stream, quantize_stream

__all__ = [
    "BackendInfo",
    "PackedWeight",
    "QAttention",
    "QConv2d",
    "QConv2dDynamicRelu",
    "QDepthwiseConv2d",
    "QFeedForward",
    "QGemm",
    "QInvertedResidual",
    "QNorm",
    "QNormGemm",
    "QPoolMixer",
    "QSeparableAttentionBlock",
    "QSeparableContext",
    "QSeparableGate",
    "attention",
    "avg_pool",
    "backends",
    "conv2d",
    "conv2d_dynamic_relu",
    "depthwise_conv2d",
    "dequantize",
    "dequantize_stream",
    "dynamic_relu",
    "exponential_table",
    "feed_forward",
    "fold_patches",
    "gemm",
    "group_norm",
    "hard_gate",
    "inverted_residual",
    "layer_norm",
    "pack_weight",
    "patch_attention",
    "pool_mixer",
    "prepare_qattention",
    "prepare_qconv2d",
    "prepare_qconv2d_dynamic_relu",
    "prepare_qdepthwise_conv2d",
    "prepare_qfeed_forward",
    "prepare_qgemm",
    "prepare_qinverted_residual",
    "prepare_qnorm",
    "prepare_qnorm_gemm",
    "prepare_qpool_mixer",
    "prepare_qseparable_attention_block",
    "prepare_qseparable_context",
    "prepare_qseparable_gate",
    "qadd",
    "qattention",
    "qavg_pool",
    "qconv2d",
    "qdepthwise_conv2d",
    "qgemm",
    "qgemm_accumulate",
    "qlookup",
    "qnorm",
    "qnorm_gemm",
    "qpatch_attention",
    "qpool_mixer",
    "qresize",
    "qseparable_context",
    "qseparable_gate",
    "quantize",
    "quantize_rows",
    "quantize_stream",
    "resize",
    "separable_attention",
    "separable_attention_block",
    "unfold_patches",
    "use_backend",
]

tag_caches()
if native is None:
    warn_of_missing_kernels()
