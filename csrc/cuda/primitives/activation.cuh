// SiLU of 16-bit networks in two instructions: x sigmoid(x) = h + h tanh(h), h = x / 2. Whoever computes x halves its weights instead.
//
// The hardware's tanh is within 2^-11 of the value (PTX ISA, tanh.approx.f32), so that the result is within |x| 2^-12 of SiLU: for positive
// x what rounding to float16 costs anyway, for negative ones a like amount where SiLU itself is smaller. Of a product of such values it is
// a twentieth of the error that plain torch makes in float16, and a hundredth in bfloat16.
#pragma once

#include "cuda/primitives/floats.cuh"

namespace mvit::cuda {

#if defined(__CUDACC__)

MVIT_DEVICE float quick_tanh(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

float quick_tanh(float x);

#endif

MVIT_DEVICE float silu_of_double(float half) { return fmaf(half, quick_tanh(half), half); }

}  // namespace mvit::cuda
