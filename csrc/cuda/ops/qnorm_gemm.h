// The norm of an int16 stream and the product of bytes behind it in one launch on a GPU, y = bytes(W norm(x)), bit for bit what
// cpu/core/qnorm.h and ops/qgemm.h give one after another. What the norm gives stays in registers, as in qpair.cuh, whose first half this
// is: its bytes are neither written nor read.
//
// Weights, `slices` (mvit_kernels/ops/qnorm_gemm.py makes them): of each 32 columns, one slice after the other, two rows of numbers and
// the tiles of `expand` as qpair.cuh has them. Columns lie in the order of `product_column` (qproduct.cuh), by which a thread gets eight
// neighbours, and so do the numbers.
//
// A warp goes through its slices one after the other and waits for most of what it asks for, where few are beside it: on H100s a slice
// took 1.2 us with 2, 8 and 64 blocks on all multiprocessors, 1.5 us with two on each and 2.4 us with four. So blocks share the slices of a
// weight, as long as all of them run at once; each normalises the rows again, in the instructions of some three slices. Their warps have
// 16 rows where all blocks of such run at once, half of what a slice and the norm then take; else 32, which halve the reads of weights.
//
// Floor, of P rows with K values and N columns: 2 K + N bytes a row and 2 P K N operations of the tensor cores. Instructions: some 10 for a
// value of the stream, and of each byte of y about 8, beside K / 128 products. With N = 3 K, as of queries, keys and values, memory binds
// up to K = 128.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cuda/ops/qpair.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

inline constexpr int norm_gemm_channels = 512;  // of the stream, at most

struct QNormGemmProblem {
    int64_t groups;
    int rows, channels, columns;  // rows: of a group; without sums, whatever the number of groups is
    const int16_t* x;             // (groups, rows, K), dense
    QPairNorm norm;
    const uint8_t* slices;  // aligned to 16 bytes
    QEpilogue epilogue;     // to bytes, plain or by a curve that has steps, without a table or a residual; y dense
};

MVIT_BOTH constexpr int norm_gemm_slices(int columns) { return (columns + pair_slice - 1) / pair_slice; }

// How many slices, of that many, a block goes through: `blocks` of them have all rows, and `at_once` run at once.
constexpr int norm_gemm_together(int slices, int64_t blocks, int64_t at_once) {
    const int64_t most = at_once / blocks, shares = most < 1 ? 1 : most < slices ? most : slices;
    return static_cast<int>((slices + shares - 1) / shares);
}

// stream: a cudaStream_t of `device`.
Launched qnorm_gemm(const QNormGemmProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
