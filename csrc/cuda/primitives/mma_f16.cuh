// One warp's product of 16-bit floats on tensor cores (sm_80 and up): c (16 x 8, float32) += a (16 x 16) b (16 x 8). In bytes, lanes hold
// of a, b and c what they hold of a product of bytes (mma_s8.cuh): 16 values of two bytes are 32 bytes.
#pragma once

#include "cpu/core/types.h"
#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

#if defined(__CUDACC__)

MVIT_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
MVIT_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else

void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16);
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16);

#endif

}  // namespace mvit::cuda
