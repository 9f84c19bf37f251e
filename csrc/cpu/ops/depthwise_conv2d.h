// Depthwise 3x3 convolution (MobileNet, arXiv 1704.04861, equation 3) on channels-last memory, with bias and activation:
//
//     y[b, i, j, c] = act(bias[c] + sum_{ky, kx} x[b, s i + ky - 1, s j + kx - 1, c / m] w[c, ky, kx]),   x = 0 outside the map, s = 1 or 2
//
// with m filters for each channel of x. Where m > 1, some rows of x are repeated in scratch before they are filtered.
//
// Floor: 9 multiply-adds and one activation a value of y; x read and y written once. The three input rows of an output row stay in the
// second cache until the next two are done with them.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct DepthwiseConv2dProblem {
    DType dtype;                             // of x and y
    int64_t batch, height, width, channels;  // channels: of y
    int64_t stride;
    int64_t multiplier;  // m, which divides channels; 0 is 1
    const void* x;       // the channels of a pixel are contiguous; strides are in elements
    int64_t image_stride, row_stride, pixel_stride;
    const float* weight;    // tap by tap, [9][weight_stride]
    const float* bias;      // weight_stride values
    int64_t weight_stride;  // channels rounded up to a multiple of 16 or more, so that whole vectors can be read
    Activation activation;
    const void* slopes;  // (batch, 2 channels): a dynamic ReLU (ops/dynamic_relu.h) in the place of the activation; or null
    void* y;             // dense (B, ceil(H / s), ceil(W / s), C)
};

Status depthwise_conv2d(const DepthwiseConv2dProblem& problem, int threads);

// --- what isa/depthwise_conv2d.cpp implements: one output row ---

struct DepthwiseConv2dRow {
    const void* rows[3];  // null where outside the map
    void* y;
    const float* slopes;   // [a of all channels | b of all], or null
    int64_t pixel_stride;  // of rows
    const DepthwiseConv2dProblem& problem;
};

struct DepthwiseConv2dKernels {
    void (*row[3][2])(const DepthwiseConv2dRow&);  // by DType and stride - 1
};

}  // namespace mvit
