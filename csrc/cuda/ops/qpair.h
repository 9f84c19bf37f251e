// What blocks of two products on an int16 stream (qpair.cuh) are given, as data.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

inline constexpr int pair_slice = 32;      // hidden channels that come at once
inline constexpr int pair_channels = 256;  // of the stream, at most

// The norm in front of the first product: cpu/core/qnorm.h, without gain.
struct QPairNorm {
    const int64_t* sums;        // (images, pieces, 2) of the stream: sum and sum of squares of each piece; or null: each pixel by its own
    int pieces;                 // of an image; every warp adds them up
    double ratio, square, eps;  // s / s_y and s s
    float low, high;            // what the bytes' range leaves once their zero-point is subtracted
    int32_t zero_point;
};

// Where int16 rows lie: `channels` values of each pixel, one pixel after the other.
struct QPairStream {
    const int16_t* x;
    int channels;
    bool aligned;  // eight values at a time, to 16 bytes
};

MVIT_BOTH bool pair_is_aligned(const void* p, int channels) { return channels % 8 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace mvit::cuda
