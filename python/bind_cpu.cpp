// The extension mvit_kernels._cpu: pointers, shapes and strides in, a status out. Tensors are checked in mvit_kernels/ops; nothing here
// knows torch. Every kernel runs without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "cpu/core/fingerprint.h"
#include "cpu/core/isa.h"
#include "cpu/ops/ceiling.h"
#include "cpu/ops/conv2d.h"
#include "cpu/ops/depthwise_conv2d.h"
#include "cpu/ops/feed_forward.h"
#include "cpu/ops/gemm.h"
#include "cpu/ops/group_norm.h"
#include "cpu/ops/inverted_residual.h"
#include "cpu/ops/layer_norm.h"
#include "cpu/ops/patch_attention.h"
#include "cpu/ops/patches.h"
#include "cpu/ops/qadd.h"
#include "cpu/ops/qavg_pool.h"
#include "cpu/ops/qconv2d.h"
#include "cpu/ops/qdepthwise_conv2d.h"
#include "cpu/ops/qgemm.h"
#include "cpu/ops/qlookup.h"
#include "cpu/ops/qnorm.h"
#include "cpu/ops/qresize.h"
#include "cpu/ops/qseparable_attention.h"
#include "cpu/ops/quantize.h"
#include "cpu/ops/separable_attention.h"
#include "cpu/ops/separable_attention_block.h"

namespace py = pybind11;
using namespace mvit;

