// The ops on floats as steps: which members of their structs a plan sets.
#include "cpu/core/scratch.h"
#include "cpu/ops/add.h"
#include "cpu/ops/attention.h"
#include "cpu/ops/avg_pool.h"
#include "cpu/ops/cat.h"
#include "cpu/ops/channels_last.h"
#include "cpu/ops/conv2d.h"
#include "cpu/ops/depthwise_conv2d.h"
#include "cpu/ops/dynamic_relu.h"
#include "cpu/ops/feed_forward.h"
#include "cpu/ops/gemm.h"
#include "cpu/ops/group_norm.h"
#include "cpu/ops/hard_gate.h"
#include "cpu/ops/inverted_residual.h"
#include "cpu/ops/layer_norm.h"
#include "cpu/ops/patch_attention.h"
#include "cpu/ops/pool_mixer.h"
#include "cpu/ops/resize.h"
#include "cpu/ops/row_moments.h"
#include "cpu/ops/separable_attention.h"
#include "cpu/ops/separable_attention_block.h"
#include "engine/fields.h"
#include "engine/steps.h"

namespace mvit {
namespace {

namespace gemm_step {
using Arguments = GemmProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),      MVIT_FIELD(groups),    MVIT_FIELD(rows),     MVIT_FIELD(depth),           MVIT_FIELD(columns),
    MVIT_FIELD(a),          MVIT_FIELD(a_stride),  MVIT_FIELD(second),   MVIT_FIELD(second_depth),    MVIT_FIELD(second_stride),
    MVIT_FIELD(weight),     MVIT_FIELD(bias),      MVIT_FIELD(moments),  MVIT_FIELD(layer_norm),      MVIT_FIELD(eps),
    MVIT_FIELD(activation), MVIT_FIELD(slopes),    MVIT_FIELD(residual), MVIT_FIELD(residual_stride), MVIT_FIELD(y),
    MVIT_FIELD(y_stride),   MVIT_FIELD(collected),
};
}  // namespace gemm_step

namespace conv2d_step {
using Arguments = Conv2dProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),           MVIT_FIELD(batch),        MVIT_FIELD(height),         MVIT_FIELD(width),      MVIT_FIELD(columns),
    MVIT_FIELD(kernel),          MVIT_FIELD(stride),       MVIT_FIELD(method),         MVIT_FIELD(x.data),     MVIT_FIELD(x.channels),
    MVIT_FIELD(x.image),         MVIT_FIELD(x.channel),    MVIT_FIELD(x.row),          MVIT_FIELD(x.pixel),    MVIT_FIELD(second.data),
    MVIT_FIELD(second.channels), MVIT_FIELD(second.image), MVIT_FIELD(second.channel), MVIT_FIELD(second.row), MVIT_FIELD(second.pixel),
    MVIT_FIELD(weight),          MVIT_FIELD(bias),         MVIT_FIELD(activation),     MVIT_FIELD(residual),   MVIT_FIELD(y),
};
}  // namespace conv2d_step

namespace depthwise_conv2d_step {
using Arguments = DepthwiseConv2dProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),        MVIT_FIELD(batch),  MVIT_FIELD(height),     MVIT_FIELD(width),         MVIT_FIELD(channels),
    MVIT_FIELD(stride),       MVIT_FIELD(x),      MVIT_FIELD(multiplier), MVIT_FIELD(image_stride),  MVIT_FIELD(row_stride),
    MVIT_FIELD(pixel_stride), MVIT_FIELD(weight), MVIT_FIELD(bias),       MVIT_FIELD(weight_stride), MVIT_FIELD(activation),
    MVIT_FIELD(slopes),       MVIT_FIELD(y),
};
}  // namespace depthwise_conv2d_step

namespace inverted_residual_step {
using Arguments = InvertedResidualProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),
    MVIT_FIELD(batch),
    MVIT_FIELD(height),
    MVIT_FIELD(width),
    MVIT_FIELD(channels),
    MVIT_FIELD(hidden),
    MVIT_FIELD(columns),
    MVIT_FIELD(stride),
    MVIT_FIELD(expand_weight),
    MVIT_FIELD(expand_bias),
    MVIT_FIELD(depthwise_weight),
    MVIT_FIELD(depthwise_bias),
    MVIT_FIELD(reduce_weight),
    MVIT_FIELD(reduce_bias),
    MVIT_FIELD(activation),
    MVIT_FIELD(expand_slopes),
    MVIT_FIELD(depthwise_slopes),
    MVIT_FIELD(residual),
    MVIT_FIELD(x),
    MVIT_FIELD(y),
    MVIT_FIELD(collected),
};
}  // namespace inverted_residual_step

