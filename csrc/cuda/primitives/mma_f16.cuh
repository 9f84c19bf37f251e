// One warp's product of 16-bit floats on tensor cores (sm_80 and up): d = a (16 x 16) b (16 x 8) + c (16 x 8, float32). In bytes, lanes
// hold of a, b and c what they hold of a product of bytes (mma_s8.cuh): 16 values of two bytes are 32 bytes. Half of a product, of depth 8:
// the words of the low depths.
#pragma once

#include "cpu/core/types.h"
#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

#if defined(__CUDACC__)

// c may be d, and need not be: then nothing is moved before a first product.
MVIT_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4], f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
MVIT_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4], bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
MVIT_DEVICE void mma_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b, f16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
}
MVIT_DEVICE void mma_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b, bf16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
}

#else

void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4], f16);
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4], bf16);
void mma_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b, f16);
void mma_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b, bf16);

#endif

template <class T>
MVIT_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) {
    mma(c, a, b0, b1, c, T{});
}

}  // namespace mvit::cuda
