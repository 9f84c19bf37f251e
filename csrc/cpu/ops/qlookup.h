// y[i] = table[x[i]], of bytes: any function of a quantized value, such as an activation (core/byte_table.h).
//
// Floor: x read and y written once, at the bandwidth of a copy.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct QLookupProblem {
    int64_t count;
    const uint8_t* table;  // 256
    const uint8_t* x;
    uint8_t* y;  // may be x
};

Status qlookup(const QLookupProblem& problem, int threads);

// --- what isa/qlookup.cpp implements ---

struct QLookupKernels {
    void (*run)(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count);
};

}  // namespace mvit
