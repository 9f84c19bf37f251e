// The extension mvit_kernels._cuda: pointers of a device, shapes and its stream in; nothing out, or an error with the name of the kernel
// and of what the launch came to. Tensors are checked in mvit_kernels/ops; nothing here knows torch. Launches run without the GIL.
#include <stdexcept>
#include <string>
#include <tuple>

#include "bind_qepilogue.h"
#include "cuda/ops/inverted_residual.h"
#include "cuda/ops/qconv2d.h"
#include "cuda/ops/qdepthwise_conv2d.h"
#include "cuda/ops/qfeed_forward.h"
#include "cuda/ops/qgemm.h"
#include "cuda/ops/qinverted_residual.h"
#include "cuda/ops/qnorm_gemm.h"
#include "cuda/ops/qpatch_attention.h"
#include "cuda/ops/qseparable_attention_block.h"
#include "cuda/ops/separable_attention_block.h"
#include "cuda/ops/separable_attention_image.h"

namespace py = pybind11;
using namespace mvit;

namespace {

// What `epilogue` (bind_qepilogue.h) takes.
using Epilogue = std::tuple<uintptr_t, int64_t, int, bool, int, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int, int64_t, float, int32_t,
                            uintptr_t, int64_t>;
// Columns, depth and bits of a weight.
using Form = std::array<int64_t, 3>;
// Sums of images and their pieces; scale, scale of the bytes and their zero-point; eps; bits.
using Norm = std::tuple<uintptr_t, int, double, double, int32_t, double, int>;

QEpilogue epilogue_of(const Epilogue& e) { return std::apply(epilogue, e); }
cuda::QFragments fragments(uintptr_t tiles, const Form& form) { return {bytes(tiles), form[0], form[1], static_cast<int>(form[2])}; }

int64_t* sums_at(uintptr_t address) { return static_cast<int64_t*>(pointer(address)); }

cuda::QPairNorm norm_of(const Norm& norm) {
    const auto& [sums, pieces, scale, y_scale, zero_point, eps, bits] = norm;
    const auto low = static_cast<float>(-zero_point), high = static_cast<float>((1 << bits) - 1 - zero_point);
    return {sums_at(sums), pieces, scale / y_scale, scale * scale, eps, low, high, zero_point};
}

template <class Launch>
void launch(const Launch& launch) {
    cuda::Launched done;
    {
        const py::gil_scoped_release release;
        done = launch();
    }
    if (done.error != 0)
        throw std::runtime_error(std::string(done.kernel) + ": the CUDA kernel was not launched: " + cuda::error_name(done.error) + ", " +
                                 cuda::error_text(done.error));
}

void product(int device, uintptr_t stream, int64_t rows, uintptr_t a, int64_t a_stride, uintptr_t tiles, const Form& form,
             const Epilogue& e, uintptr_t row_scale, uintptr_t row_zero_point, uintptr_t column_sum) {
    cuda::QGemmProblem p{rows, bytes(a), a_stride, form[1], fragments(tiles, form), epilogue_of(e)};
    p.epilogue.row_scale = floats(row_scale), p.epilogue.row_zero_point = ints(row_zero_point), p.epilogue.column_sum = ints(column_sum);
    launch([&] { return cuda::qgemm(p, device, pointer(stream)); });
}

// Sizes are (B, C, H, W), of x; strides likewise. A residual is as dense as y.
void convolution(int device, uintptr_t stream, const Sizes& size, int kernel, int stride, uintptr_t x, const Sizes& x_stride,
                 uintptr_t second, int64_t second_channels, const Sizes& second_stride, uintptr_t border, uintptr_t tiles, const Form& form,
                 const Epilogue& e) {
    const auto map = [](uintptr_t data, int64_t channels, const Sizes& strides) {
        return cuda::QMap{bytes(data), channels, strides[0], strides[2], strides[3]};
    };
    const cuda::QConv2dProblem p{size[0],
                                 size[2],
                                 size[3],
                                 kernel,
                                 stride,
                                 map(x, size[1], x_stride),
                                 map(second, second_channels, second_stride),
                                 ints(border),
                                 fragments(tiles, form),
                                 epilogue_of(e)};
    launch([&] { return cuda::qconv2d(p, device, pointer(stream)); });
}

void depthwise_convolution(int device, uintptr_t stream, const Sizes& size, int stride, uintptr_t x, const Sizes& x_stride, uintptr_t taps,
                           uintptr_t border, const Epilogue& e) {
    const cuda::QDepthwiseConv2dProblem p{
        size[0],      size[2],       size[3],     size[1],     stride,
        bytes(x),     x_stride[0],   x_stride[2], x_stride[3], static_cast<const uint32_t*>(pointer(taps)),
        ints(border), epilogue_of(e)};
    launch([&] { return cuda::qdepthwise_conv2d(p, device, pointer(stream)); });
}

// size: (B, C, H, W). weights: query, gamma, beta, key, its bias, the tiles of values and their bias, those of the output and its bias.
// scratch: scores, partial moments, context, moments.
void attention_block(int device, uintptr_t stream, int dtype, const Sizes& size, const std::array<int, 2>& patch, float eps, uintptr_t x,
                     uintptr_t y, const std::array<uintptr_t, 9>& weights, uintptr_t moments, const std::array<uintptr_t, 4>& scratch) {
    const auto doubles = [](uintptr_t address) { return static_cast<double*>(pointer(address)); };
    const auto writable = [](uintptr_t address) { return static_cast<float*>(pointer(address)); };
    cuda::SeparableAttentionBlockProblem p{};
    p.dtype = static_cast<DType>(dtype), p.batch = size[0], p.channels = static_cast<int>(size[1]);
    p.height = static_cast<int>(size[2]), p.width = static_cast<int>(size[3]), p.patch_height = patch[0], p.patch_width = patch[1];
    p.eps = eps, p.x = pointer(x), p.y = pointer(y);
    p.query = floats(weights[0]), p.gamma = floats(weights[1]), p.beta = floats(weights[2]);
    p.key = floats(weights[3]), p.key_bias = floats(weights[4]);
    p.value_tiles = bytes(weights[5]), p.value_bias = floats(weights[6]), p.out_tiles = bytes(weights[7]), p.out_bias = floats(weights[8]);
    p.moments = doubles(moments);
    p.scores = writable(scratch[0]), p.partial = doubles(scratch[1]), p.context = writable(scratch[2]), p.normal = writable(scratch[3]);
    launch([&] { return cuda::separable_attention_block(p, device, pointer(stream)); });
}

// size: (B, C, H, W). moments: of y, or 0. exchange: scratch, of images that take several blocks.
void attention_image(int device, uintptr_t stream, int dtype, const Sizes& size, const std::array<int, 2>& patch, float eps, uintptr_t x,
                     uintptr_t y, uintptr_t tiles, uintptr_t vectors, uintptr_t moments, uintptr_t exchange) {
    cuda::SeparableAttentionImageProblem p{};
    p.dtype = static_cast<DType>(dtype), p.batch = size[0], p.channels = static_cast<int>(size[1]);
    p.height = static_cast<int>(size[2]), p.width = static_cast<int>(size[3]), p.patch_height = patch[0], p.patch_width = patch[1];
    p.eps = eps, p.x = pointer(x), p.y = pointer(y), p.tiles = bytes(tiles), p.vectors = floats(vectors);
    p.moments = static_cast<double*>(pointer(moments)), p.exchange = static_cast<uint8_t*>(pointer(exchange));
    launch([&] { return cuda::separable_attention_image(p, device, pointer(stream)); });
}

// What both inverted residuals are given alike. size: (B, C, H, W), of x.
template <class Problem>
Problem residual_problem(const Sizes& size, int hidden, int columns, int stride) {
    Problem p{};
    p.batch = size[0], p.channels = static_cast<int>(size[1]);
    p.height = static_cast<int>(size[2]), p.width = static_cast<int>(size[3]);
    p.hidden = hidden, p.columns = columns, p.stride = stride;
    return p;
}

void inverted_residual(int device, uintptr_t stream, int dtype, const Sizes& size, int hidden, int columns, int stride, bool residual,
                       uintptr_t x, uintptr_t y, uintptr_t slices, uintptr_t bias) {
    auto p = residual_problem<cuda::InvertedResidualProblem>(size, hidden, columns, stride);
    p.dtype = static_cast<DType>(dtype), p.residual = residual;
    p.x = pointer(x), p.y = pointer(y), p.slices = bytes(slices), p.bias = floats(bias);
    launch([&] { return cuda::inverted_residual(p, device, pointer(stream)); });
}

void integer_inverted_residual(int device, uintptr_t stream, const Sizes& size, int hidden, int columns, int stride, int padding,
                               uintptr_t x, uintptr_t slices, uintptr_t expand_curve, uintptr_t filter_curve, const Epilogue& e) {
    const auto curve = [](uintptr_t address) { return static_cast<const int16_t*>(pointer(address)); };
    auto p = residual_problem<cuda::QInvertedResidualProblem>(size, hidden, columns, stride);
    p.padding = static_cast<uint32_t>(padding) * 0x01010101u;
    p.x = bytes(x), p.slices = bytes(slices), p.expand_curve = curve(expand_curve), p.filter_curve = curve(filter_curve);
    p.reduce = epilogue_of(e);
    launch([&] { return cuda::qinverted_residual(p, device, pointer(stream)); });
}

void integer_feed_forward(int device, uintptr_t stream, int64_t batch, int pixels, int channels, int hidden, uintptr_t x, const Norm& norm,
                          uintptr_t slices, uintptr_t curve, const Epilogue& e, uintptr_t parts) {
    const cuda::QFeedForwardProblem p{batch,
                                      pixels,
                                      channels,
                                      hidden,
                                      static_cast<const int16_t*>(pointer(x)),
                                      norm_of(norm),
                                      bytes(slices),
                                      static_cast<const int16_t*>(pointer(curve)),
                                      epilogue_of(e),
                                      sums_at(parts)};
    launch([&] { return cuda::qfeed_forward(p, device, pointer(stream)); });
}

using Patch = std::array<int, 2>;
// Zero-point and bits of bytes.
using Byte = std::array<int, 2>;

QByte byte_of(const Byte& byte) { return qbyte_of_inverse(1.0f, byte[0], byte[1]); }

// size: (B, C, H, W), of x.
cuda::QAttentionMap attention_map(const Sizes& size, const Patch& patch, uintptr_t x, const Norm& norm) {
    const auto small = [](int64_t value) { return static_cast<int>(value); };
    return {size[0],      small(size[2]), small(size[3]), small(size[1]), patch[0], patch[1], static_cast<const int16_t*>(pointer(x)),
            norm_of(norm)};
}

void attention_context(int device, uintptr_t stream, const Sizes& size, const Patch& patch, uintptr_t x, const Norm& norm, uintptr_t query,
                       uintptr_t channels, int64_t channels_stride, uintptr_t table, double scale, const Byte& byte, uintptr_t context) {
    const cuda::QAttentionContextProblem p{
        attention_map(size, patch, x, norm),    bytes(query), channels_at(channels, channels_stride), ints(table), scale, byte_of(byte),
        static_cast<uint8_t*>(pointer(context))};
    launch([&] { return cuda::qattention_context(p, device, pointer(stream)); });
}

void attention_values(int device, uintptr_t stream, const Sizes& size, const Patch& patch, uintptr_t x, const Norm& norm, uintptr_t key,
                      float ratio, const Byte& v, const Byte& byte, uintptr_t slices, const Epilogue& e, uintptr_t parts) {
    const QByte values = byte_of(v);
    const auto positive = [](float bound) { return bound > 0.0f ? bound : 0.0f; };
    const cuda::QAttentionValuesProblem p{attention_map(size, patch, x, norm),
                                          floats(key),
                                          ratio,
                                          positive(values.low),
                                          positive(values.high),
                                          byte_of(byte),
                                          bytes(slices),
                                          epilogue_of(e),
                                          sums_at(parts)};
    launch([&] { return cuda::qattention_values(p, device, pointer(stream)); });
}

void norm_and_product(int device, uintptr_t stream, int64_t groups, int rows, int channels, int columns, uintptr_t x, const Norm& norm,
                      uintptr_t slices, const Epilogue& e) {
    const cuda::QNormGemmProblem p{groups,        rows,          channels,      columns, static_cast<const int16_t*>(pointer(x)),
                                   norm_of(norm), bytes(slices), epilogue_of(e)};
    launch([&] { return cuda::qnorm_gemm(p, device, pointer(stream)); });
}

// size: (B, d, H, W), of y; strides of qkv from image to image, row to row and pixel to pixel.
void quantized_softmax_attention(int device, uintptr_t stream, const Sizes& size, int64_t heads, const std::array<int64_t, 2>& patch,
                                 uintptr_t qkv, const std::array<int64_t, 3>& stride, int32_t q_zero_point, int32_t v_zero_point,
                                 float score_steps, float ratio, uintptr_t table, int32_t zero_point, int bits, uintptr_t y) {
    cuda::QPatchAttentionProblem p{};
    p.batch = size[0], p.dim = size[1], p.heads = heads, p.height = size[2], p.width = size[3];
    p.patch_h = patch[0], p.patch_w = patch[1];
    p.qkv = bytes(qkv), p.image_stride = stride[0], p.row_stride = stride[1], p.pixel_stride = stride[2];
    p.q_zero_point = q_zero_point, p.v_zero_point = v_zero_point, p.score_steps = score_steps, p.ratio = ratio;
    p.table = bytes(table), p.byte = qbyte_of_inverse(1.0f, zero_point, bits);
    p.y = static_cast<uint8_t*>(pointer(y));
    launch([&] { return cuda::qpatch_attention(p, device, pointer(stream)); });
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.def("shared_of_block", cuda::shared_of_block);
    m.def("inverted_residual", inverted_residual);
    m.def("inverted_residual_shared", cuda::inverted_residual_shared);
    m.def("qgemm", product);
    m.def("qattention_context", attention_context);
    m.def("qattention_context_shared", cuda::qattention_context_shared);
    m.def("qattention_pieces", cuda::qattention_pieces);
    m.def("qattention_values", attention_values);
    m.def("qconv2d", convolution);
    m.def("qdepthwise_conv2d", depthwise_convolution);
    m.def("qfeed_forward", integer_feed_forward);
    m.def("qfeed_forward_pieces", cuda::qfeed_forward_pieces);
    m.def("qinverted_residual", integer_inverted_residual);
    m.def("qinverted_residual_shared", cuda::qinverted_residual_shared);
    m.def("qnorm_gemm", norm_and_product);
    m.def("qpatch_attention", quantized_softmax_attention);
    m.def("qpatch_attention_shared", cuda::qpatch_attention_shared);
    m.def("separable_attention_block", attention_block);
    m.def("separable_attention_image", attention_image);
    m.def("separable_attention_image_blocks", cuda::separable_attention_image_blocks);
    m.def("separable_attention_image_exchange", cuda::separable_attention_image_exchange);
    m.attr("qnorm_gemm_channels") = cuda::norm_gemm_channels;
}
