// Inverted residual of 16-bit maps on a GPU, in one launch: cpu/ops/inverted_residual.h has the formula; with SiLU, and an expansion.
//
// A block makes a tile of y of one image. It copies the pixels of x that the tile sees (one more on each side) to shared memory once, and
// goes through the hidden channels in slices of 32, so that neither of the two hidden maps ever leaves the multiprocessor:
//
//     expand    slice (pixels of x, 32) = silu(x W_e + b_e)    tensor cores; zeros outside of the map, which is what is padded
//     filter    slice (pixels of y, 32) = silu(depthwise3x3)   in float32, a thread has two channels of a column of the tile
//     reduce    sums (pixels of y, N) += slice W_r             tensor cores; sums stay in registers until the last slice
//
// No part of a slice waits for the one before: where shared memory has room for two slices of both hidden maps, a block expands one slice,
// filters the one before and reduces the one before that, behind one barrier (residual_tile.cuh, ResidualSlices); elsewhere it expands a
// slice and reduces the one before, then filters, behind two. Meanwhile the weights of the next step arrive. In the end comes x, out of
// shared memory; sums begin with the bias.
//
// Weights, `slices` (mvit_kernels/ops/inverted_residual.py makes them): of each slice, one after the other,
//
//     floats    b_e (32,), 9 taps (32,), b_d (32,)
//     W_e       2 tiles of 16 columns, of each ceil(C / 16) tiles of depth 16      in the order of tensor cores (qfragments.h, in bytes)
//     W_r       ceil(N / 16) tiles of 16 columns, of each two of depth 16
//
// zeros beyond C, E and N. W_e, b_e, the taps and b_d are half of what the formula has (activation.cuh).
//
// Channels of x and y are multiples of 8, which are read and written at once. Rows of shared memory are an odd number of 16 bytes long: the
// eight that tensor cores read at once lie in different banks.
//
// Floor: x read and y written once; of P pixels of x, 2 P C E halo + 2 P E N / s^2 operations of tensor cores, and 9 P E / s^2
// multiply-adds and P E (halo + 1 / s^2) tanh, a sixteenth as fast as those, beside them. halo: pixels that a tile sees over those that it
// stands for, 1.41 with stride 1 and 1.13 with 2.
#pragma once

#include "cpu/core/types.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

struct InvertedResidualProblem {
    DType dtype;  // f16 or bf16: of x, y and the tiles
    int64_t batch;
    int height, width, channels, hidden, columns;
    int stride;
    bool residual;
    const void* x;          // (B, H, W, C), dense, aligned to 16 bytes
    void* y;                // (B, ceil(H / s), ceil(W / s), N), likewise
    const uint8_t* slices;  // aligned to 16 bytes
    const float* bias;      // (N rounded up to 16,), likewise
};

// Bytes of shared memory that a block needs; 0 where there is no kernel for so many columns.
int inverted_residual_shared(int channels, int columns, int stride);

// stream: a cudaStream_t of `device`.
Launched inverted_residual(const InvertedResidualProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
