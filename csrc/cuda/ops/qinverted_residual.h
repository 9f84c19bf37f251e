// Three integer layers in a row on a GPU, 1x1 convolution, depthwise 3x3, 1x1 convolution, in one launch: cpu/ops/qinverted_residual.h has
// what they compute, ops/inverted_residual.h how a block goes through a tile of y. The result is theirs one after another, bit for bit.
//
// Between the layers are bytes: what the first one gives outside of the map is 0 here, and sums of the second begin with border[class][c],
// which has what init took away for such taps (ops/qdepthwise_conv2d.h). The first two layers end in curves (cpu/core/qcurve.h), in which
// compiled networks have SiLU, and which have steps (primitives/qcurve.cuh). The last layer ends as any does (qepilogue.cuh), and reads a
// residual from memory.
//
// Weights, `slices` (mvit_kernels/ops/qinverted_residual.py makes them): of each 32 hidden channels, one slice after the other,
//
//     numbers    rows of 32 words: init and scale of the first layer; taps of columns 0, 1, 2, each word those of ky = 0, 1, 2 and a 0;
//                border of 16 classes; scale of the second layer
//     expand     2 tiles of 16 columns, of each ceil(C / 32) tiles of depth 32     in the order of tensor cores (qfragments.h), 8 bits
//     reduce     ceil(N / 16) tiles of 16 columns, one tile deep
//
// zeros beyond C, E and N: what such channels give meets weights of 0.
//
// Floor: that of ops/inverted_residual.h, of bytes; and P E (halo + 1 / s^2) curves of some 13 instructions each, which are most of it.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

struct QInvertedResidualProblem {
    int64_t batch;
    int height, width, channels, hidden, columns;
    int stride;
    uint32_t padding;                            // the zero-point of the hidden map, four times
    const uint8_t* x;                            // (B, H, W, C), dense
    const uint8_t* slices;                       // aligned to 16 bytes
    const int16_t *expand_curve, *filter_curve;  // as mvit_kernels/ops/qcurve.py makes them, with steps
    QEpilogue reduce;                            // y and residual dense: (B, ceil(H / s), ceil(W / s), N)
};

// Bytes of shared memory that a block needs; 0 where there is no kernel for so many columns.
int qinverted_residual_shared(int channels, int columns, int stride);

// stream: a cudaStream_t of `device`.
Launched qinverted_residual(const QInvertedResidualProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
