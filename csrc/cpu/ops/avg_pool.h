// The mean of each channel of a map (global average pooling):
//
//     y[b, c] = (sum over pixels of x[b, i, c]) / pixels
//
// Sums are float32, over runs of 16 pixels, which are added in pairs, these sums in pairs again, and so on: no value goes through more
// additions than 16 and the logarithm of the number of runs. Lanes are channels, so the order is the same on every instruction set.
//
// Floor: x read once.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct AvgPoolProblem {
    DType dtype;
    int64_t batch, pixels, channels;
    const void* x;  // (batch, pixels, channels)
    void* y;        // (batch, channels)
};

Status avg_pool(const AvgPoolProblem& problem, int threads);

// --- what isa/avg_pool.cpp implements ---

struct AvgPoolKernels {
    // Of one image, channels [first, last); indexed by DType.
    void (*run[3])(const AvgPoolProblem&, int64_t image, int64_t first, int64_t last);
};

}  // namespace mvit
