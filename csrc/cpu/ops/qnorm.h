// Normalises rows of an int16 residual stream and quantizes them, for the integer product behind the norm: GroupNorm with one group, whose
// images are groups of rows, or LayerNorm, each row by itself. Formula: core/qnorm.h.
//
// Floor: 2 bytes read and 1 written an element. Where the product is the only reader, it does the same while it loads its rows
// (ops/qgemm.h).
#pragma once

#include "cpu/core/qnorm_types.h"
#include "cpu/core/types.h"

namespace mvit {

struct QNormProblem {
    QNorm norm;
    int64_t rows;
    uint8_t* y;
    int64_t y_stride;
};

Status qnorm(const QNormProblem& problem, int threads);

// --- what isa/qnorm.cpp implements ---

struct QNormKernels {
    void (*rows)(const QNormProblem&, int64_t row, int64_t rows);
};

}  // namespace mvit
