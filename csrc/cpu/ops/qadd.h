// The sum of two maps of bytes, each with its own scale and zero-point, and an activation (mvit_kernels/reference/qadd.py):
//
//     y = byte(activation(s_a float(a - z_a) + s_b float(b - z_b)))          every operation rounded once, in this order
//
// The reals are those of core/qreal.h, the activation that of core/qepilogue.h.
//
// Floor: 16 operations on every vector of float32, which four units of 256 bits do in 8 cycles for 16 results; an activation takes twice as
// many more. Memory waits for that: in the second cache a copy of the same bytes takes a quarter of the time.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cpu/core/qreal.h"
#include "cpu/core/types.h"

namespace mvit {

struct QAddProblem {
    int64_t count;
    const uint8_t *a, *b;
    uint8_t* y;
    QReal a_real, b_real;
    QActivation activation;
    const float* segments;  // see activate_segments
    QByte out;
};

Status qadd(const QAddProblem& problem, int threads);

// --- what isa/qadd.cpp implements ---

struct QAddKernels {
    // On [first, first + count); indexed by QActivation.
    void (*run[3])(const QAddProblem&, int64_t first, int64_t count);
};

}  // namespace mvit
