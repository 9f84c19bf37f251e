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

// Ties to even; x is within int32.
MVIT_DEVICE int32_t round_to_int(float x) { return __float2int_rn(x); }

MVIT_DEVICE float to_float(float x) { return x; }
MVIT_DEVICE float to_float(bf16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
MVIT_DEVICE float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
MVIT_DEVICE void from_float(float x, float* to) { *to = x; }
MVIT_DEVICE void from_float(float x, bf16* to) { to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
MVIT_DEVICE void from_float(float x, f16* to) { to->bits = __half_as_ushort(__float2half_rn(x)); }

#else

int32_t round_to_int(float x);
float to_float(float x);
float to_float(bf16 x);
float to_float(f16 x);
void from_float(float x, float* to);
void from_float(float x, bf16* to);
void from_float(float x, f16* to);

#endif

}  // namespace mvit::cuda
