// Convolution of maps of bytes on a GPU, k = 1 or 3: cpu/ops/qconv2d.h says what it computes. It is ops/qproduct.cuh on rows that are
// gathered while they are copied to shared memory: the bytes that a pixel of y sees, tap by tap, of each tap those of x and then of
// `second`, each with zeros up to the next 16 bytes; columns of the weight lie likewise. No row exists anywhere else.
//
// Of a 1x1 convolution of a map that is dense rows are where they lie, and it is a product of a matrix (ops/qgemm.h). Of a 3x3 convolution
// of at most five channels a row has the bytes of the three taps of a line together, 3 C of them, each line with zeros up to 16
// (qthin.cuh).
//
// A tap outside of the map is 16 bytes of zeros that the copy writes. So sums always begin with border[class][n], which has what init took
// away for such taps (cpu/ops/qconv2d.h): any int32 zero-point is right, also one that is no byte.
//
// Floor: 2 B H W / s^2 N K operations; x and w read once, y written once.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cuda/primitives/launched.h"
#include "cuda/primitives/qfragments.h"

namespace mvit::cuda {

// A map of bytes that is read where it lies: channels contiguous, strides in bytes.
struct QMap {
    const uint8_t* data;
    int64_t channels, image, row, pixel;
};

struct QConv2dProblem {
    int64_t batch, height, width;  // of x
    int kernel, stride;
    QMap x, second;         // second: or with 0 channels
    const int32_t* border;  // k = 3: 16 classes times whole panels of columns
    QFragments weight;
    QEpilogue epilogue;  // y and residual dense: (B, ceil(H / s), ceil(W / s), N)
};

// Whose taps of a line lie together (ops/qthin.cuh), as `parts_of` of mvit_kernels/ops/qfragments.py has it.
inline constexpr bool is_thin(const QConv2dProblem& p) { return p.kernel == 3 && p.second.channels == 0 && 3 * p.x.channels <= 16; }

// stream: a cudaStream_t of `device`.
Launched qconv2d(const QConv2dProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
