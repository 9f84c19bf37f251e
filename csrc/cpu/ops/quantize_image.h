// A float32 image, channels first, as bytes, channels last: quantize (ops/quantize.h) and channels_last in one pass.
//
//     y[b, i, c] = rint(min(max(x[b, c, i] * float32(1 / scale), -z), most - z)) + z     most = 2^bits - 1; NaN becomes 0
//
// Floor: x read and y written once. Three channels are four bytes of memory for each byte of the result to read, which takes longer than
// the arithmetic.
#pragma once

#include "cpu/core/qreal.h"
#include "cpu/core/types.h"

namespace mvit {

struct QuantizeImageProblem {
    int64_t batch, channels, pixels;
    float scale;
    int32_t zero_point;
    int64_t bits;
    const float* x;  // (batch, channels, pixels)
    uint8_t* y;      // (batch, pixels, channels)
};

Status quantize_image(const QuantizeImageProblem& problem, int threads);

// --- what isa/quantize_image.cpp implements ---

struct QuantizeImageKernels {
    // `count` pixels; channels of x are so many values apart.
    void (*run)(const float* x, int64_t channel_stride, int64_t channels, int64_t count, const QByte&, uint8_t* y);
};

}  // namespace mvit
