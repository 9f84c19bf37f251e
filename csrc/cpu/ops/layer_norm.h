// LayerNorm over the last axis (arXiv 1607.06450, equation 4; the norm of MobileViT's transformers), forward and backward. Over the C
// values of a row:
//
//     y[c] = xhat[c] weight[c] + bias[c],   xhat = (x - mean) / sigma,   sigma = sqrt(M2 / C + eps),   M2 = sum (x - mean)^2
//
//     dbias[c] = sum_rows dy,   dweight[c] = sum_rows dy xhat
//     dx = (dy weight[c] - s1 - xhat s2) / sigma,   s1 = mean_c(dy weight[c]),   s2 = mean_c(dy weight[c] xhat)
//
// The statistics take two passes over a row, which the first cache holds, and x - mean is formed before anything is multiplied: no
// cancellation, whatever mean / sigma is. The backward computes them again, which costs less than reading them from a tensor saved by the
// forward would gain. Sums over rows are float32 inside a block of rows and float64, in fixed order, over the blocks: neither depends on
// the threads.
//
// Floor: the forward reads x and writes y once; the backward reads x and dy and writes dx.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct LayerNormProblem {
    DType dtype;             // of x, y, dy, dx, all dense
    int64_t rows, channels;  // every axis but the last, and the last
    float eps;
    const float *weight, *bias;  // C values each
    const void* x;
    void* y;         // forward only
    const void* dy;  // these three: backward only
    void* dx;
    float *dweight, *dbias;  // C values each, summed over the rows
};

Status layer_norm(const LayerNormProblem& problem, int threads);
Status layer_norm_backward(const LayerNormProblem& problem, int threads);

// --- what isa/layer_norm.cpp implements, each on a block of rows ---

struct LayerNormKernels {
    // Indexed by DType.
    void (*normalize[3])(const void* x, void* y, int64_t rows, int64_t channels, float eps, const float* weight, const float* bias);
    // Writes dx, and adds sum dy to sums[0 .. C) and sum dy xhat to sums[C .. 2 C).
    void (*gradient[3])(const void* x, const void* dy, void* dx, int64_t rows, int64_t channels, float eps, const float* weight,
                        float* sums);
};

}  // namespace mvit
