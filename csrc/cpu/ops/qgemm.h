// Integer matrix product with zero-points and everything that stands around it in a quantized network:
//
//     sum[m, n] = init[n] + sum_k a[m, k] w[n, k],    y[m, n] = epilogue(sum[m, n])          (core/qepilogue.h)
//
// a is bytes with any int32 zero-point z_a, w int8 or packed int6 without one. Since
//
//     sum_k (a[m, k] - z_a) w[n, k] = sum_k a[m, k] w[n, k] - z_a sum_k w[n, k],
//
// a zero-point that is known beforehand costs nothing: init[n] = bias[n] - z_a sum_w[n] (or bias[n] - sum_k z_a[k] w[n, k] with one for
// each input channel), computed modulo 2^32. With one for each row, z_a[m] sum_w[n] is subtracted in the epilogue.
//
// Nothing overflows that matters: additions are modulo 2^32, so only the final value must fit, and |final| <= max_n sum_k |w[n, k]|
// max(|z_a|, |a_max - z_a|) + |bias| is checked: for static zero-points where init is made, for those of rows here.
//
// a may be an int16 residual stream that a norm makes bytes while its rows are loaded, with the same result as ops/qnorm.h first. And where
// y is such a stream, the sums that the next norm needs are taken while its rows are in the cache: integers, so no order of tasks shows.
//
// Floor: 2 M N K operations; a and w read once, y written once.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cpu/core/qnorm_types.h"
#include "cpu/core/types.h"

namespace mvit {

struct QGemmProblem {
    int64_t rows;
    const uint8_t* a;
    int64_t a_stride;
    const QNorm* norm;  // instead of a; or null
    QWeight weight;
    QEpilogue epilogue;
    int64_t* collected;  // sum and sum of squares of each of `groups` groups of rows of y, which is int16; or null
    int64_t groups;
};

Status qgemm(const QGemmProblem& problem, int threads);

// --- what isa/qgemm.cpp implements: a block of rows times a range of panels ---

struct QGemmBlock {
    const QGemmProblem* problem;
    int64_t row, rows, panel_begin, panel_end;
    void* scratch;
};

struct QGemmKernels {
    void (*block)(const QGemmBlock&);
    // sums[2]: of int16 rows `stride` values apart.
    void (*sums)(const int16_t* y, int64_t stride, int64_t rows, int64_t columns, int64_t* sums);
    int64_t (*scratch)(const QGemmProblem&, int64_t rows);  // bytes
    int64_t height;                                         // rows of a block that tiles fill: a multiple of this
};

}  // namespace mvit
