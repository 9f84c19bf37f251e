// The feed-forward half of a transformer layer in integers on a GPU, in one launch: y = x + W_2 curve(W_1 norm(x)) of an int16 stream, bit
// for bit what the norm (cpu/core/qnorm.h), a 1x1 convolution to bytes by a curve (cpu/core/qcurve.h) and one to the stream give one
// after another. The norm is that of an image, whose sums are known, or of each pixel by itself. qpair.cuh says how a block goes about it.
//
// Weights, `slices` (mvit_kernels/ops/qfeed_forward.py makes them), are those of qpair.cuh, whose rows of numbers are init and scale of the
// first product.
//
// Floor, of P pixels with d channels and E hidden ones: 4 P d bytes of the stream, read and written, and as much again from the second
// cache as the residual; 4 P d E operations of the tensor cores; P E curves of some 13 instructions each with their products, and some 20
// instructions a value of the stream. With E = 2 d that is less than 50 instructions for 4 bytes: instructions and reads of shared memory
// bind up to d = 128, products of tensor cores above.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cuda/ops/qpair.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

struct QFeedForwardProblem {
    int64_t batch;
    int pixels, channels, hidden;  // pixels: of an image
    const int16_t* x;              // (B, pixels, d), dense
    QPairNorm norm;
    const uint8_t* slices;  // aligned to 16 bytes
    const int16_t* curve;   // as mvit_kernels/ops/qcurve.py makes it, with steps
    QEpilogue second;       // y and residual dense, int16: (B, pixels, d)
    int64_t* parts;         // (B, qfeed_forward_pieces, 2): sum and sum of squares of pieces of y; or null
};

// How many pieces an image of so many pixels has; 0 where there is no kernel for so many channels.
int qfeed_forward_pieces(int channels, int pixels);

// stream: a cudaStream_t of `device`.
Launched qfeed_forward(const QFeedForwardProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
