// Integer matrix product with zero-points on a GPU (sm_80 and up): cpu/ops/qgemm.h says what it computes, ops/qproduct.cuh how.
//
// Sums are modulo 2^32. That they fit is checked where init is made; of zero-points of rows it is not, since that would wait for the
// device. With 6 bits four times a sum must fit.
//
// Floor: 2 M N K operations; a and w read once, y written once.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cuda/primitives/launched.h"
#include "cuda/primitives/qfragments.h"

namespace mvit::cuda {

struct QGemmProblem {
    int64_t rows;
    const uint8_t* a;
    int64_t a_stride, depth;  // in bytes; depth: of a row, as the weight's or less, where the weight has zeros behind
    QFragments weight;
    QEpilogue epilogue;  // every address on the device; of whole panels, aligned to 16, those of the channels and column_sum
};

// stream: a cudaStream_t of `device`.
Launched qgemm(const QGemmProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
