// The ops on integers.
#include "bind.h"
#include "bind_qepilogue.h"
#include "cpu/ops/qadd.h"
#include "cpu/ops/qattention.h"
#include "cpu/ops/qavg_pool.h"
#include "cpu/ops/qconv2d.h"
#include "cpu/ops/qdepthwise_conv2d.h"
#include "cpu/ops/qgemm.h"
#include "cpu/ops/qlookup.h"
#include "cpu/ops/qnorm.h"
#include "cpu/ops/qpatch_attention.h"
#include "cpu/ops/qpool_mixer.h"
#include "cpu/ops/qresize.h"
#include "cpu/ops/qseparable_attention.h"
#include "cpu/ops/quantize.h"

namespace py = pybind11;
using namespace mvit;

namespace {

// What the caller believes a packed weight to be: columns, depth and bits. Its tensors have these sizes, the kernel those of the header.
using Form = std::array<int64_t, 3>;

bool read_weight(uintptr_t address, int64_t bytes, const Form& form, QWeight* weight) {
    return read_qweight(pointer(address), bytes, weight) && Form{weight->columns, weight->depth, weight->bits} == form;
}

int quantized_product(int64_t rows, uintptr_t a, int64_t a_stride, uintptr_t weight, int64_t weight_bytes, const Form& form,
                      uintptr_t channels, int64_t channels_stride, int type, bool plain, int activation, uintptr_t segments,
                      uintptr_t table, uintptr_t curve, uintptr_t residual, int residual_type, int64_t residual_stride,
                      float residual_scale, int32_t residual_zero_point, uintptr_t row_scale, uintptr_t row_zero_point, uintptr_t y,
                      int64_t y_stride, int threads) {
    QGemmProblem p{};
    p.rows = rows, p.a = bytes(a), p.a_stride = a_stride;
    if (!read_weight(weight, weight_bytes, form, &p.weight)) return static_cast<int>(Status::bad_weight);
    p.epilogue = epilogue(channels, channels_stride, type, plain, activation, segments, table, curve, residual, residual_type,
                          residual_stride, residual_scale, residual_zero_point, y, y_stride);
    p.epilogue.row_scale = floats(row_scale), p.epilogue.row_zero_point = ints(row_zero_point), p.epilogue.column_sum = p.weight.sum;
    return launch<qgemm>(row_scale || row_zero_point ? nullptr : "qgemm", p, threads, weight);
}

// The same of bytes to an int16 stream, whose sums are collected.
int collected_product(int64_t rows, uintptr_t a, int64_t a_stride, uintptr_t weight, int64_t weight_bytes, const Form& form,
                      uintptr_t channels, int64_t channels_stride, uintptr_t residual, int64_t residual_stride, uintptr_t y,
                      int64_t y_stride, int64_t groups, uintptr_t collected, int threads) {
    QGemmProblem p{};
    p.rows = rows, p.a = bytes(a), p.a_stride = a_stride;
    if (!read_weight(weight, weight_bytes, form, &p.weight)) return static_cast<int>(Status::bad_weight);
    constexpr int i16 = static_cast<int>(QType::i16);
    p.epilogue = epilogue(channels, channels_stride, i16, true, 0, 0, 0, 0, residual, i16, residual_stride, 1.0f, 0, y, y_stride);
    p.collected = static_cast<int64_t*>(pointer(collected)), p.groups = groups;
    return launch<qgemm>("qgemm", p, threads, weight);
}

// Sizes are (B, C, H, W), of x; strides likewise. multiplier: filters of a channel. A residual is as dense as y.
int quantized_depthwise_convolution(const Sizes& size, int64_t multiplier, int64_t stride, uintptr_t x, const Sizes& x_stride,
                                    uintptr_t blocks, bool narrow, uintptr_t channels, int64_t channels_stride, int type, bool plain,
                                    int activation, uintptr_t segments, uintptr_t table, uintptr_t curve, uintptr_t residual,
                                    int residual_type, float residual_scale, int32_t residual_zero_point, uintptr_t y, int threads) {
    QDepthwiseConv2dProblem p{};
    p.batch = size[0], p.channels = size[1] * multiplier, p.height = size[2], p.width = size[3];
    p.stride = stride, p.multiplier = multiplier;
    p.x = bytes(x);
    p.image_stride = x_stride[0], p.row_stride = x_stride[2], p.pixel_stride = x_stride[3];
    p.blocks = static_cast<const QDepthwiseBlock*>(pointer(blocks)), p.narrow = narrow;
    p.epilogue = epilogue(channels, channels_stride, type, plain, activation, segments, table, curve, residual, residual_type, p.channels,
                          residual_scale, residual_zero_point, y, p.channels);
    return launch<qdepthwise_conv2d>("qdepthwise_conv2d", p, threads);
}

uint8_t* writable_bytes(uintptr_t address) { return static_cast<uint8_t*>(pointer(address)); }

// span: elements before, of and after the axis of the channels. An address of scales or zero-points, or 0 and the one of all channels.
template <Status (*function)(const QuantizeProblem&, int)>
int quantization(int dtype, std::array<int64_t, 3> span, uintptr_t scales, float scale, uintptr_t zero_points, int32_t zero_point, int bits,
                 uintptr_t from, uintptr_t to, int threads) {
    QuantizeProblem p{};
    p.dtype = static_cast<DType>(dtype), p.bits = bits;
    p.outer = span[0], p.channels = span[1], p.inner = span[2];
    p.scale_of_channel = scales != 0, p.scale = scales ? floats(scales) : &scale;
    p.zero_point_of_channel = zero_points != 0, p.zero_point = zero_points ? ints(zero_points) : &zero_point;
    p.from = pointer(from), p.to = pointer(to);
    return launch<function>(nullptr, p, threads);
}

int quantization_of_rows(int dtype, int64_t rows, int64_t depth, int64_t x_stride, int bits, uintptr_t x, uintptr_t q, uintptr_t scale,
                         uintptr_t zero_point, int threads) {
    QuantizeRowsProblem p{};
    p.dtype = static_cast<DType>(dtype), p.bits = bits;
    p.rows = rows, p.depth = depth, p.x_stride = x_stride;
    p.x = pointer(x), p.q = writable_bytes(q);
    p.scale = static_cast<float*>(pointer(scale)), p.zero_point = static_cast<int32_t*>(pointer(zero_point));
    return launch<quantize_rows>(nullptr, p, threads);
}

int quantized_sum(int64_t count, uintptr_t a, uintptr_t b, float a_scale, int32_t a_zero_point, float b_scale, int32_t b_zero_point,
                  int activation, uintptr_t segments, float out_scale, int32_t out_zero_point, int out_bits, uintptr_t y, int threads) {
    QAddProblem p{};
    p.count = count, p.a = bytes(a), p.b = bytes(b), p.y = writable_bytes(y);
    p.a_real = qreal(a_scale, a_zero_point), p.b_real = qreal(b_scale, b_zero_point);
    p.activation = static_cast<QActivation>(activation), p.segments = floats(segments);
    p.out = qbyte(out_scale, out_zero_point, out_bits);
    return launch<qadd>("qadd", p, threads);
}

int quantized_mean(int64_t batch, int64_t channels, int64_t pixels, bool channels_last, uintptr_t x, float a_scale, int32_t a_zero_point,
                   bool as_floats, float out_scale, int32_t out_zero_point, int out_bits, uintptr_t y, int threads) {
    QAvgPoolProblem p{};
    p.batch = batch, p.channels = channels, p.pixels = pixels, p.channels_last = channels_last;
    p.x = bytes(x), p.y = pointer(y);
    p.zero_point = a_zero_point, p.scale = mean_scale(a_scale, pixels, out_scale);
    p.floats = as_floats, p.out = qbyte(out_scale, out_zero_point, out_bits);
    return launch<qavg_pool>("qavg_pool", p, threads);
}

// q_size is (B, N, heads depth), kv_size (M, heads value_depth); strides leave out channels; zero_points of q, k and v.
int quantized_attention(std::array<int64_t, 3> q_size, std::array<int64_t, 2> kv_size, int64_t heads, uintptr_t q,
                        std::array<int64_t, 2> q_stride, uintptr_t k, std::array<int64_t, 2> k_stride, uintptr_t v,
                        std::array<int64_t, 2> v_stride, std::array<int32_t, 3> zero_points, uintptr_t bias, int64_t bias_stride,
                        float steps, uintptr_t mix, uintptr_t mix_weights, uintptr_t shift, float ratio, uintptr_t table,
                        int32_t out_zero_point, int out_bits, uintptr_t y, int threads) {
    QAttentionProblem p{};
    p.batch = q_size[0], p.heads = heads, p.queries = q_size[1], p.keys = kv_size[0];
    p.depth = q_size[2] / heads, p.value_depth = kv_size[1] / heads;
    p.q = bytes(q), p.k = bytes(k), p.v = bytes(v), p.y = writable_bytes(y);
    for (size_t i = 0; i < 2; ++i) p.q_stride[i] = q_stride[i], p.k_stride[i] = k_stride[i], p.v_stride[i] = v_stride[i];
    p.q_zero_point = zero_points[0], p.k_zero_point = zero_points[1], p.v_zero_point = zero_points[2];
    p.bias = floats(bias), p.bias_stride = bias_stride, p.steps = steps;
    p.mix = floats(mix), p.mix_weights = floats(mix_weights), p.shift = floats(shift);
    p.ratio = ratio, p.table = bytes(table), p.out = qbyte(1.0f, out_zero_point, out_bits);
    p.y_stride[0] = p.queries * kv_size[1], p.y_stride[1] = kv_size[1];
    return launch<qattention>("qattention", p, threads);
}

// size is (B, C, H, W); keep and move: of each channel.
int quantized_mix_by_pooling(const Sizes& size, uintptr_t x, int32_t zero_point, uintptr_t keep, uintptr_t move, int32_t out_zero_point,
                             int out_bits, uintptr_t y, int threads) {
    QPoolMixerProblem p{};
    p.batch = size[0], p.height = size[2], p.width = size[3], p.channels = size[1];
    p.x = bytes(x), p.zero_point = zero_point, p.keep = floats(keep), p.move = floats(move);
    p.out = qbyte(1.0f, out_zero_point, out_bits), p.y = writable_bytes(y);
    return launch<qpool_mixer>("qpool_mixer", p, threads);
}

// size is (B, C, H, W) of x.
int quantized_resize(const Sizes& size, std::array<int64_t, 2> out, bool align_corners, uintptr_t x, uintptr_t y, int threads) {
    const QResizeProblem p{size[0], size[1], size[2], size[3], out[0], out[1], align_corners, bytes(x), writable_bytes(y)};
    return launch<qresize>("qresize", p, threads);
}

int lookup(int64_t count, uintptr_t table, uintptr_t x, uintptr_t y, int threads) {
    const QLookupProblem p{count, bytes(table), bytes(x), writable_bytes(y)};
    return launch<qlookup>("qlookup", p, threads);
}

// What already is in units of its scale.
QByte byte_of(int32_t zero_point, int bits) { return qbyte_of_inverse(1.0f, zero_point, bits); }

QNorm norm_of(int64_t groups, int64_t rows, int64_t depth, uintptr_t x, int64_t x_stride, uintptr_t sums, double scale, double y_scale,
              int32_t zero_point, double eps, int bits) {
    const QByte byte = byte_of(zero_point, bits);
    return {static_cast<const int16_t*>(pointer(x)),
            x_stride,
            depth,
            static_cast<const int64_t*>(pointer(sums)),
            groups > 0 ? rows / groups : 0,
            scale,
            eps,
            y_scale,
            byte.low,
            byte.high,
            zero_point};
}

int normalize_stream(int64_t rows, int64_t depth, uintptr_t x, int64_t x_stride, int64_t groups, uintptr_t sums, double scale,
                     double y_scale, int32_t zero_point, double eps, int bits, uintptr_t gain, uintptr_t offset, uintptr_t y,
                     int64_t y_stride, int threads) {
    QNorm norm = norm_of(groups, rows, depth, x, x_stride, sums, scale, y_scale, zero_point, eps, bits);
    norm.gain = floats(gain), norm.offset = floats(offset);
    const QNormProblem p{norm, rows, static_cast<uint8_t*>(pointer(y)), y_stride};
    return launch<qnorm>("qnorm", p, threads);
}

int normalized_product(int64_t rows, uintptr_t x, int64_t x_stride, int64_t groups, uintptr_t sums, double scale, double a_scale,
                       int32_t a_zero_point, double eps, int a_bits, uintptr_t weight, int64_t weight_bytes, const Form& form,
                       uintptr_t channels, int64_t channels_stride, int type, bool plain, int activation, uintptr_t segments,
                       uintptr_t table, uintptr_t curve, uintptr_t y, int64_t y_stride, int threads) {
    QGemmProblem p{};
    p.rows = rows;
    if (!read_weight(weight, weight_bytes, form, &p.weight)) return static_cast<int>(Status::bad_weight);
    const QNorm norm = norm_of(groups, rows, p.weight.depth, x, x_stride, sums, scale, a_scale, a_zero_point, eps, a_bits);
    p.norm = &norm;
    p.epilogue = epilogue(channels, channels_stride, type, plain, activation, segments, table, curve, 0, 0, 0, 1.0f, 0, y, y_stride);
    return launch<qgemm>(nullptr, p, threads);
}

// Sizes are (B, d, H, W); strides of a map from image to image, row to row and pixel to pixel.
QPhases phases_of(const Sizes& size, std::array<int64_t, 2> patch) { return {size[0], size[1], size[2], size[3], patch[0], patch[1]}; }
QPhaseMap phase_map(uintptr_t address, const std::array<int64_t, 3>& stride) { return {bytes(address), stride[0], stride[1], stride[2]}; }

int separable_context(const Sizes& size, std::array<int64_t, 2> patch, uintptr_t scores, const std::array<int64_t, 3>& scores_stride,
                      uintptr_t x, const std::array<int64_t, 3>& x_stride, uintptr_t table, int32_t x_zero_point, double scale,
                      bool to_bytes, int32_t zero_point, int bits, uintptr_t y, int threads) {
    QSeparableContextProblem p{};
    p.size = phases_of(size, patch);
    p.scores = phase_map(scores, scores_stride), p.x = phase_map(x, x_stride);
    p.table = ints(table);
    p.x_zero_point = x_zero_point, p.scale = scale;
    p.bytes = to_bytes, p.byte = byte_of(zero_point, bits);
    p.y = pointer(y);
    return launch<qseparable_context>("qseparable_context", p, threads);
}

int separable_gate(const Sizes& size, std::array<int64_t, 2> patch, uintptr_t v, const std::array<int64_t, 3>& v_stride,
                   int32_t v_zero_point, uintptr_t context, float scale, int32_t zero_point, int bits, uintptr_t y, int threads) {
    QSeparableGateProblem p{};
    p.size = phases_of(size, patch);
    p.v = phase_map(v, v_stride), p.v_zero_point = v_zero_point;
    p.context = floats(context), p.scale = scale;
    p.byte = byte_of(zero_point, bits);
    p.y = static_cast<uint8_t*>(pointer(y));
    return launch<qseparable_gate>("qseparable_gate", p, threads);
}

int quantized_softmax_attention(const Sizes& size, int64_t heads, std::array<int64_t, 2> patch, uintptr_t qkv,
                                const std::array<int64_t, 3>& qkv_stride, int32_t q_zero_point, int32_t v_zero_point, float score_steps,
                                float ratio, uintptr_t table, int32_t zero_point, int bits, uintptr_t y,
                                const std::array<int64_t, 3>& y_stride, int threads) {
    QPatchAttentionProblem p{};
    p.batch = size[0], p.dim = size[1], p.heads = heads, p.height = size[2], p.width = size[3];
    p.patch_h = patch[0], p.patch_w = patch[1];
    p.qkv = bytes(qkv), p.y = writable_bytes(y);
    for (size_t i = 0; i < 3; ++i) p.qkv_stride[i] = qkv_stride[i], p.y_stride[i] = y_stride[i];
    p.q_zero_point = q_zero_point, p.v_zero_point = v_zero_point;
    p.score_steps = score_steps, p.ratio = ratio;
    p.table = bytes(table), p.byte = byte_of(zero_point, bits);
    return launch<qpatch_attention>("qpatch_attention", p, threads);
}

// Sizes are (B, C, H, W), of x; strides likewise, in bytes.
int quantized_convolution(const Sizes& size, int64_t kernel, int64_t stride, uintptr_t x, const Sizes& x_stride, uintptr_t second,
                          int64_t second_channels, const Sizes& second_stride, uintptr_t zero_point, uintptr_t border, uintptr_t weight,
                          int64_t weight_bytes, const Form& form, uintptr_t filtered, uintptr_t channels, int64_t channels_stride, int type,
                          bool plain, int activation, uintptr_t segments, uintptr_t table, uintptr_t curve, uintptr_t residual,
                          int residual_type, float residual_scale, int32_t residual_zero_point, uintptr_t y, int threads) {
    QConv2dProblem p{};
    p.batch = size[0], p.height = size[2], p.width = size[3];
    p.kernel = kernel, p.stride = stride;
    p.x = {bytes(x), size[1], x_stride[0], x_stride[2], x_stride[3]};
    p.second = {bytes(second), second_channels, second_stride[0], second_stride[2], second_stride[3]};
    p.zero_point = ints(zero_point), p.border = ints(border);
    if (!read_weight(weight, weight_bytes, form, &p.weight)) return static_cast<int>(Status::bad_weight);
    p.filtered = static_cast<const int16_t*>(pointer(filtered));
    p.epilogue = epilogue(channels, channels_stride, type, plain, activation, segments, table, curve, residual, residual_type,
                          p.weight.columns, residual_scale, residual_zero_point, y, p.weight.columns);
    return launch<qconv2d>("qconv2d", p, threads, weight);
}

}  // namespace

void mvit::bind_integers(py::module_& m) {
    m.def("qdepthwise_conv2d", quantized_depthwise_convolution);
    m.def("qconv2d", quantized_convolution);
    m.def("qgemm", quantized_product);
    m.def("quantize", quantization<quantize>);
    m.def("dequantize", quantization<dequantize>);
    m.def("quantize_rows", quantization_of_rows);
    m.def("qadd", quantized_sum);
    m.def("qavg_pool", quantized_mean);
    m.def("qattention", quantized_attention);
    m.def("qpool_mixer", quantized_mix_by_pooling);
    m.def("qresize", quantized_resize);
    m.def("qlookup", lookup);
    m.def("qgemm_collect", collected_product);
    m.def("qnorm", normalize_stream);
    m.def("qnorm_gemm", normalized_product);
    m.def("qseparable_context", separable_context);
    m.def("qseparable_gate", separable_gate);
    m.def("qpatch_attention", quantized_softmax_attention);
}