namespace feed_forward_step {
using Arguments = FeedForwardProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),      MVIT_FIELD(groups),  MVIT_FIELD(rows),  MVIT_FIELD(dim),        MVIT_FIELD(hidden),   MVIT_FIELD(weight1),
    MVIT_FIELD(bias1),      MVIT_FIELD(weight2), MVIT_FIELD(bias2), MVIT_FIELD(layer_norm), MVIT_FIELD(moments),  MVIT_FIELD(eps),
    MVIT_FIELD(activation), MVIT_FIELD(x),       MVIT_FIELD(y),     MVIT_FIELD(collected),  MVIT_FIELD(as_it_is),
};
}  // namespace feed_forward_step

namespace separable_attention_block_step {
using Arguments = SeparableAttentionBlockProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),        MVIT_FIELD(batch),      MVIT_FIELD(dim),        MVIT_FIELD(height),     MVIT_FIELD(width),
    MVIT_FIELD(patch_h),      MVIT_FIELD(patch_w),    MVIT_FIELD(query),      MVIT_FIELD(key_weight), MVIT_FIELD(key_bias),
    MVIT_FIELD(value_weight), MVIT_FIELD(value_bias), MVIT_FIELD(out_weight), MVIT_FIELD(out_bias),   MVIT_FIELD(moments),
    MVIT_FIELD(eps),          MVIT_FIELD(x),          MVIT_FIELD(y),          MVIT_FIELD(collected),
};
}  // namespace separable_attention_block_step

namespace separable_attention_step {
using Arguments = SeparableAttentionProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),         MVIT_FIELD(batch),         MVIT_FIELD(dim),      MVIT_FIELD(size[0]),       MVIT_FIELD(size[1]),
    MVIT_FIELD(patch_h),       MVIT_FIELD(patch_w),       MVIT_FIELD(qkv.data), MVIT_FIELD(qkv.stride[0]), MVIT_FIELD(qkv.stride[1]),
    MVIT_FIELD(qkv.stride[2]), MVIT_FIELD(qkv.stride[3]), MVIT_FIELD(y.data),   MVIT_FIELD(y.stride[0]),   MVIT_FIELD(y.stride[1]),
    MVIT_FIELD(y.stride[2]),   MVIT_FIELD(y.stride[3]),
};
}  // namespace separable_attention_step

namespace patch_attention_step {
using Arguments = PatchAttentionProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),         MVIT_FIELD(batch),         MVIT_FIELD(dim),           MVIT_FIELD(heads), MVIT_FIELD(height),
    MVIT_FIELD(width),         MVIT_FIELD(patch_h),       MVIT_FIELD(patch_w),       MVIT_FIELD(scale), MVIT_FIELD(qkv),
    MVIT_FIELD(qkv_stride[0]), MVIT_FIELD(qkv_stride[1]), MVIT_FIELD(qkv_stride[2]), MVIT_FIELD(y),     MVIT_FIELD(y_stride[0]),
    MVIT_FIELD(y_stride[1]),   MVIT_FIELD(y_stride[2]),
};
}  // namespace patch_attention_step

namespace attention_step {
using Arguments = AttentionProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),       MVIT_FIELD(batch),       MVIT_FIELD(heads),       MVIT_FIELD(queries),     MVIT_FIELD(keys),
    MVIT_FIELD(depth),       MVIT_FIELD(value_depth), MVIT_FIELD(scale),       MVIT_FIELD(q),           MVIT_FIELD(k),
    MVIT_FIELD(v),           MVIT_FIELD(q_stride[0]), MVIT_FIELD(q_stride[1]), MVIT_FIELD(k_stride[0]), MVIT_FIELD(k_stride[1]),
    MVIT_FIELD(v_stride[0]), MVIT_FIELD(v_stride[1]), MVIT_FIELD(bias),        MVIT_FIELD(bias_stride), MVIT_FIELD(mix_scores),
    MVIT_FIELD(mix_weights), MVIT_FIELD(mix_bias),    MVIT_FIELD(y),           MVIT_FIELD(y_stride[0]), MVIT_FIELD(y_stride[1]),
};
}  // namespace attention_step

namespace pool_mixer_step {
using Arguments = PoolMixerProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),    MVIT_FIELD(batch), MVIT_FIELD(height), MVIT_FIELD(width),
    MVIT_FIELD(channels), MVIT_FIELD(x),     MVIT_FIELD(scale),  MVIT_FIELD(y),
};
}  // namespace pool_mixer_step

namespace dynamic_relu_step {
using Arguments = DynamicReluProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype), MVIT_FIELD(batch), MVIT_FIELD(pixels), MVIT_FIELD(channels), MVIT_FIELD(x), MVIT_FIELD(u), MVIT_FIELD(y),
};
}  // namespace dynamic_relu_step

