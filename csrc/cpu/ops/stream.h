// Between float32 and an int16 residual stream, whose real values are scale * q:
//
//     to_stream      q = rint(min(max(x * float32(1 / scale), -32768), 32767))     ties to even; NaN becomes -32768
//     from_stream    x = float(q) * scale
//
// Every operation is rounded once: the same bits on every instruction set.
//
// Floor: each read and written once, at the bandwidth of a copy.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct StreamProblem {
    int64_t count;
    float scale;
    const void* from;
    void* to;
};

Status to_stream(const StreamProblem& problem, int threads);    // float to int16_t
Status from_stream(const StreamProblem& problem, int threads);  // int16_t to float

// --- what isa/stream.cpp implements ---

struct StreamKernels {
    void (*to)(const float* from, int16_t* to, int64_t count, float inverse);
    void (*from)(const int16_t* from, float* to, int64_t count, float scale);
};

}  // namespace mvit
