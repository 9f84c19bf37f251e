// The ops on integers as steps: which members of their structs a plan sets, and what is found out when a step runs.
#include "cpu/ops/qadd.h"
#include "cpu/ops/qattention.h"
#include "cpu/ops/qavg_pool.h"
#include "cpu/ops/qconv2d.h"
#include "cpu/ops/qdepthwise_conv2d.h"
#include "cpu/ops/qgemm.h"
#include "cpu/ops/qinverted_residual.h"
#include "cpu/ops/qlookup.h"
#include "cpu/ops/qnorm.h"
#include "cpu/ops/qpatch_attention.h"
#include "cpu/ops/qpool_mixer.h"
#include "cpu/ops/qresize.h"
#include "cpu/ops/qseparable_attention.h"
#include "cpu/ops/quantize.h"
#include "cpu/ops/quantize_image.h"
#include "cpu/ops/stream.h"
#include "cpu/ops/stream_sums.h"
#include "engine/fields.h"
#include "engine/steps.h"

namespace mvit {
namespace {

#define MVIT_EPILOGUE_FIELDS(e)                                                                                             \
    MVIT_FIELD(e.channels.init), MVIT_FIELD(e.channels.scale), MVIT_FIELD(e.channels.bias), MVIT_FIELD(e.channels.inverse), \
        MVIT_FIELD(e.channels.low), MVIT_FIELD(e.channels.high), MVIT_FIELD(e.channels.zero_point), MVIT_FIELD(e.type),     \
        MVIT_FIELD(e.plain), MVIT_FIELD(e.activation), MVIT_FIELD(e.segments), MVIT_FIELD(e.table), MVIT_FIELD(e.curve),    \
        MVIT_FIELD(e.slopes), MVIT_FIELD(e.slope_columns), MVIT_FIELD(e.residual), MVIT_FIELD(e.residual_type),             \
        MVIT_FIELD(e.residual_stride), MVIT_FIELD(e.residual_scale), MVIT_FIELD(e.residual_zero_point), MVIT_FIELD(e.y),    \
        MVIT_FIELD(e.y_stride)

#define MVIT_NORM_FIELDS(n)                                                                                                            \
    MVIT_FIELD(n.x), MVIT_FIELD(n.x_stride), MVIT_FIELD(n.depth), MVIT_FIELD(n.sums), MVIT_FIELD(n.group_rows), MVIT_FIELD(n.scale),   \
        MVIT_FIELD(n.eps), MVIT_FIELD(n.y_scale), MVIT_FIELD(n.low), MVIT_FIELD(n.high), MVIT_FIELD(n.zero_point), MVIT_FIELD(n.gain), \
        MVIT_FIELD(n.offset)

// Packed weights describe themselves.
struct PackedWeight {
    const void* data;
    int64_t bytes;
    bool read(QWeight* weight) const { return read_qweight(data, bytes, weight); }
};

namespace qgemm_step {
struct Arguments {
    QGemmProblem product;
    PackedWeight packed;
    QNorm norm;  // of a depth other than 0: instead of a
};
constexpr Field fields[] = {
    MVIT_FIELD(product.rows),      MVIT_FIELD(product.a),      MVIT_FIELD(product.a_stride),
    MVIT_FIELD(product.collected), MVIT_FIELD(product.groups), MVIT_FIELD(packed.data),
    MVIT_FIELD(packed.bytes),      MVIT_NORM_FIELDS(norm),     MVIT_EPILOGUE_FIELDS(product.epilogue),
};
Status run(void* arguments, int threads) {
    auto& p = *static_cast<Arguments*>(arguments);
    if (!p.packed.read(&p.product.weight)) return Status::bad_weight;
    p.product.epilogue.column_sum = p.product.weight.sum;
    if (p.norm.depth > 0) p.product.norm = &p.norm;
    return qgemm(p.product, threads);
}
}  // namespace qgemm_step

namespace qconv2d_step {
struct Arguments {
    QConv2dProblem product;
    PackedWeight packed;
};
constexpr Field fields[] = {
    MVIT_FIELD(product.batch),        MVIT_FIELD(product.height),      MVIT_FIELD(product.width),
    MVIT_FIELD(product.kernel),       MVIT_FIELD(product.stride),      MVIT_FIELD(product.x.data),
    MVIT_FIELD(product.x.channels),   MVIT_FIELD(product.x.image),     MVIT_FIELD(product.x.row),
    MVIT_FIELD(product.x.pixel),      MVIT_FIELD(product.second.data), MVIT_FIELD(product.second.channels),
    MVIT_FIELD(product.second.image), MVIT_FIELD(product.second.row),  MVIT_FIELD(product.second.pixel),
    MVIT_FIELD(product.zero_point),   MVIT_FIELD(product.border),      MVIT_FIELD(product.filtered),
    MVIT_FIELD(packed.data),          MVIT_FIELD(packed.bytes),        MVIT_EPILOGUE_FIELDS(product.epilogue),
};
Status run(void* arguments, int threads) {
    auto& p = *static_cast<Arguments*>(arguments);
    return p.packed.read(&p.product.weight) ? qconv2d(p.product, threads) : Status::bad_weight;
}
}  // namespace qconv2d_step

namespace qdepthwise_conv2d_step {
using Arguments = QDepthwiseConv2dProblem;
constexpr Field fields[] = {
    MVIT_FIELD(batch),
    MVIT_FIELD(height),
    MVIT_FIELD(width),
    MVIT_FIELD(channels),
    MVIT_FIELD(stride),
    MVIT_FIELD(multiplier),
    MVIT_FIELD(x),
    MVIT_FIELD(image_stride),
    MVIT_FIELD(row_stride),
    MVIT_FIELD(pixel_stride),
    MVIT_FIELD(blocks),
    MVIT_FIELD(narrow),
    MVIT_EPILOGUE_FIELDS(epilogue),
};
}  // namespace qdepthwise_conv2d_step

namespace qinverted_residual_step {
struct Arguments {
    QInvertedResidualProblem block;
    PackedWeight expand_packed, reduce_packed;
    QNorm norm;  // of a depth other than 0: instead of the rows of expand
};
constexpr Field fields[] = {
    MVIT_FIELD(block.expand.rows),
    MVIT_FIELD(block.expand.a),
    MVIT_FIELD(block.expand.a_stride),
    MVIT_FIELD(block.depthwise.batch),
    MVIT_FIELD(block.depthwise.height),
    MVIT_FIELD(block.depthwise.width),
    MVIT_FIELD(block.depthwise.channels),
    MVIT_FIELD(block.depthwise.stride),
    MVIT_FIELD(block.depthwise.blocks),
    MVIT_FIELD(block.depthwise.narrow),
    MVIT_FIELD(block.reduce.collected),
    MVIT_FIELD(block.reduce.groups),
    MVIT_FIELD(expand_packed.data),
    MVIT_FIELD(expand_packed.bytes),
    MVIT_FIELD(reduce_packed.data),
    MVIT_FIELD(reduce_packed.bytes),
    MVIT_NORM_FIELDS(norm),
    MVIT_EPILOGUE_FIELDS(block.expand.epilogue),
    MVIT_EPILOGUE_FIELDS(block.depthwise.epilogue),
    MVIT_EPILOGUE_FIELDS(block.reduce.epilogue),
};
Status run(void* arguments, int threads) {
    auto& p = *static_cast<Arguments*>(arguments);
    if (!p.expand_packed.read(&p.block.expand.weight) || !p.reduce_packed.read(&p.block.reduce.weight)) return Status::bad_weight;
    if (p.norm.depth > 0) p.block.expand.norm = &p.norm;
    return qinverted_residual(p.block, threads);
}
}  // namespace qinverted_residual_step

namespace qadd_step {
using Arguments = QAddProblem;
constexpr Field fields[] = {
    MVIT_FIELD(count),        MVIT_FIELD(a),           MVIT_FIELD(b),          MVIT_FIELD(y),
    MVIT_FIELD(a_real.scale), MVIT_FIELD(a_real.high), MVIT_FIELD(a_real.low), MVIT_FIELD(b_real.scale),
    MVIT_FIELD(b_real.high),  MVIT_FIELD(b_real.low),  MVIT_FIELD(activation), MVIT_FIELD(segments),
    MVIT_FIELD(out.inverse),  MVIT_FIELD(out.low),     MVIT_FIELD(out.high),   MVIT_FIELD(out.zero_point),
};
}  // namespace qadd_step

namespace qattention_step {
using Arguments = QAttentionProblem;
constexpr Field fields[] = {
    MVIT_FIELD(batch),
    MVIT_FIELD(heads),
    MVIT_FIELD(queries),
    MVIT_FIELD(keys),
    MVIT_FIELD(depth),
    MVIT_FIELD(value_depth),
    MVIT_FIELD(q),
    MVIT_FIELD(k),
    MVIT_FIELD(v),
    MVIT_FIELD(q_stride[1]),
    MVIT_FIELD(k_stride[1]),
    MVIT_FIELD(v_stride[1]),
    MVIT_FIELD(q_zero_point),
    MVIT_FIELD(k_zero_point),
    MVIT_FIELD(v_zero_point),
    MVIT_FIELD(bias),
    MVIT_FIELD(bias_stride),
    MVIT_FIELD(steps),
    MVIT_FIELD(mix),
    MVIT_FIELD(mix_weights),
    MVIT_FIELD(shift),
    MVIT_FIELD(ratio),
    MVIT_FIELD(table),
    MVIT_FIELD(out.low),
    MVIT_FIELD(out.high),
    MVIT_FIELD(out.zero_point),
    MVIT_FIELD(y),
    MVIT_FIELD(y_stride[1]),
};
}  // namespace qattention_step

namespace qpool_mixer_step {
using Arguments = QPoolMixerProblem;
constexpr Field fields[] = {
    MVIT_FIELD(batch),   MVIT_FIELD(height),     MVIT_FIELD(width),          MVIT_FIELD(channels),
    MVIT_FIELD(x),       MVIT_FIELD(zero_point), MVIT_FIELD(keep),           MVIT_FIELD(move),
    MVIT_FIELD(out.low), MVIT_FIELD(out.high),   MVIT_FIELD(out.zero_point), MVIT_FIELD(y),
};
}  // namespace qpool_mixer_step

namespace qavg_pool_step {
using Arguments = QAvgPoolProblem;
constexpr Field fields[] = {
    MVIT_FIELD(batch),   MVIT_FIELD(channels),   MVIT_FIELD(pixels),         MVIT_FIELD(channels_last),
    MVIT_FIELD(x),       MVIT_FIELD(zero_point), MVIT_FIELD(scale),          MVIT_FIELD(floats),
    MVIT_FIELD(out.low), MVIT_FIELD(out.high),   MVIT_FIELD(out.zero_point), MVIT_FIELD(y),
};
}  // namespace qavg_pool_step

namespace qresize_step {
using Arguments = QResizeProblem;
constexpr Field fields[] = {
    MVIT_FIELD(batch),     MVIT_FIELD(channels),      MVIT_FIELD(height), MVIT_FIELD(width), MVIT_FIELD(out_height),
    MVIT_FIELD(out_width), MVIT_FIELD(align_corners), MVIT_FIELD(x),      MVIT_FIELD(y),
};
}  // namespace qresize_step

namespace qlookup_step {
using Arguments = QLookupProblem;
constexpr Field fields[] = {MVIT_FIELD(count), MVIT_FIELD(table), MVIT_FIELD(x), MVIT_FIELD(y)};
}  // namespace qlookup_step

namespace qnorm_step {
using Arguments = QNormProblem;
constexpr Field fields[] = {MVIT_FIELD(rows), MVIT_FIELD(y), MVIT_FIELD(y_stride), MVIT_NORM_FIELDS(norm)};
}  // namespace qnorm_step

namespace qseparable_context_step {
using Arguments = QSeparableContextProblem;
constexpr Field fields[] = {
    MVIT_FIELD(size.batch),
    MVIT_FIELD(size.dim),
    MVIT_FIELD(size.height),
    MVIT_FIELD(size.width),
    MVIT_FIELD(size.patch_h),
    MVIT_FIELD(size.patch_w),
    MVIT_FIELD(scores.data),
    MVIT_FIELD(scores.image),
    MVIT_FIELD(scores.row),
    MVIT_FIELD(scores.pixel),
    MVIT_FIELD(x.data),
    MVIT_FIELD(x.image),
    MVIT_FIELD(x.row),
    MVIT_FIELD(x.pixel),
    MVIT_FIELD(table),
    MVIT_FIELD(x_zero_point),
    MVIT_FIELD(scale),
    MVIT_FIELD(bytes),
    MVIT_FIELD(byte.inverse),
    MVIT_FIELD(byte.low),
    MVIT_FIELD(byte.high),
    MVIT_FIELD(byte.zero_point),
    MVIT_FIELD(y),
};
}  // namespace qseparable_context_step

namespace qseparable_gate_step {
using Arguments = QSeparableGateProblem;
constexpr Field fields[] = {
    MVIT_FIELD(size.batch),   MVIT_FIELD(size.dim),        MVIT_FIELD(size.height), MVIT_FIELD(size.width),   MVIT_FIELD(size.patch_h),
    MVIT_FIELD(size.patch_w), MVIT_FIELD(v.data),          MVIT_FIELD(v.image),     MVIT_FIELD(v.row),        MVIT_FIELD(v.pixel),
    MVIT_FIELD(v_zero_point), MVIT_FIELD(context),         MVIT_FIELD(scale),       MVIT_FIELD(byte.inverse), MVIT_FIELD(byte.low),
    MVIT_FIELD(byte.high),    MVIT_FIELD(byte.zero_point), MVIT_FIELD(y),
};
}  // namespace qseparable_gate_step

namespace qpatch_attention_step {
using Arguments = QPatchAttentionProblem;
constexpr Field fields[] = {
    MVIT_FIELD(batch),
    MVIT_FIELD(dim),
    MVIT_FIELD(heads),
    MVIT_FIELD(height),
    MVIT_FIELD(width),
    MVIT_FIELD(patch_h),
    MVIT_FIELD(patch_w),
    MVIT_FIELD(qkv),
    MVIT_FIELD(qkv_stride[0]),
    MVIT_FIELD(qkv_stride[1]),
    MVIT_FIELD(qkv_stride[2]),
    MVIT_FIELD(q_zero_point),
    MVIT_FIELD(v_zero_point),
    MVIT_FIELD(score_steps),
    MVIT_FIELD(ratio),
    MVIT_FIELD(table),
    MVIT_FIELD(byte.inverse),
    MVIT_FIELD(byte.low),
    MVIT_FIELD(byte.high),
    MVIT_FIELD(byte.zero_point),
    MVIT_FIELD(y),
    MVIT_FIELD(y_stride[0]),
    MVIT_FIELD(y_stride[1]),
    MVIT_FIELD(y_stride[2]),
};
}  // namespace qpatch_attention_step

// One scale and zero-point for all.
namespace quantize_step {
struct Arguments {
    DType dtype;
    int64_t count;
    float scale;
    int32_t zero_point, bits;
    const void* from;
    void* to;
};
constexpr Field fields[] = {
    MVIT_FIELD(dtype), MVIT_FIELD(count), MVIT_FIELD(scale), MVIT_FIELD(zero_point), MVIT_FIELD(bits), MVIT_FIELD(from), MVIT_FIELD(to),
};
template <Status (*op)(const QuantizeProblem&, int)>
Status run(void* arguments, int threads) {
    const auto& p = *static_cast<const Arguments*>(arguments);
    return op({p.dtype, 1, 1, p.count, &p.scale, &p.zero_point, false, false, p.bits, p.from, p.to}, threads);
}
}  // namespace quantize_step

namespace quantize_image_step {
using Arguments = QuantizeImageProblem;
constexpr Field fields[] = {
    MVIT_FIELD(batch),      MVIT_FIELD(channels), MVIT_FIELD(pixels), MVIT_FIELD(scale),
    MVIT_FIELD(zero_point), MVIT_FIELD(bits),     MVIT_FIELD(x),      MVIT_FIELD(y),
};
}  // namespace quantize_image_step

namespace stream_step {
using Arguments = StreamProblem;
constexpr Field fields[] = {MVIT_FIELD(count), MVIT_FIELD(scale), MVIT_FIELD(from), MVIT_FIELD(to)};
}  // namespace stream_step

namespace stream_sums_step {
using Arguments = StreamSumsProblem;
constexpr Field fields[] = {MVIT_FIELD(count), MVIT_FIELD(x), MVIT_FIELD(sums)};
}  // namespace stream_sums_step

#define MVIT_STEP(op) step_kind<op##_step::Arguments>(#op, op##_step::fields, run_op<op##_step::Arguments, op>)
constexpr StepKind kinds[] = {
    step_kind<qgemm_step::Arguments>("qgemm", qgemm_step::fields, qgemm_step::run),
    step_kind<qconv2d_step::Arguments>("qconv2d", qconv2d_step::fields, qconv2d_step::run),
    MVIT_STEP(qdepthwise_conv2d),
    step_kind<qinverted_residual_step::Arguments>("qinverted_residual", qinverted_residual_step::fields, qinverted_residual_step::run),
    MVIT_STEP(qadd),
    MVIT_STEP(qavg_pool),
    MVIT_STEP(qattention),
    MVIT_STEP(qpool_mixer),
    MVIT_STEP(qresize),
    MVIT_STEP(qlookup),
    MVIT_STEP(qnorm),
    MVIT_STEP(qseparable_context),
    MVIT_STEP(qseparable_gate),
    MVIT_STEP(qpatch_attention),
    step_kind<quantize_step::Arguments>("quantize", quantize_step::fields, quantize_step::run<quantize>),
    step_kind<quantize_step::Arguments>("dequantize", quantize_step::fields, quantize_step::run<dequantize>),
    MVIT_STEP(quantize_image),
    MVIT_STEP(stream_sums),
    step_kind<StreamProblem>("to_stream", stream_step::fields, run_op<StreamProblem, to_stream>),
    step_kind<StreamProblem>("from_stream", stream_step::fields, run_op<StreamProblem, from_stream>),
};

}  // namespace

StepKinds integer_steps() { return {kinds, sizeof(kinds) / sizeof(*kinds)}; }

}  // namespace mvit
