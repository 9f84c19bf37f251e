// The feed-forward half of a transformer layer in integers on a GPU, in one launch: y = x + W_2 curve(W_1 norm(x)) of an int16 stream, bit
// for bit what the norm (cpu/core/qnorm.h), a 1x1 convolution to bytes by a curve (cpu/core/qcurve.h) and one to the stream give one
// after another. The norm is that of an image, whose sums are known, or of each pixel by itself. qpair.cuh says how a block goes about it.
//
// Weights, `slices` (mvit_kernels/ops/qfeed_forward.py makes them), are those of qpair.cuh, whose rows of numbers are init and scale of the
// first product.
//
// Floor, of P pixels with d channels and E hidden ones: 4 P d bytes of the stream, read and written, and half as much again from the second
// cache as the residual; 4 P d E operations of the tensor cores.
//
// What binds instead, by the machine code for sm_90a: a hidden value takes 13 instructions of a thread with d = 128 (a curve 8, products
// 2), 16 with 192 and 18 with 256, where a warp has 16 rows; a value of the stream takes 26 beside. A tile that a warp reads takes shared
// memory 4 cycles, and 32 values of a curve some 3, as they are scattered over the banks: for 32 hidden values 6 cycles with d = 128, 10
// with 192 and 13 with 256, in which four schedulers issue 24, 40 and 52 instructions. So instructions bind up to d = 128, shared memory
// beyond.
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