namespace hard_gate_step {
using Arguments = HardGateProblem;
constexpr Field fields[] = {MVIT_FIELD(dtype), MVIT_FIELD(count), MVIT_FIELD(x), MVIT_FIELD(u), MVIT_FIELD(y)};
}  // namespace hard_gate_step

namespace group_norm_step {
using Arguments = GroupNormProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype), MVIT_FIELD(channels_last), MVIT_FIELD(batch), MVIT_FIELD(channels), MVIT_FIELD(positions),
    MVIT_FIELD(eps),   MVIT_FIELD(weight),        MVIT_FIELD(bias),  MVIT_FIELD(x),        MVIT_FIELD(y),
};
}  // namespace group_norm_step

namespace layer_norm_step {
using Arguments = LayerNormProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),  MVIT_FIELD(rows), MVIT_FIELD(channels), MVIT_FIELD(eps),
    MVIT_FIELD(weight), MVIT_FIELD(bias), MVIT_FIELD(x),        MVIT_FIELD(y),
};
}  // namespace layer_norm_step

namespace avg_pool_step {
using Arguments = AvgPoolProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype), MVIT_FIELD(batch), MVIT_FIELD(pixels), MVIT_FIELD(channels), MVIT_FIELD(x), MVIT_FIELD(y),
};
}  // namespace avg_pool_step

namespace resize_step {
using Arguments = ResizeProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype),      MVIT_FIELD(batch),     MVIT_FIELD(channels),      MVIT_FIELD(height), MVIT_FIELD(width),
    MVIT_FIELD(out_height), MVIT_FIELD(out_width), MVIT_FIELD(align_corners), MVIT_FIELD(x),      MVIT_FIELD(y),
};
}  // namespace resize_step

namespace add_step {
using Arguments = AddProblem;
constexpr Field fields[] = {
    MVIT_FIELD(dtype), MVIT_FIELD(count), MVIT_FIELD(activation), MVIT_FIELD(a), MVIT_FIELD(b), MVIT_FIELD(y),
};
}  // namespace add_step

namespace cat_step {
using Arguments = CatProblem;
constexpr Field fields[] = {
    MVIT_FIELD(rows), MVIT_FIELD(a_bytes), MVIT_FIELD(b_bytes), MVIT_FIELD(a), MVIT_FIELD(b), MVIT_FIELD(y),
};
}  // namespace cat_step

namespace channels_last_step {
using Arguments = ChannelsLastProblem;
constexpr Field fields[] = {
    MVIT_FIELD(element_size), MVIT_FIELD(batch), MVIT_FIELD(channels), MVIT_FIELD(pixels), MVIT_FIELD(from), MVIT_FIELD(to),
};
}  // namespace channels_last_step

// The mean and variance of each group of rows.
namespace moments_step {
struct Arguments {
    DType dtype;
    int64_t groups, rows, depth;
    const void* x;
    Moments* y;
};
constexpr Field fields[] = {
    MVIT_FIELD(dtype), MVIT_FIELD(groups), MVIT_FIELD(rows), MVIT_FIELD(depth), MVIT_FIELD(x), MVIT_FIELD(y),
};
Status run(void* arguments, int threads) {
    const auto& p = *static_cast<const Arguments*>(arguments);
    return caught([&] { row_moments(p.dtype, p.x, p.groups, p.rows, p.depth, p.y, threads); });
}
}  // namespace moments_step

#define MVIT_STEP(op) step_kind<op##_step::Arguments>(#op, op##_step::fields, run_op<op##_step::Arguments, op>)
constexpr StepKind kinds[] = {
    MVIT_STEP(gemm),
    MVIT_STEP(conv2d),
    MVIT_STEP(depthwise_conv2d),
    MVIT_STEP(inverted_residual),
    MVIT_STEP(feed_forward),
    MVIT_STEP(separable_attention_block),
    MVIT_STEP(separable_attention),
    MVIT_STEP(patch_attention),
    MVIT_STEP(attention),
    MVIT_STEP(pool_mixer),
    MVIT_STEP(dynamic_relu),
    MVIT_STEP(hard_gate),
    MVIT_STEP(group_norm),
    MVIT_STEP(layer_norm),
    MVIT_STEP(avg_pool),
    MVIT_STEP(resize),
    MVIT_STEP(add),
    MVIT_STEP(cat),
    MVIT_STEP(channels_last),
    step_kind<moments_step::Arguments>("moments", moments_step::fields, moments_step::run),
};

}  // namespace

StepKinds float_steps() { return {kinds, sizeof(kinds) / sizeof(*kinds)}; }

}  // namespace mvit
