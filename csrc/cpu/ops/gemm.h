// Matrix product with what stands around it in a network:
//
//     y[m, n] = act(sum_k x[m, k] w[n, k] + bias[n]) + residual[m, n]
//
// where x is a itself, or a centred and scaled while it is loaded, or a and a second matrix side by side (a convolution or linear map of a
// concatenation that never exists):
//
//     moments:     x[m, k] = (a[m, k] - mean) / sqrt(variance + eps), mean and variance of the group of rows that m belongs to (GroupNorm
//                  with one group: a group is an image)
//     layer_norm:  the same with the mean and variance of row m itself
//
// gamma and beta of these norms belong in the weight and the bias: w diag(gamma), bias + w beta. a - mean is formed before anything is
// multiplied, so nothing cancels, whatever mean / sigma is. Moments of y can be collected for the next norm.
//
// Floor: 2 M N K operations; a and w read once, y written once.
#pragma once

#include "cpu/core/products.h"
#include "cpu/core/row_source.h"
#include "cpu/core/types.h"

namespace mvit {

struct GemmProblem {
    DType dtype;             // of a, second, residual and y
    int64_t groups, rows;    // rows: of one group
    int64_t depth, columns;  // K of a, N
    const void* a;           // groups * rows rows; strides are in elements, from row to row
    int64_t a_stride;
    const void* second;  // K of second more columns of x, or null with second_depth 0
    int64_t second_depth, second_stride;
    const void* weight;      // packed (core/tile.h), of depth + second_depth
    const float* bias;       // panels(N) * panel values
    const Moments* moments;  // one a group, or null
    bool layer_norm;
    float eps;
    Activation activation;
    const void* slopes;    // (groups, 2 N), of a dynamic ReLU (ops/dynamic_relu.h) in the place of activation and residual; or null
    const void* residual;  // or null
    int64_t residual_stride;
    void* y;
    int64_t y_stride;
    Moments* collected;  // of y, one a group, or null; y_stride is N then
};

Status gemm(const GemmProblem& problem, int threads);

// --- what isa/gemm.cpp implements: a block of rows times a range of panels ---

struct GemmBlock {
    RowSource source;
    int64_t rows, columns, panel_begin, panel_end;
    const void* weight;
    const float* bias;
    Activation activation;
    const float* slopes;  // [a of all columns | b of all], or null
    const void* residual;
    int64_t residual_stride;
    void* y;
    int64_t y_stride;
    float* scratch;  // gemm_scratch floats
};

inline int64_t gemm_scratch(int64_t rows, int64_t depth, int64_t columns) {
    return rows * (scratch_stride(depth) + product_floats(columns));
}

struct GemmKernels {
    void (*block[3])(const GemmBlock&);  // by DType
};

}  // namespace mvit
