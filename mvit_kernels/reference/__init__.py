"""Every op in plain torch: the definition that kernels, tests and benchmarks are held against. Runs in any dtype, float64 included."""

from .activation import ACTIVATIONS, activate, activate_backward
from .activation_curve import CURVE_SHIFT, CURVE_SIZE, CURVES, activation_curve, apply_curve, curve_shift
from .attention import Mixtures, attention, attention_backward
from .avg_pool import avg_pool, avg_pool_backward, avg_pool_norm_backward
from .conv2d import conv2d, conv2d_backward
from .conv2d_dynamic_relu import conv2d_dynamic_relu, conv2d_dynamic_relu_backward
from .depthwise_conv2d import depthwise_conv2d, depthwise_conv2d_backward
from .dynamic_relu import dynamic_relu, dynamic_relu_backward
from .feed_forward import channel_norm, channel_norm_backward, feed_forward, feed_forward_backward
from .gemm import gemm, gemm_backward, layer_norm_rows_backward, moments_of
from .group_norm import group_norm, group_norm_backward
from .hard_gate import hard_gate, hard_gate_backward
from .inverted_residual import inverted_residual, inverted_residual_backward, inverted_residual_tiled
from .layer_norm import layer_norm, layer_norm_backward
from .patch_attention import patch_attention, patch_attention_backward, patch_attention_fused
from .patches import fold_patches, unfold_patches
from .pointwise import pointwise, pointwise_backward
from .pool_mixer import pool_mixer, pool_mixer_backward
from .qadd import qadd
from .qattention import QMixtures, qattention, quantized_mixtures
from .qavg_pool import qavg_pool
from .qconv2d import qconv2d, qconv2d_border, qconv2d_rows
from .qdepthwise_conv2d import qdepthwise_conv2d
from .qgemm import OVERFLOW, QACTIVATIONS, Channels, epilogue, largest_sum, matmul, qactivate, qgemm, qgemm_accumulate, segments, wrap
from .qlookup import activation_table, exact_activation, qlookup
from .qnorm import norm_affine, qnorm, stream_sums
from .qpatch_attention import ATTENTION_TABLE, attention_factors, qpatch_attention
from .qpool_mixer import pool_factors, qpool_mixer
from .qresize import qresize
from .qseparable_attention import exponential_table, qseparable_context, qseparable_gate
from .quantize import Rows, along, dequantize, quantize, quantize_rows
from .resize import resize, resize_backward
from .separable_attention import separable_attention, separable_attention_backward
from .separable_attention_block import (
    separable_attention_block,
    separable_attention_block_backward,
    separable_attention_block_reduced,
    separable_attention_block_reduced_backward,
)
from .stream import dequantize_stream, quantize_stream

__all__ = [
    "ACTIVATIONS",
    "ATTENTION_TABLE",
    "CURVES",
    "CURVE_SHIFT",
    "CURVE_SIZE",
    "OVERFLOW",
    "QACTIVATIONS",
    "Channels",
    "Mixtures",
    "QMixtures",
    "Rows",
    "activate",
    "activate_backward",
    "activation_curve",
    "activation_table",
    "along",
    "apply_curve",
    "attention",
    "attention_backward",
    "attention_factors",
    "avg_pool",
    "avg_pool_backward",
    "avg_pool_norm_backward",
    "channel_norm",
    "channel_norm_backward",
    "conv2d",
    "conv2d_backward",
    "conv2d_dynamic_relu",
    "conv2d_dynamic_relu_backward",
    "curve_shift",
    "depthwise_conv2d",
    "depthwise_conv2d_backward",
    "dequantize",
    "dequantize_stream",
    "dynamic_relu",
    "dynamic_relu_backward",
    "epilogue",
    "exact_activation",
    "exponential_table",
    "feed_forward",
    "feed_forward_backward",
    "fold_patches",
    "gemm",
    "gemm_backward",
    "group_norm",
    "group_norm_backward",
    "hard_gate",
    "hard_gate_backward",
    "inverted_residual",
    "inverted_residual_backward",
    "inverted_residual_tiled",
    "largest_sum",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_rows_backward",
    "matmul",
    "moments_of",
    "norm_affine",
    "patch_attention",
    "patch_attention_backward",
    "patch_attention_fused",
    "pointwise",
    "pointwise_backward",
    "pool_factors",
    "pool_mixer",
    "pool_mixer_backward",
    "qactivate",
    "qadd",
    "qattention",
    "qavg_pool",
    "qconv2d",
    "qconv2d_border",
    "qconv2d_rows",
    "qdepthwise_conv2d",
    "qgemm",
    "qgemm_accumulate",
    "qlookup",
    "qnorm",
    "qpatch_attention",
    "qpool_mixer",
    "qresize",
    "qseparable_context",
    "qseparable_gate",
    "quantize",
    "quantize_rows",
    "quantize_stream",
    "quantized_mixtures",
    "resize",
    "resize_backward",
    "segments",
    "separable_attention",
    "separable_attention_backward",
    "separable_attention_block",
    "separable_attention_block_backward",
    "separable_attention_block_reduced",
    "separable_attention_block_reduced_backward",
    "stream_sums",
    "unfold_patches",
    "wrap",
]
