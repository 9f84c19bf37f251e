// pool_mixer of bytes to bytes (mvit_kernels/reference/qpool_mixer.py). With n neighbours (4, 6 or 9; fewer in maps of one row or column)
//
//     d    = float(x - z_x),   sum = float(sum over the neighbours of x, minus n z_x)               both exact
//     t    = d * keep[c] + (sum * float32(1 / n)) * move[c]                                        four roundings, in this order
//     y    = rint(min(max(t, low), high)) + z_y
//     keep = float32((1 - scale) s_x / s_y),   move = float32(scale s_x / s_y)
//
// Floor: x read once and y written once, and 3 loads for each of a column of three.
#pragma once

#include "cpu/core/qreal.h"
#include "cpu/core/types.h"

namespace mvit {

// Maps are (batch, height, width, channels), dense. |zero_point| <= 2^20: differences and sums are exact in float32.
struct QPoolMixerProblem {
    int64_t batch, height, width, channels;
    const uint8_t* x;
    int32_t zero_point;
    const float *keep, *move;  // (channels,)
    QByte out;                 // without its inverse
    uint8_t* y;
};

Status qpool_mixer(const QPoolMixerProblem& problem, int threads);

// --- what isa/qpool_mixer.cpp implements ---

struct QPoolMixerKernels {
    // One row of pixels. Rows of x before and after it are null beyond the map.
    void (*row)(const QPoolMixerProblem&, const uint8_t* above, const uint8_t* here, const uint8_t* below, uint8_t* y);
};

}  // namespace mvit
