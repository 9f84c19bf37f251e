// A map in another size, bilinearly (torch.nn.functional.interpolate):
//
//     y = x00 w00 + x01 w01 + x10 w10 + x11 w11          the four inputs around an output, weighted by how near they are
//
// Where outputs lie between inputs is in core/between.h. Weights are products in float64, rounded once to float32; products and sums are
// float32 in this order. The error is a few roundings of the largest input around.
//
// Floor: x read and y written once.
#pragma once

#include "cpu/core/between.h"
#include "cpu/core/types.h"

namespace mvit {

struct ResizeProblem {
    DType dtype;
    int64_t batch, channels, height, width, out_height, out_width;
    bool align_corners;
    const void* x;  // (batch, height, width, channels)
    void* y;        // (batch, out_height, out_width, channels)
};

Status resize(const ResizeProblem& problem, int threads);

// --- what isa/resize.cpp implements ---

struct ResizeKernels {
    // A row of y from the rows `top` and `bottom` of x, the latter of this weight; indexed by DType.
    void (*row[3])(const void* top, const void* bottom, double weight, const Between* columns, int64_t width, int64_t channels, void* y);
};

}  // namespace mvit
