// One warp's product of bytes on tensor cores (sm_80 and up): c (16 x 8) += a (16 x 32, uint8) b (32 x 8, int8 or uint8), exact modulo
// 2^32.
//
// Who holds what (PTX ISA, mma.m16n8k32): of lane l with g = l / 4 and t = l % 4,
//
//     a[i], i = 0 .. 3    row g + 8 (i % 2),  k = 4 t + 16 (i / 2) and the next three
//     b[i], i = 0, 1      column g,           k = 4 t + 16 i and the next three
//     c[i], i = 0 .. 3    row g + 8 (i / 2),  column 2 t + i % 2
//
// a comes from rows in shared memory by ldmatrix.x4, which reads four matrices of 8 rows of 16 bytes, row l % 8 of matrix l / 8 at the
// address that lane l gives, and gives lane l bytes 4 t .. 4 t + 3 of row g of each; transposed, bytes 2 g and 2 g + 1 of rows 2 t and
// 2 t + 1.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

MVIT_BOTH constexpr int a_row(int lane, int i) { return lane / 4 + 8 * (i % 2); }
MVIT_BOTH constexpr int a_k(int lane, int i) { return 4 * (lane % 4) + 16 * (i / 2); }
MVIT_BOTH constexpr int b_column(int lane) { return lane / 4; }
MVIT_BOTH constexpr int b_k(int lane, int i) { return 4 * (lane % 4) + 16 * i; }
MVIT_BOTH constexpr int c_row(int lane, int i) { return lane / 4 + 8 * (i / 2); }
MVIT_BOTH constexpr int c_column(int lane, int i) { return 2 * (lane % 4) + i % 2; }

// Which row and which 16 bytes of 32 a lane addresses, so that a[i] is what ldmatrix.x4 gives: its four matrices are the upper and lower
// half of the rows, first of the low 16 bytes, then of the high ones.
MVIT_BOTH constexpr int ldmatrix_row(int lane) { return lane % 16; }
MVIT_BOTH constexpr int ldmatrix_chunk(int lane) { return lane / 16; }

#if defined(__CUDACC__)

MVIT_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

MVIT_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// d = a b + c; c may be d, and need not be: then nothing is moved before a first product.
MVIT_DEVICE void mma_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
MVIT_DEVICE void mma_u8u8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

#else

void ldmatrix_x4(uint32_t (&r)[4], const void* shared);
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared);
void mma_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t (&c)[4]);
void mma_u8u8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t (&c)[4]);

#endif

MVIT_DEVICE void mma_u8s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_u8s8(c, a, b0, b1, c); }

// As products of 16-bit floats are called (mma_f16.cuh).
MVIT_DEVICE void mma(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t (&c)[4], uint8_t) {
    mma_u8s8(d, a, b0, b1, c);
}
MVIT_DEVICE void mma(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, uint8_t) { mma_u8s8(c, a, b0, b1); }

}  // namespace mvit::cuda
