// How EfficientFormer mixes pixels (arXiv 2206.01191, section 4, after PoolFormer, arXiv 2111.11418): each is moved towards the mean of
// its 3x3 neighbourhood, at the border of those neighbours that exist,
//
//     y[p, c] = x[p, c] + scale[c] (mean over the neighbours of p of x[., c] - x[p, c])
//
// Floor: x read once and y written once, and 3 loads for each of a column of three.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

// Maps are (batch, height, width, channels), dense.
struct PoolMixerProblem {
    DType dtype;
    int64_t batch, height, width, channels;
    const void* x;
    const float* scale;  // (channels,)
    void* y;
};

Status pool_mixer(const PoolMixerProblem& problem, int threads);

// --- what isa/pool_mixer.cpp implements ---

struct PoolMixerKernels {
    // One row of pixels; indexed by DType. Rows of x before and after it are null beyond the map.
    void (*row[3])(const PoolMixerProblem&, const void* above, const void* here, const void* below, void* y);
};

}  // namespace mvit
