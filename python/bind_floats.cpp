// The ops on floats, and patches of elements of any kind.
#include "bind.h"
#include "cpu/ops/add.h"
#include "cpu/ops/attention.h"
#include "cpu/ops/avg_pool.h"
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
#include "cpu/ops/patches.h"
#include "cpu/ops/pool_mixer.h"
#include "cpu/ops/resize.h"
#include "cpu/ops/separable_attention.h"
#include "cpu/ops/separable_attention_block.h"

namespace py = pybind11;
using namespace mvit;

namespace {

Tensor4 tensor4(uintptr_t address, const Sizes& stride) { return {pointer(address), {stride[0], stride[1], stride[2], stride[3]}}; }

SeparableAttentionProblem problem(int dtype, const Sizes& size, std::array<int64_t, 2> patch) {
    return {static_cast<DType>(dtype), size[0], (size[1] - 1) / 2, {size[2], size[3]}, patch[0], patch[1], {}, {}, {}};
}

int attention_of_phases(int dtype, const Sizes& qkv_size, std::array<int64_t, 2> patch, uintptr_t qkv, const Sizes& qkv_stride, uintptr_t y,
                        const Sizes& y_stride, int threads) {
    SeparableAttentionProblem p = problem(dtype, qkv_size, patch);
    p.qkv = tensor4(qkv, qkv_stride);
    p.y = tensor4(y, y_stride);
    return launch<separable_attention>("separable_attention", p, threads);
}

int attention_backward(int dtype, const Sizes& qkv_size, std::array<int64_t, 2> patch, uintptr_t qkv, const Sizes& qkv_stride, uintptr_t dy,
                       const Sizes& dy_stride, uintptr_t dqkv, const Sizes& dqkv_stride, int threads) {
    SeparableAttentionProblem p = problem(dtype, qkv_size, patch);
    p.qkv = tensor4(qkv, qkv_stride);
    p.y = tensor4(dy, dy_stride);
    p.dqkv = tensor4(dqkv, dqkv_stride);
    return launch<separable_attention_backward>(nullptr, p, threads);
}

template <Status (*function)(const PatchesProblem&, int)>
int patches(int element_size, const Sizes& map_size, std::array<int64_t, 2> patch, bool channels_last, uintptr_t from, uintptr_t to,
            int threads) {
    const PatchesProblem p{element_size, map_size[0], map_size[1],   map_size[2],   map_size[3],
                           patch[0],     patch[1],    channels_last, pointer(from), pointer(to)};
    return launch<function>(nullptr, p, threads);
}

int group_normalize(int dtype, bool channels_last, const Sizes& size, uintptr_t x, uintptr_t weight, uintptr_t bias, float eps, uintptr_t y,
                    int threads) {
    GroupNormProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.channels_last = channels_last;
    p.batch = size[0], p.channels = size[1], p.positions = size[2] * size[3];
    p.eps = eps;
    p.weight = floats(weight), p.bias = floats(bias);
    p.x = pointer(x), p.y = pointer(y);
    return launch<group_norm>("group_norm", p, threads);
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
    return launch<group_norm_backward>(nullptr, p, threads);
}

int product(int dtype, int64_t groups, int64_t rows, int64_t depth, int64_t columns, uintptr_t a, int64_t a_stride, uintptr_t second,
            int64_t second_depth, int64_t second_stride, uintptr_t weight, uintptr_t bias, uintptr_t moments, bool layer_norm, float eps,
            int activation, uintptr_t residual, int64_t residual_stride, uintptr_t y, int64_t y_stride, uintptr_t collected, int threads) {
    GemmProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.groups = groups, p.rows = rows, p.depth = depth, p.columns = columns;
    p.a = pointer(a), p.a_stride = a_stride;
    p.second = pointer(second), p.second_depth = second_depth, p.second_stride = second_stride;
    p.weight = pointer(weight), p.bias = floats(bias);
    p.moments = static_cast<const Moments*>(pointer(moments)), p.layer_norm = layer_norm, p.eps = eps;
    p.activation = static_cast<Activation>(activation);
    p.residual = pointer(residual), p.residual_stride = residual_stride;
    p.y = pointer(y), p.y_stride = y_stride;
    p.collected = static_cast<Moments*>(pointer(collected));
    return launch<gemm>("gemm", p, threads);
}

int mlp(int dtype, int64_t groups, int64_t rows, int64_t dim, int64_t hidden, uintptr_t weight1, uintptr_t bias1, uintptr_t weight2,
        uintptr_t bias2, bool layer_norm, uintptr_t moments, float eps, int activation, uintptr_t x, uintptr_t y, uintptr_t collected,
        int threads) {
    FeedForwardProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.groups = groups, p.rows = rows, p.dim = dim, p.hidden = hidden;
    p.weight1 = pointer(weight1), p.bias1 = floats(bias1), p.weight2 = pointer(weight2), p.bias2 = floats(bias2);
    p.layer_norm = layer_norm, p.moments = static_cast<const Moments*>(pointer(moments)), p.eps = eps;
    p.activation = static_cast<Activation>(activation);
    p.x = pointer(x), p.y = pointer(y);
    p.collected = static_cast<Moments*>(pointer(collected));
    return launch<feed_forward>("feed_forward", p, threads);
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
    p.value_weight = pointer(value_weight), p.value_bias = floats(value_bias);
    p.out_weight = pointer(out_weight), p.out_bias = floats(out_bias);
    p.moments = static_cast<const Moments*>(pointer(moments)), p.eps = eps;
    p.x = pointer(x), p.y = pointer(y);
    p.collected = static_cast<Moments*>(pointer(collected));
    return launch<separable_attention_block>("separable_attention_block", p, threads);
}

int residual_block(int dtype, const Sizes& size, int64_t hidden, int64_t columns, int stride, uintptr_t expand_weight,
                   uintptr_t expand_bias, uintptr_t depthwise_weight, uintptr_t depthwise_bias, uintptr_t reduce_weight,
                   uintptr_t reduce_bias, int activation, bool residual, uintptr_t x, uintptr_t y, uintptr_t collected, int threads) {
    InvertedResidualProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.batch = size[0], p.channels = size[1], p.height = size[2], p.width = size[3];
    p.hidden = hidden, p.columns = columns, p.stride = stride;
    p.expand_weight = pointer(expand_weight), p.expand_bias = floats(expand_bias);
    p.depthwise_weight = floats(depthwise_weight), p.depthwise_bias = floats(depthwise_bias);
    p.reduce_weight = pointer(reduce_weight), p.reduce_bias = floats(reduce_bias);
    p.activation = static_cast<Activation>(activation), p.residual = residual;
    p.x = pointer(x), p.y = pointer(y);
    p.collected = static_cast<Moments*>(pointer(collected));
    return launch<inverted_residual>("inverted_residual", p, threads);
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
    p.weight = pointer(weight), p.bias = floats(bias);
    p.activation = static_cast<Activation>(activation);
    p.residual = pointer(residual), p.y = pointer(y);
    return launch<conv2d>("conv2d", p, threads);
}

int depthwise_convolution(int dtype, const Sizes& size, int64_t channels, int64_t stride, uintptr_t x, const Sizes& x_stride,
                          uintptr_t weight, int64_t weight_stride, uintptr_t bias, int activation, uintptr_t y, int threads) {
    DepthwiseConv2dProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.batch = size[0], p.channels = channels, p.height = size[2], p.width = size[3];
    p.stride = stride, p.multiplier = size[1] > 0 ? channels / size[1] : 1;
    p.x = pointer(x);
    p.image_stride = x_stride[0], p.row_stride = x_stride[2], p.pixel_stride = x_stride[3];
    p.weight = floats(weight), p.weight_stride = weight_stride, p.bias = floats(bias);
    p.activation = static_cast<Activation>(activation);
    p.y = pointer(y);
    return launch<depthwise_conv2d>("depthwise_conv2d", p, threads);
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
    return launch<patch_attention>("patch_attention", p, threads);
}

int softmax_attention_backward(int dtype, const Sizes& qkv_size, int64_t heads, std::array<int64_t, 2> patch, float scale, uintptr_t qkv,
                               const Sizes& qkv_stride, uintptr_t dy, const Sizes& dy_stride, uintptr_t dqkv, const Sizes& dqkv_stride,
                               int threads) {
    PatchAttentionProblem p = problem(dtype, qkv_size, heads, patch, scale);
    p.qkv = pointer(qkv), p.y = pointer(dy), p.dqkv = pointer(dqkv);
    leave_out_channels(qkv_stride, p.qkv_stride);
    leave_out_channels(dy_stride, p.y_stride);
    leave_out_channels(dqkv_stride, p.dqkv_stride);
    return launch<patch_attention_backward>(nullptr, p, threads);
}

// q_size is (B, N, heads depth), kv_size (M, heads value_depth); strides leave out channels.
int free_attention(int dtype, std::array<int64_t, 3> q_size, std::array<int64_t, 2> kv_size, int64_t heads, float scale, uintptr_t q,
                   std::array<int64_t, 2> q_stride, uintptr_t k, std::array<int64_t, 2> k_stride, uintptr_t v,
                   std::array<int64_t, 2> v_stride, uintptr_t bias, int64_t bias_stride, uintptr_t mix_scores, uintptr_t mix_weights,
                   uintptr_t mix_bias, uintptr_t y, int threads) {
    AttentionProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.batch = q_size[0], p.heads = heads, p.queries = q_size[1], p.keys = kv_size[0];
    p.depth = q_size[2] / heads, p.value_depth = kv_size[1] / heads;
    p.scale = scale;
    p.q = pointer(q), p.k = pointer(k), p.v = pointer(v), p.y = pointer(y);
    for (size_t i = 0; i < 2; ++i) p.q_stride[i] = q_stride[i], p.k_stride[i] = k_stride[i], p.v_stride[i] = v_stride[i];
    p.bias = floats(bias), p.bias_stride = bias_stride;
    p.mix_scores = floats(mix_scores), p.mix_weights = floats(mix_weights), p.mix_bias = floats(mix_bias);
    p.y_stride[0] = p.queries * kv_size[1], p.y_stride[1] = kv_size[1];
    return launch<attention>("attention", p, threads);
}

// size is (B, C, H, W).
int mix_by_pooling(int dtype, const Sizes& size, uintptr_t x, uintptr_t scale, uintptr_t y, int threads) {
    const PoolMixerProblem p{static_cast<DType>(dtype), size[0], size[2], size[3], size[1], pointer(x), floats(scale), pointer(y)};
    return launch<pool_mixer>("pool_mixer", p, threads);
}

// size is (B, C, H, W).
int mean_of_pixels(int dtype, const Sizes& size, uintptr_t x, uintptr_t y, int threads) {
    const AvgPoolProblem p{static_cast<DType>(dtype), size[0], size[2] * size[3], size[1], pointer(x), pointer(y)};
    return launch<avg_pool>("avg_pool", p, threads);
}

// b may be 0; y may be a or b.
int sum(int dtype, int64_t count, int activation, uintptr_t a, uintptr_t b, uintptr_t y, int threads) {
    const AddProblem p{static_cast<DType>(dtype), count, static_cast<Activation>(activation), pointer(a), pointer(b), pointer(y)};
    return launch<add>("add", p, threads);
}

// size is (B, C, H, W).
int resize_map(int dtype, const Sizes& size, std::array<int64_t, 2> out_size, bool align_corners, uintptr_t x, uintptr_t y, int threads) {
    const ResizeProblem p{
        static_cast<DType>(dtype), size[0], size[1], size[2], size[3], out_size[0], out_size[1], align_corners, pointer(x), pointer(y)};
    return launch<resize>("resize", p, threads);
}

// size is (B, C, H, W).
int relu_by_slopes(int dtype, const Sizes& size, uintptr_t x, uintptr_t u, uintptr_t y, int threads) {
    const DynamicReluProblem p{static_cast<DType>(dtype), size[0], size[2] * size[3], size[1], pointer(x), pointer(u), pointer(y)};
    return launch<dynamic_relu>("dynamic_relu", p, threads);
}

int gate(int dtype, int64_t count, uintptr_t x, uintptr_t u, uintptr_t y, int threads) {
    const HardGateProblem p{static_cast<DType>(dtype), count, pointer(x), pointer(u), pointer(y)};
    return launch<hard_gate>("hard_gate", p, threads);
}

int layer_normalize(int dtype, int64_t rows, int64_t channels, uintptr_t x, uintptr_t weight, uintptr_t bias, float eps, uintptr_t y,
                    int threads) {
    LayerNormProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.rows = rows, p.channels = channels;
    p.eps = eps;
    p.weight = floats(weight), p.bias = floats(bias);
    p.x = pointer(x), p.y = pointer(y);
    return launch<layer_norm>("layer_norm", p, threads);
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
    return launch<layer_norm_backward>(nullptr, p, threads);
}

}  // namespace

void mvit::bind_floats(py::module_& m) {
    m.def("separable_attention", attention_of_phases);
    m.def("separable_attention_backward", attention_backward);
    m.def("separable_attention_block", attention_block);
    m.def("conv2d", convolution);
    m.def("depthwise_conv2d", depthwise_convolution);
    m.def("inverted_residual", residual_block);
    m.def("feed_forward", mlp);
    m.def("gemm", product);
    m.def("patch_attention", softmax_attention);
    m.def("attention", free_attention);
    m.def("avg_pool", mean_of_pixels);
    m.def("add", sum);
    m.def("resize", resize_map);
    m.def("pool_mixer", mix_by_pooling);
    m.def("dynamic_relu", relu_by_slopes);
    m.def("hard_gate", gate);
    m.def("patch_attention_backward", softmax_attention_backward);
    m.def("group_norm", group_normalize);
    m.def("group_norm_backward", group_normalize_backward);
    m.def("layer_norm", layer_normalize);
    m.def("layer_norm_backward", layer_normalize_backward);
    m.def("unfold_patches", patches<unfold_patches>);
    m.def("fold_patches", patches<fold_patches>);
}
