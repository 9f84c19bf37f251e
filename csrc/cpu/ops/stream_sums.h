// The sum and the sum of squares of an int16 residual stream, exact (core/qsums.h), where no product has collected them (ops/qgemm.h).
//
// Floor: x read once.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct StreamSumsProblem {
    int64_t count;
    const int16_t* x;
    int64_t* sums;  // two
};

Status stream_sums(const StreamSumsProblem& problem, int threads);

// --- what isa/stream_sums.cpp implements ---

struct StreamSumsKernels {
    void (*run)(const int16_t* x, int64_t count, int64_t* sums);
};

}  // namespace mvit