namespace {

using Sizes = std::array<int64_t, 4>;

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

Tensor4 tensor4(uintptr_t address, const Sizes& stride) { return {pointer(address), {stride[0], stride[1], stride[2], stride[3]}}; }

SeparableAttentionProblem problem(int dtype, const Sizes& size, std::array<int64_t, 2> patch) {
    return {static_cast<DType>(dtype), size[0], (size[1] - 1) / 2, {size[2], size[3]}, patch[0], patch[1], {}, {}, {}};
}

int attention(int dtype, const Sizes& qkv_size, std::array<int64_t, 2> patch, uintptr_t qkv, const Sizes& qkv_stride, uintptr_t y,
              const Sizes& y_stride, int threads) {
    SeparableAttentionProblem p = problem(dtype, qkv_size, patch);
    p.qkv = tensor4(qkv, qkv_stride);
    p.y = tensor4(y, y_stride);
    py::gil_scoped_release release;
    return static_cast<int>(separable_attention(p, threads));
}

int attention_backward(int dtype, const Sizes& qkv_size, std::array<int64_t, 2> patch, uintptr_t qkv, const Sizes& qkv_stride, uintptr_t dy,
                       const Sizes& dy_stride, uintptr_t dqkv, const Sizes& dqkv_stride, int threads) {
    SeparableAttentionProblem p = problem(dtype, qkv_size, patch);
    p.qkv = tensor4(qkv, qkv_stride);
    p.y = tensor4(dy, dy_stride);
    p.dqkv = tensor4(dqkv, dqkv_stride);
    py::gil_scoped_release release;
    return static_cast<int>(separable_attention_backward(p, threads));
}

template <Status (*function)(const PatchesProblem&, int)>
int patches(int element_size, const Sizes& map_size, std::array<int64_t, 2> patch, bool channels_last, uintptr_t from, uintptr_t to,
            int threads) {
    const PatchesProblem p{element_size, map_size[0], map_size[1],   map_size[2],   map_size[3],
                           patch[0],     patch[1],    channels_last, pointer(from), pointer(to)};
    py::gil_scoped_release release;
    return static_cast<int>(function(p, threads));
}

const float* floats(uintptr_t address) { return static_cast<const float*>(pointer(address)); }

int group_normalize(int dtype, bool channels_last, const Sizes& size, uintptr_t x, uintptr_t weight, uintptr_t bias, float eps, uintptr_t y,
                    int threads) {
    GroupNormProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.channels_last = channels_last;
    p.batch = size[0], p.channels = size[1], p.positions = size[2] * size[3];
    p.eps = eps;
    p.weight = floats(weight), p.bias = floats(bias);
    p.x = pointer(x), p.y = pointer(y);
    py::gil_scoped_release release;
    return static_cast<int>(group_norm(p, threads));
}

int group_normalize_backward(int dtype, bool channels_last, const Sizes& size, uintptr_t dy, uintptr_t x, uintptr_t weight, float eps,
                             uintptr_t dx, uintptr_t dweight, uintptr_t dbias, int threads) {
    GroupNormProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.channels_last = channels_last;
    p.batch = size[0], p.channels = size[1], p.positions = size[2] * size[3];
    p.eps = eps;
    p.weight = floats(weight);
    p.x = pointer(x), p.dy = pointer(dy), p.dx = pointer(dx);
    p.dweight = static_cast<float*>(pointer(dweight)), p.dbias = static_cast<float*>(pointer(dbias));
    py::gil_scoped_release release;
    return static_cast<int>(group_norm_backward(p, threads));
}

int product(int dtype, int64_t groups, int64_t rows, int64_t depth, int64_t columns, uintptr_t a, int64_t a_stride, uintptr_t second,
            int64_t second_depth, int64_t second_stride, uintptr_t weight, uintptr_t bias, uintptr_t moments, bool layer_norm, float eps,
            int activation, uintptr_t residual, int64_t residual_stride, uintptr_t y, int64_t y_stride, uintptr_t collected, int threads) {
    GemmProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.groups = groups, p.rows = rows, p.depth = depth, p.columns = columns;
    p.a = pointer(a), p.a_stride = a_stride;
    p.second = pointer(second), p.second_depth = second_depth, p.second_stride = second_stride;
    p.weight = floats(weight), p.bias = floats(bias);
    p.moments = static_cast<const Moments*>(pointer(moments)), p.layer_norm = layer_norm, p.eps = eps;
    p.activation = static_cast<Activation>(activation);
    p.residual = pointer(residual), p.residual_stride = residual_stride;
    p.y = pointer(y), p.y_stride = y_stride;
    p.collected = static_cast<Moments*>(pointer(collected));
    py::gil_scoped_release release;
    return static_cast<int>(gemm(p, threads));
}

const int32_t* ints(uintptr_t address) { return static_cast<const int32_t*>(pointer(address)); }
const uint8_t* bytes(uintptr_t address) { return static_cast<const uint8_t*>(pointer(address)); }

// channels: the rows of QChannels, `stride` values apart.
QChannels channels_at(uintptr_t address, int64_t stride) {
    const int32_t* row = ints(address);
    const auto as_floats = [&](int i) { return reinterpret_cast<const float*>(row + i * stride); };
    return {row, as_floats(1), as_floats(2), as_floats(3), as_floats(4), as_floats(5), row + 6 * stride};
}

QEpilogue epilogue(uintptr_t channels, int64_t channels_stride, int type, bool plain, int activation, uintptr_t segments, uintptr_t table,
                   uintptr_t residual, int residual_type, int64_t residual_stride, float residual_scale, int32_t residual_zero_point,
                   uintptr_t y, int64_t y_stride) {
    QEpilogue e{};
    e.channels = channels_at(channels, channels_stride);
    e.type = static_cast<QType>(type), e.plain = plain;
    e.activation = static_cast<QActivation>(activation), e.segments = floats(segments), e.table = bytes(table);
    e.residual = pointer(residual), e.residual_type = static_cast<QType>(residual_type), e.residual_stride = residual_stride;
    e.residual_scale = residual_scale, e.residual_zero_point = residual_zero_point;
    e.y = pointer(y), e.y_stride = y_stride;
    return e;
}

// What the caller believes a packed weight to be: columns, depth and bits. Its tensors have these sizes, the kernel those of the header.
using Form = std::array<int64_t, 3>;

bool read_weight(uintptr_t address, int64_t bytes, const Form& form, QWeight* weight) {
    return read_qweight(pointer(address), bytes, weight) && Form{weight->columns, weight->depth, weight->bits} == form;
}

int quantized_product(int64_t rows, uintptr_t a, int64_t a_stride, uintptr_t weight, int64_t weight_bytes, const Form& form,
                      uintptr_t channels, int64_t channels_stride, int type, bool plain, int activation, uintptr_t segments,
                      uintptr_t table, uintptr_t residual, int residual_type, int64_t residual_stride, float residual_scale,
                      int32_t residual_zero_point, uintptr_t row_scale, uintptr_t row_zero_point, uintptr_t y, int64_t y_stride,
                      int threads) {
    QGemmProblem p{};
    p.rows = rows, p.a = bytes(a), p.a_stride = a_stride;
    if (!read_weight(weight, weight_bytes, form, &p.weight)) return static_cast<int>(Status::bad_weight);
    p.epilogue = epilogue(channels, channels_stride, type, plain, activation, segments, table, residual, residual_type, residual_stride,
                          residual_scale, residual_zero_point, y, y_stride);
    p.epilogue.row_scale = floats(row_scale), p.epilogue.row_zero_point = ints(row_zero_point), p.epilogue.column_sum = p.weight.sum;
    py::gil_scoped_release release;
    return static_cast<int>(qgemm(p, threads));
}

// Sizes are (B, C, H, W), of x; strides likewise. A residual is as dense as y.
int quantized_depthwise_convolution(const Sizes& size, int64_t stride, uintptr_t x, const Sizes& x_stride, uintptr_t blocks, bool narrow,
                                    uintptr_t channels, int64_t channels_stride, int type, bool plain, int activation, uintptr_t segments,
                                    uintptr_t table, uintptr_t residual, int residual_type, float residual_scale,
                                    int32_t residual_zero_point, uintptr_t y, int threads) {
    QDepthwiseConv2dProblem p{};
    p.batch = size[0], p.channels = size[1], p.height = size[2], p.width = size[3];
    p.stride = stride;
    p.x = bytes(x);
    p.image_stride = x_stride[0], p.row_stride = x_stride[2], p.pixel_stride = x_stride[3];
    p.blocks = static_cast<const QDepthwiseBlock*>(pointer(blocks)), p.narrow = narrow;
    p.epilogue = epilogue(channels, channels_stride, type, plain, activation, segments, table, residual, residual_type, p.channels,
                          residual_scale, residual_zero_point, y, p.channels);
    py::gil_scoped_release release;
    return static_cast<int>(qdepthwise_conv2d(p, threads));
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
    py::gil_scoped_release release;
    return static_cast<int>(function(p, threads));
}

int quantization_of_rows(int dtype, int64_t rows, int64_t depth, int64_t x_stride, int bits, uintptr_t x, uintptr_t q, uintptr_t scale,
                         uintptr_t zero_point, int threads) {
    QuantizeRowsProblem p{};
    p.dtype = static_cast<DType>(dtype), p.bits = bits;
    p.rows = rows, p.depth = depth, p.x_stride = x_stride;
    p.x = pointer(x), p.q = writable_bytes(q);
    p.scale = static_cast<float*>(pointer(scale)), p.zero_point = static_cast<int32_t*>(pointer(zero_point));
    py::gil_scoped_release release;
    return static_cast<int>(quantize_rows(p, threads));
}

int quantized_sum(int64_t count, uintptr_t a, uintptr_t b, float a_scale, int32_t a_zero_point, float b_scale, int32_t b_zero_point,
                  int activation, uintptr_t segments, float out_scale, int32_t out_zero_point, int out_bits, uintptr_t y, int threads) {
    QAddProblem p{};
    p.count = count, p.a = bytes(a), p.b = bytes(b), p.y = writable_bytes(y);
    p.a_real = qreal(a_scale, a_zero_point), p.b_real = qreal(b_scale, b_zero_point);
    p.activation = static_cast<QActivation>(activation), p.segments = floats(segments);
    p.out = qbyte(out_scale, out_zero_point, out_bits);
    py::gil_scoped_release release;
    return static_cast<int>(qadd(p, threads));
}

int quantized_mean(int64_t batch, int64_t channels, int64_t pixels, bool channels_last, uintptr_t x, float a_scale, int32_t a_zero_point,
                   bool as_floats, float out_scale, int32_t out_zero_point, int out_bits, uintptr_t y, int threads) {
    QAvgPoolProblem p{};
    p.batch = batch, p.channels = channels, p.pixels = pixels, p.channels_last = channels_last;
    p.x = bytes(x), p.y = pointer(y);
    p.zero_point = a_zero_point, p.scale = mean_scale(a_scale, pixels, out_scale);
    p.floats = as_floats, p.out = qbyte(out_scale, out_zero_point, out_bits);
    py::gil_scoped_release release;
    return static_cast<int>(qavg_pool(p, threads));
}

// size is (B, C, H, W) of x.
int quantized_resize(const Sizes& size, std::array<int64_t, 2> out, bool align_corners, uintptr_t x, uintptr_t y, int threads) {
    const QResizeProblem p{size[0], size[1], size[2], size[3], out[0], out[1], align_corners, bytes(x), writable_bytes(y)};
    py::gil_scoped_release release;
    return static_cast<int>(qresize(p, threads));
}

int lookup(int64_t count, uintptr_t table, uintptr_t x, uintptr_t y, int threads) {
    const QLookupProblem p{count, bytes(table), bytes(x), writable_bytes(y)};
    py::gil_scoped_release release;
    return static_cast<int>(qlookup(p, threads));
}

// The same of bytes to an int16 stream, whose sums are collected.
int collected_product(int64_t rows, uintptr_t a, int64_t a_stride, uintptr_t weight, int64_t weight_bytes, const Form& form,
                      uintptr_t channels, int64_t channels_stride, uintptr_t residual, int64_t residual_stride, uintptr_t y,
                      int64_t y_stride, int64_t groups, uintptr_t collected, int threads) {
    QGemmProblem p{};
    p.rows = rows, p.a = bytes(a), p.a_stride = a_stride;
    if (!read_weight(weight, weight_bytes, form, &p.weight)) return static_cast<int>(Status::bad_weight);
    constexpr int i16 = static_cast<int>(QType::i16);
    p.epilogue = epilogue(channels, channels_stride, i16, true, 0, 0, 0, residual, i16, residual_stride, 1.0f, 0, y, y_stride);
    p.collected = static_cast<int64_t*>(pointer(collected)), p.groups = groups;
    py::gil_scoped_release release;
    return static_cast<int>(qgemm(p, threads));
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
                     double y_scale, int32_t zero_point, double eps, int bits, uintptr_t y, int64_t y_stride, int threads) {
    const QNorm norm = norm_of(groups, rows, depth, x, x_stride, sums, scale, y_scale, zero_point, eps, bits);
    const QNormProblem p{norm, rows, static_cast<uint8_t*>(pointer(y)), y_stride};
    py::gil_scoped_release release;
    return static_cast<int>(qnorm(p, threads));
}

int normalized_product(int64_t rows, uintptr_t x, int64_t x_stride, int64_t groups, uintptr_t sums, double scale, double a_scale,
                       int32_t a_zero_point, double eps, int a_bits, uintptr_t weight, int64_t weight_bytes, const Form& form,
                       uintptr_t channels, int64_t channels_stride, int type, bool plain, int activation, uintptr_t segments,
                       uintptr_t table, uintptr_t y, int64_t y_stride, int threads) {
    QGemmProblem p{};
    p.rows = rows;
    if (!read_weight(weight, weight_bytes, form, &p.weight)) return static_cast<int>(Status::bad_weight);
    const QNorm norm = norm_of(groups, rows, p.weight.depth, x, x_stride, sums, scale, a_scale, a_zero_point, eps, a_bits);
    p.norm = &norm;
    p.epilogue = epilogue(channels, channels_stride, type, plain, activation, segments, table, 0, 0, 0, 1.0f, 0, y, y_stride);
    py::gil_scoped_release release;
    return static_cast<int>(qgemm(p, threads));
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
    py::gil_scoped_release release;
    return static_cast<int>(qseparable_context(p, threads));
}

int separable_gate(const Sizes& size, std::array<int64_t, 2> patch, uintptr_t v, const std::array<int64_t, 3>& v_stride,
                   int32_t v_zero_point, uintptr_t context, float scale, int32_t zero_point, int bits, uintptr_t y, int threads) {
    QSeparableGateProblem p{};
    p.size = phases_of(size, patch);
    p.v = phase_map(v, v_stride), p.v_zero_point = v_zero_point;
    p.context = floats(context), p.scale = scale;
    p.byte = byte_of(zero_point, bits);
    p.y = static_cast<uint8_t*>(pointer(y));
    py::gil_scoped_release release;
    return static_cast<int>(qseparable_gate(p, threads));
}

// Sizes are (B, C, H, W), of x; strides likewise, in bytes.
int quantized_convolution(const Sizes& size, int64_t kernel, int64_t stride, uintptr_t x, const Sizes& x_stride, uintptr_t second,
                          int64_t second_channels, const Sizes& second_stride, uintptr_t zero_point, uintptr_t border, uintptr_t weight,
                          int64_t weight_bytes, const Form& form, uintptr_t filtered, uintptr_t channels, int64_t channels_stride, int type,
                          bool plain, int activation, uintptr_t segments, uintptr_t table, uintptr_t residual, int residual_type,
                          float residual_scale, int32_t residual_zero_point, uintptr_t y, int threads) {
    QConv2dProblem p{};
    p.batch = size[0], p.height = size[2], p.width = size[3];
    p.kernel = kernel, p.stride = stride;
    p.x = {bytes(x), size[1], x_stride[0], x_stride[2], x_stride[3]};
    p.second = {bytes(second), second_channels, second_stride[0], second_stride[2], second_stride[3]};
    p.zero_point = ints(zero_point), p.border = ints(border);
    if (!read_weight(weight, weight_bytes, form, &p.weight)) return static_cast<int>(Status::bad_weight);
    p.filtered = static_cast<const int16_t*>(pointer(filtered));
    p.epilogue = epilogue(channels, channels_stride, type, plain, activation, segments, table, residual, residual_type, p.weight.columns,
                          residual_scale, residual_zero_point, y, p.weight.columns);
    py::gil_scoped_release release;
    return static_cast<int>(qconv2d(p, threads));
}

int mlp(int dtype, int64_t groups, int64_t rows, int64_t dim, int64_t hidden, uintptr_t weight1, uintptr_t bias1, uintptr_t weight2,
        uintptr_t bias2, bool layer_norm, uintptr_t moments, float eps, int activation, uintptr_t x, uintptr_t y, uintptr_t collected,
        int threads) {
    FeedForwardProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.groups = groups, p.rows = rows, p.dim = dim, p.hidden = hidden;
    p.weight1 = floats(weight1), p.bias1 = floats(bias1), p.weight2 = floats(weight2), p.bias2 = floats(bias2);
    p.layer_norm = layer_norm, p.moments = static_cast<const Moments*>(pointer(moments)), p.eps = eps;
    p.activation = static_cast<Activation>(activation);
    p.x = pointer(x), p.y = pointer(y);
    p.collected = static_cast<Moments*>(pointer(collected));
    py::gil_scoped_release release;
    return static_cast<int>(feed_forward(p, threads));
}

int attention_block(int dtype, const Sizes& size, std::array<int64_t, 2> patch, uintptr_t query, uintptr_t key_weight, uintptr_t key_bias,
                    uintptr_t value_weight, uintptr_t value_bias, uintptr_t out_weight, uintptr_t out_bias, uintptr_t moments, float eps,
                    uintptr_t x, uintptr_t y, uintptr_t collected, int threads) {
    SeparableAttentionBlockProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.batch = size[0], p.dim = size[1], p.height = size[2], p.width = size[3];
    p.patch_h = patch[0], p.patch_w = patch[1];
    p.query = floats(query);
    p.key_weight = floats(key_weight), p.key_bias = floats(key_bias);
    p.value_weight = floats(value_weight), p.value_bias = floats(value_bias);
    p.out_weight = floats(out_weight), p.out_bias = floats(out_bias);
    p.moments = static_cast<const Moments*>(pointer(moments)), p.eps = eps;
    p.x = pointer(x), p.y = pointer(y);
    p.collected = static_cast<Moments*>(pointer(collected));
    py::gil_scoped_release release;
    return static_cast<int>(separable_attention_block(p, threads));
}

int residual_block(int dtype, const Sizes& size, int64_t hidden, int64_t columns, int stride, uintptr_t expand_weight,
                   uintptr_t expand_bias, uintptr_t depthwise_weight, uintptr_t depthwise_bias, uintptr_t reduce_weight,
                   uintptr_t reduce_bias, int activation, bool residual, uintptr_t x, uintptr_t y, uintptr_t collected, int threads) {
    InvertedResidualProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.batch = size[0], p.channels = size[1], p.height = size[2], p.width = size[3];
    p.hidden = hidden, p.columns = columns, p.stride = stride;
    p.expand_weight = floats(expand_weight), p.expand_bias = floats(expand_bias);
    p.depthwise_weight = floats(depthwise_weight), p.depthwise_bias = floats(depthwise_bias);
    p.reduce_weight = floats(reduce_weight), p.reduce_bias = floats(reduce_bias);
    p.activation = static_cast<Activation>(activation), p.residual = residual;
    p.x = pointer(x), p.y = pointer(y);
    p.collected = static_cast<Moments*>(pointer(collected));
    py::gil_scoped_release release;
    return static_cast<int>(inverted_residual(p, threads));
}

InputMap input_map(uintptr_t address, int64_t channels, const Sizes& stride) {
    return {pointer(address), channels, stride[0], stride[1], stride[2], stride[3]};
}

// Sizes are (B, C, H, W), of x; strides likewise.
int convolution(int dtype, const Sizes& size, int64_t columns, int64_t kernel, int64_t stride, int method, uintptr_t x,
                const Sizes& x_stride, uintptr_t second, int64_t second_channels, const Sizes& second_stride, uintptr_t weight,
                uintptr_t bias, int activation, uintptr_t residual, uintptr_t y, int threads) {
    Conv2dProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.batch = size[0], p.height = size[2], p.width = size[3];
    p.columns = columns, p.kernel = kernel, p.stride = stride;
    p.method = static_cast<Conv2dMethod>(method);
    p.x = input_map(x, size[1], x_stride);
    p.second = input_map(second, second_channels, second_stride);
    p.weight = floats(weight), p.bias = floats(bias);
    p.activation = static_cast<Activation>(activation);
    p.residual = pointer(residual), p.y = pointer(y);
    py::gil_scoped_release release;
    return static_cast<int>(conv2d(p, threads));
}

int depthwise_convolution(int dtype, const Sizes& size, int64_t stride, uintptr_t x, const Sizes& x_stride, uintptr_t weight,
                          int64_t weight_stride, uintptr_t bias, int activation, uintptr_t y, int threads) {
    DepthwiseConv2dProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.batch = size[0], p.channels = size[1], p.height = size[2], p.width = size[3];
    p.stride = stride;
    p.x = pointer(x);
    p.image_stride = x_stride[0], p.row_stride = x_stride[2], p.pixel_stride = x_stride[3];
    p.weight = floats(weight), p.weight_stride = weight_stride, p.bias = floats(bias);
    p.activation = static_cast<Activation>(activation);
    p.y = pointer(y);
    py::gil_scoped_release release;
    return static_cast<int>(depthwise_conv2d(p, threads));
}

PatchAttentionProblem problem(int dtype, const Sizes& size, int64_t heads, std::array<int64_t, 2> patch, float scale) {
    PatchAttentionProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.batch = size[0], p.dim = size[1] / 3, p.heads = heads;
    p.height = size[2], p.width = size[3], p.patch_h = patch[0], p.patch_w = patch[1];
    p.scale = scale;
    return p;
}

void leave_out_channels(const Sizes& stride, int64_t (&to)[3]) { to[0] = stride[0], to[1] = stride[2], to[2] = stride[3]; }

int softmax_attention(int dtype, const Sizes& qkv_size, int64_t heads, std::array<int64_t, 2> patch, float scale, uintptr_t qkv,
                      const Sizes& qkv_stride, uintptr_t y, const Sizes& y_stride, int threads) {
    PatchAttentionProblem p = problem(dtype, qkv_size, heads, patch, scale);
    p.qkv = pointer(qkv), p.y = pointer(y);
    leave_out_channels(qkv_stride, p.qkv_stride);
    leave_out_channels(y_stride, p.y_stride);
    py::gil_scoped_release release;
    return static_cast<int>(patch_attention(p, threads));
}

int softmax_attention_backward(int dtype, const Sizes& qkv_size, int64_t heads, std::array<int64_t, 2> patch, float scale, uintptr_t qkv,
                               const Sizes& qkv_stride, uintptr_t dy, const Sizes& dy_stride, uintptr_t dqkv, const Sizes& dqkv_stride,
                               int threads) {
    PatchAttentionProblem p = problem(dtype, qkv_size, heads, patch, scale);
    p.qkv = pointer(qkv), p.y = pointer(dy), p.dqkv = pointer(dqkv);
    leave_out_channels(qkv_stride, p.qkv_stride);
    leave_out_channels(dy_stride, p.y_stride);
    leave_out_channels(dqkv_stride, p.dqkv_stride);
    py::gil_scoped_release release;
    return static_cast<int>(patch_attention_backward(p, threads));
}

int layer_normalize(int dtype, int64_t rows, int64_t channels, uintptr_t x, uintptr_t weight, uintptr_t bias, float eps, uintptr_t y,
                    int threads) {
    LayerNormProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.rows = rows, p.channels = channels;
    p.eps = eps;
    p.weight = floats(weight), p.bias = floats(bias);
    p.x = pointer(x), p.y = pointer(y);
    py::gil_scoped_release release;
    return static_cast<int>(layer_norm(p, threads));
}

int layer_normalize_backward(int dtype, int64_t rows, int64_t channels, uintptr_t dy, uintptr_t x, uintptr_t weight, float eps,
                             uintptr_t dx, uintptr_t dweight, uintptr_t dbias, int threads) {
    LayerNormProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.rows = rows, p.channels = channels;
    p.eps = eps;
    p.weight = floats(weight);
    p.x = pointer(x), p.dy = pointer(dy), p.dx = pointer(dx);
    p.dweight = static_cast<float*>(pointer(dweight)), p.dbias = static_cast<float*>(pointer(dbias));
    py::gil_scoped_release release;
    return static_cast<int>(layer_norm_backward(p, threads));
}

std::vector<std::string> isas(bool (*holds)(Isa)) {
    std::vector<std::string> names;
    for (int level = 0; level < isa_count; ++level)
        if (holds(static_cast<Isa>(level))) names.emplace_back(isa_name(static_cast<Isa>(level)));
    return names;
}

bool set_isa(const std::string& name) {
    for (int level = 0; level < isa_count; ++level)
        if (name == isa_name(static_cast<Isa>(level))) return isa_set(static_cast<Isa>(level));
    return false;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.def("isas_built", [] { return isas(isa_built); });
    m.def("isas_supported", [] { return isas(isa_supported); });
    m.def("isa", [] { return std::string(isa_name(isa_active())); });
    m.def("set_isa", set_isa);
    m.def("fingerprint", [](uintptr_t data, int64_t bytes) { return fingerprint(pointer(data), bytes); });
    m.def("fma_gflops", fma_gflops, py::call_guard<py::gil_scoped_release>());
    m.def("dot_gops", dot_gops, py::call_guard<py::gil_scoped_release>());

    m.def("separable_attention", attention);
    m.def("separable_attention_backward", attention_backward);
    m.def("separable_attention_block", attention_block);
    m.def("conv2d", convolution);
    m.def("depthwise_conv2d", depthwise_convolution);
    m.def("inverted_residual", residual_block);
    m.def("feed_forward", mlp);
    m.def("gemm", product);
    m.def("qdepthwise_conv2d", quantized_depthwise_convolution);
    m.def("qconv2d", quantized_convolution);
    m.def("qgemm", quantized_product);
    m.def("quantize", quantization<quantize>);
    m.def("dequantize", quantization<dequantize>);
    m.def("quantize_rows", quantization_of_rows);
    m.def("qadd", quantized_sum);
    m.def("qavg_pool", quantized_mean);
    m.def("qresize", quantized_resize);
    m.def("qlookup", lookup);
    m.def("qgemm_collect", collected_product);
    m.def("qnorm", normalize_stream);
    m.def("qnorm_gemm", normalized_product);
    m.def("qseparable_context", separable_context);
    m.def("qseparable_gate", separable_gate);
    m.def("patch_attention", softmax_attention);
    m.def("patch_attention_backward", softmax_attention_backward);
    m.def("group_norm", group_normalize);
    m.def("group_norm_backward", group_normalize_backward);
    m.def("layer_norm", layer_normalize);
    m.def("layer_norm_backward", layer_normalize_backward);
    m.def("unfold_patches", patches<unfold_patches>);
    m.def("fold_patches", patches<fold_patches>);
}
