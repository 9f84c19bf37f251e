// A map of bytes in another size, bilinearly; scale and zero-point stay (mvit_kernels/reference/qresize.py).
//
// Outputs lie between inputs as core/between.h says. The weight of the second is w = rint(2^11 (at - first)), of the first 2^11 - w. The
// four products of weights of both axes times bytes are summed exactly in int32, at most 255 2^22, and
//
//     y = rint(float(sum) * 2^-22)          ties to even; the bytes' own zero-point needs no thought, as the weights add up to one
//
// A weight is off by at most 2^-12, so y by less than 1/8 before it is rounded. A map of one value stays one, and a size that does not
// change leaves every byte.
//
// Floor: x read and y written once.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

inline constexpr int32_t resize_one = 1 << 11;

struct QResizeProblem {
    int64_t batch, channels, height, width, out_height, out_width;
    bool align_corners;
    const uint8_t* x;  // (batch, height, width, channels)
    uint8_t* y;        // likewise
};

Status qresize(const QResizeProblem& problem, int threads);

// --- what isa/qresize.cpp implements ---

// Where an output lies between two inputs.
struct QResizeTap {
    int64_t first, second;
    int32_t weight;  // of second, of 2^11
};

struct QResizeKernels {
    // A row of y from the rows `top` and `bottom` of x.
    void (*row)(const uint8_t* top, const uint8_t* bottom, int32_t weight, const QResizeTap* columns, int64_t width, int64_t channels,
                uint8_t* y);
};

}  // namespace mvit
