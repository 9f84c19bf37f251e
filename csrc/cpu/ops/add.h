// The sum of two tensors and an activation:
//
//     y = activation(a + b), or activation(a) where there is no b
//
// in float32 (core/activation.h), rounded once to the type of y.
//
// Floor: a and b read and y written once; SiLU and GELU take longer than memory does.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct AddProblem {
    DType dtype;
    int64_t count;
    Activation activation;
    const void *a, *b;  // b may be null
    void* y;            // may be a or b
};

Status add(const AddProblem& problem, int threads);

// --- what isa/add.cpp implements ---

struct AddKernels {
    // On [first, first + count); indexed by DType.
    void (*run[3])(const AddProblem&, int64_t first, int64_t count);
};

}  // namespace mvit
