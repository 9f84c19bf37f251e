// Inverted residual of 16-bit maps on a GPU, in one launch: cpu/ops/inverted_residual.h has the formula; with SiLU, and an expansion.
//
// A block makes a tile of y of one image. It copies the pixels of x that the tile sees (one more on each side) to shared memory once, and
// goes through the hidden channels in slices of 32, so that neither of the two hidden maps ever leaves the multiprocessor:
//
//     expand    slice (pixels of x, 32) = silu(x W_e + b_e)    tensor cores; zeros outside of the map, which is what is padded
//     filter    slice (pixels of y, 32) = silu(depthwise3x3)   tensor cores, too (residual_filter.cuh)
//     reduce    sums (pixels of y, N) += slice W_r             tensor cores; sums stay in registers until the last slice
//
// No part of a slice waits for the one before: where shared memory has room for two slices of both hidden maps, a block expands one slice,
// filters the one before and reduces the one before that, behind one barrier (residual_tile.cuh, ResidualSlices); elsewhere it expands a
// slice and reduces the one before, then filters, behind two. Meanwhile the weights of the next step arrive. In the end comes x, out of
// shared memory; sums begin with the bias. A lane has four neighbouring columns of y, and four lanes a sector of it: y is written from
// registers.
//
// Weights, `slices` (mvit_kernels/ops/inverted_residual.py makes them): of each slice, one after the other,
//
//     b_d       32 floats
//     taps      in the order of residual_filter.cuh
//     b_e       32 floats
//     W_e       2 tiles of 16 columns, of each ceil(C / 16) tiles of depth 16      in the order of tensor cores (qfragments.h, in bytes)
//     W_r       ceil(N / 16) tiles of 16 columns, of each two of depth 16; column 4 t + 2 p + i of a tile at place 8 p + 2 t + i
//
// zeros beyond C, E and N. W_e, b_e, the taps and b_d are half of what the formula has (activation.cuh). Taps are rounded to the type of x,
// as the weights of both products are.
//
// Channels of x and y are multiples of 8, which are read and written at once. Rows of shared memory are an odd number of 16 bytes long: the
// eight that tensor cores read at once lie in different banks.
//
// Floor: x read and y written once; of P pixels of x, 2 P C E halo + 2 P E N / s^2 operations of tensor cores and, mostly in vain,
// 144 P E / s^2 of the filter; P E (halo + 1 / s^2) tanh, a sixteenth as fast as multiply-adds. halo: pixels that a tile sees over those
// that it stands for, 1.41 with stride 1 and 1.13 with 2. What binds is counted in qinverted_residual.h.
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
