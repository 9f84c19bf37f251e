// SiLU and GELU on int16 numbers, as cpu/core/qcurve.h derives and does it.
#pragma once

#include "cuda/primitives/floats.cuh"

namespace mvit::cuda {

// a b / 2^15, rounded
MVIT_BOTH int32_t times_fraction(int32_t a, int32_t b) { return (a * b + (1 << 14)) >> 15; }

// x is an int16; the result a byte.
MVIT_BOTH int32_t apply_curve(const int16_t* curve, int32_t x) {
    const int32_t size = x < -32767 ? 32767 : x < 0 ? -x : x, i = size >> 9, r = (size & 511) << 6;
    const int32_t e = curve[i] + times_fraction(r, curve[64 + i] + times_fraction(r, curve[128 + i]));
    const int32_t sum = (x > 0 ? x : 0) + times_fraction(e, 1024) + curve[193], y = (sum < 32767 ? sum : 32767) >> curve[192];
    return y < 0 ? 0 : y < curve[194] ? y : curve[194];
}

}  // namespace mvit::cuda
