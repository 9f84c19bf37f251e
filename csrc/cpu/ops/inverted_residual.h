// Inverted residual (MobileNetV2, arXiv 1801.04381, figure 3), norms folded, on channels-last maps:
//
//     y = W_r act(depthwise3x3(act(W_e x + b_e)) + b_d) + b_r (+ x)
//
// padded with zeros of the expanded map. Without W_e, what is left is a depthwise convolution and a linear 1x1 (the local part of a
// MobileViTv2 block).
//
// A task is a band of output rows, walked a few rows a step: the expanded rows that a step needs and the filtered ones live in the second
// cache, and the last rows of a step stay where they are for the next. Only at the borders between bands are a row or two expanded twice.
// Expanded rows are float32 also where maps are not: the filter loads each value 4.5 times, with stride 2 1.7 times (core/depthwise.h), and
// would widen it as often. Without W_e it reads the map itself: to widen rows of that into scratch first was slower.
//
// Floor: 2 P (C E + 9 E / s^2 + E N / s^2) operations for P input pixels and stride s; x read and y written once.
#pragma once

#include "cpu/core/moments.h"
#include "cpu/core/products.h"
#include "cpu/core/types.h"

namespace mvit {

inline constexpr int64_t depthwise_stride(int64_t channels) { return round_up(channels, 16); }  // see core/depthwise.h

struct InvertedResidualProblem {
    DType dtype;  // of x and y: dense (B, H, W, C) and (B, ceil(H / stride), ceil(W / stride), N)
    int64_t batch, height, width, channels, hidden, columns;
    int stride;                 // 1 or 2
    const void* expand_weight;  // packed (core/tile.h), or null: hidden is channels then
    const float* expand_bias;
    const float* depthwise_weight;  // [9][depthwise_stride(hidden)]
    const float* depthwise_bias;    // depthwise_stride(hidden)
    const void* reduce_weight;      // packed
    const float* reduce_bias;
    Activation activation;
    const void *expand_slopes, *depthwise_slopes;  // (batch, 2 hidden) each: dynamic ReLUs (ops/dynamic_relu.h) instead; or null
    bool residual;
    const void* x;
    void* y;
    Moments* collected;  // of y, one an image, or null
};

Status inverted_residual(const InvertedResidualProblem& problem, int threads);

// --- what isa/inverted_residual.cpp implements: a band of output rows of an image ---

struct InvertedResidualBand {
    int64_t height, width, channels, hidden, columns;
    int stride;
    const void* expand_weight;
    const float *expand_bias, *depthwise_weight, *depthwise_bias;
    const void* reduce_weight;
    const float* reduce_bias;
    Activation activation;
    const float *expand_slopes, *depthwise_slopes;  // [a of all hidden channels | b of all], or null
    bool residual;
    const void* x;  // of the image
    void* y;
    int64_t begin, end, step;  // output rows, and how many at once
    float* scratch;            // inverted_residual_scratch floats
};

inline constexpr int64_t product_rows = 64;  // pixels a product at a time

// Floats of the expanded rows and the filtered rows of a step, and of a block of rows on its way into a product and out of one.
inline int64_t expanded_floats(int64_t width, int64_t hidden, int64_t stride, int64_t step) {
    return (stride * (step - 1) + 3) * width * scratch_stride(hidden);
}
inline int64_t inverted_residual_scratch(int64_t width, int64_t channels, int64_t hidden, int64_t columns, int64_t stride, int64_t step) {
    const int64_t out_width = (width - 1) / stride + 1;
    return expanded_floats(width, hidden, stride, step) + step * out_width * scratch_stride(hidden) +
           product_rows * (scratch_stride(channels) + product_floats(columns));
}

struct InvertedResidualKernels {
    void (*band[3])(const InvertedResidualBand&);  // by DType
};

}  // namespace mvit
