// A gate of every element, as Mobile-Former (arXiv 2108.05895) has it on its way from the map to the tokens:
//
//     y = x hard_sigmoid(u),   hard_sigmoid(u) = min(max(u + 3, 0), 6) / 6     (MobileNetV3, arXiv 1905.02244, section 5.2)
//
// Every operation is rounded once, in this order, so that networks of integers have the same bits everywhere.
//
// Floor: x and u read and y written once.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct HardGateProblem {
    DType dtype;
    int64_t count;
    const void *x, *u;
    void* y;  // may be x or u
};

Status hard_gate(const HardGateProblem& problem, int threads);

// --- what isa/hard_gate.cpp implements ---

struct HardGateKernels {
    // On [first, first + count); indexed by DType.
    void (*run[3])(const HardGateProblem&, int64_t first, int64_t count);
};

}  // namespace mvit
