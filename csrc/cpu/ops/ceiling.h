// What the arithmetic of every product is held against: the multiply-adds that the processor does when nothing else is to be done.
//
// Each thread runs chains of multiply-adds that live in registers, enough of them that none waits for its own latency.
#pragma once

#include <cstdint>

namespace mvit {

// Billions of operations a second (a multiply-add is two), all threads together, on the active instruction set. Takes 0.3 s.
double fma_gflops(int threads);

// The same of products of bfloat16 that are added up in float32, as core/tile.h has them: where there is no instruction for them,
// multiply-adds of float32.
double bf16_gflops(int threads);

// The same of products of bytes that are added up in int32, by the instructions that integer products use (core/qtile.h).
double dot_gops(int threads);

// --- what isa/ceiling.cpp implements ---

struct CeilingKernels {
    float (*chains)(int64_t rounds, float factor, float term);  // what the chains come to, so that nothing can be left out
    int64_t operations;                                         // of a round
    float (*pairs)(int64_t rounds, float factor, float term);   // the same of bfloat16
    int64_t pair_operations;
    float (*dots)(int64_t rounds, float factor, float term);  // the same of bytes
    int64_t dot_operations;
};

}  // namespace mvit
