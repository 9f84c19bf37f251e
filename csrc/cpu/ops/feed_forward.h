// The second half of a transformer layer, on rows (tokens or pixels) of d values:
//
//     y = x + W2 act(W1 norm(x) + b1) + b2
//
// norm is GroupNorm with one group (moments of each image), LayerNorm (each row by itself) or none; gamma and beta are folded into W1 and
// b1. A block of rows goes through both products: the hidden rows live in the second cache and no norm is ever written.
//
// Floor: 4 M d h operations; x read and y written once, the weights once a block.
#pragma once

#include "cpu/core/products.h"
#include "cpu/core/row_source.h"
#include "cpu/core/types.h"

namespace mvit {

struct FeedForwardProblem {
    DType dtype;                        // of x and y, dense rows
    int64_t groups, rows, dim, hidden;  // rows: of one group
    const void* weight1;                // packed (core/tile.h): hidden columns, depth dim
    const float* bias1;
    const void* weight2;  // packed: dim columns, depth hidden
    const float* bias2;
    bool as_it_is;           // no norm
    bool layer_norm;         // else GroupNorm
    const Moments* moments;  // of x, one a group, or null: GroupNorm computes them then
    float eps;
    Activation activation;
    const void* x;
    void* y;
    Moments* collected;  // of y, one a group, or null
};

Status feed_forward(const FeedForwardProblem& problem, int threads);

// --- what isa/feed_forward.cpp implements: a block of rows ---

struct FeedForwardBlock {
    RowSource source;
    int64_t rows, hidden;
    const void* weight1;
    const float* bias1;
    const void* weight2;
    const float* bias2;
    Activation activation;
    void* y;
    float* scratch;  // feed_forward_scratch floats
};

inline int64_t feed_forward_scratch(int64_t rows, int64_t dim, int64_t hidden) {
    return rows * (scratch_stride(dim) + scratch_stride(hidden) + product_floats(dim));
}

struct FeedForwardKernels {
    void (*block[3])(const FeedForwardBlock&);  // by DType
};

}  // namespace mvit
