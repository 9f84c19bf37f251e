// The mean of each channel of a map of bytes (global average pooling), as bytes or floats (mvit_kernels/reference/qavg_pool.py):
//
//     sum = -H W z_a + sum over pixels of x,    t = float(sum) * scale,    y = t, or rint(min(max(t, low), high)) + z_y
//     scale = float32(s_a / (H W)) for floats, float32(s_a / (H W s_y)) for bytes
//
// Sums are exact: |sum| <= H W max(|z_a|, |255 - z_a|) < 2^31 is checked, and what comes before is modulo 2^32.
//
// Floor: x read once.
#pragma once

#include "cpu/core/qreal.h"
#include "cpu/core/types.h"

namespace mvit {

struct QAvgPoolProblem {
    int64_t batch, channels, pixels;
    bool channels_last;  // x is (batch, pixels, channels), else (batch, channels, pixels); dense
    const uint8_t* x;
    int32_t zero_point;
    float scale;
    bool floats;  // y is float, else bytes
    QByte out;    // of bytes; without its inverse
    void* y;      // (batch, channels)
};

// s_a / (H W s_y), the product and the quotient in double; out_scale 1 for floats.
inline float mean_scale(float a_scale, int64_t pixels, float out_scale) {
    return static_cast<float>(static_cast<double>(a_scale) / (static_cast<double>(pixels) * static_cast<double>(out_scale)));
}

Status qavg_pool(const QAvgPoolProblem& problem, int threads);

// --- what isa/qavg_pool.cpp implements ---

struct QAvgPoolKernels {
    // Of one image, channels [first, last).
    void (*channels_last)(const QAvgPoolProblem&, int64_t image, int64_t first, int64_t last);
    // Planes [first, last) of batch x channels.
    void (*channels_first)(const QAvgPoolProblem&, int64_t first, int64_t last);
};

}  // namespace mvit
