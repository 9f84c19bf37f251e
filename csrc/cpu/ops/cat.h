// Two matrices side by side: each row of y is a row of a and then one of b. A map that is channels last is a matrix of pixels, so this
// concatenates its channels. Only bytes move, whatever they mean.
//
// Floor: every byte read and written once, at the bandwidth of a copy.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct CatProblem {
    int64_t rows, a_bytes, b_bytes;  // bytes: of a row
    const void *a, *b;
    void* y;
};

Status cat(const CatProblem& problem, int threads);

}  // namespace mvit
