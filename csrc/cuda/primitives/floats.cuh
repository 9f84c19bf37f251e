// Float operations that C++ does not name the same for both sides.
#pragma once

#include <cmath>

#include "cpu/core/types.h"
#include "cuda/primitives/device.cuh"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mvit::cuda {

#if defined(__CUDACC__)

MVIT_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
MVIT_DEVICE float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }

// min(max(a b, 0), 1), rounded once, in one instruction; NaN becomes 0.
MVIT_DEVICE float multiply_saturated(float a, float b) {
    float x;
    asm("mul.rn.sat.f32 %0, %1, %2;" : "=f"(x) : "f"(a), "f"(b));
    return x;
}

// max(x, 0); NaN stays NaN.
MVIT_DEVICE float relu(float x) {
    float y;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
    return y;
}

// Rounded toward zero.
MVIT_DEVICE float multiply_toward_zero(float a, float b) { return __fmul_rz(a, b); }

MVIT_DEVICE float to_float(float x) { return x; }
MVIT_DEVICE float to_float(bf16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
MVIT_DEVICE float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
MVIT_DEVICE void from_float(float x, float* to) { *to = x; }
MVIT_DEVICE void from_float(float x, bf16* to) { to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
MVIT_DEVICE void from_float(float x, f16* to) { to->bits = __half_as_ushort(__float2half_rn(x)); }

// Two values in a word, the first in its low half.
MVIT_DEVICE uint32_t from_floats(float low, float high, bf16) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
MVIT_DEVICE uint32_t from_floats(float low, float high, f16) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

#else

uint32_t float_bits(float x);
float float_of_bits(uint32_t bits);
float multiply_saturated(float a, float b);
float relu(float x);
float multiply_toward_zero(float a, float b);
float to_float(float x);
float to_float(bf16 x);
float to_float(f16 x);
void from_float(float x, float* to);
void from_float(float x, bf16* to);
void from_float(float x, f16* to);
uint32_t from_floats(float low, float high, bf16);
uint32_t from_floats(float low, float high, f16);

#endif

template <class T>
struct Unpacked {
    float low, high;

    MVIT_DEVICE explicit Unpacked(uint32_t word)
        : low(to_float(T{static_cast<uint16_t>(word)})), high(to_float(T{static_cast<uint16_t>(word >> 16)})) {}
};

}  // namespace mvit::cuda
