// Four products of bytes added to a sum, bytes picked from two words, two numbers as int16 in one, and a distance added: one instruction
// each.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

#if defined(__CUDACC__)

// c + a[0] b[0] + .. + a[3] b[3], a of uint8 and b of int8, modulo 2^32.
MVIT_DEVICE int32_t dot4(uint32_t a, uint32_t b, int32_t c) {
    int32_t sum;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}

// Of a and b both uint8, and both int8.
MVIT_DEVICE uint32_t dot4_unsigned(uint32_t a, uint32_t b, uint32_t c) { return __dp4a(a, b, c); }
MVIT_DEVICE int32_t dot4_signed(uint32_t a, uint32_t b, int32_t c) { return __dp4a(static_cast<int32_t>(a), static_cast<int32_t>(b), c); }

// Byte i of the result is byte (selector >> 4 i) % 8 of the eight of a (first) and b.
MVIT_DEVICE uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

// |a - b| + c, modulo 2^32.
MVIT_DEVICE uint32_t add_distance(uint32_t a, uint32_t b, uint32_t c) { return __usad(a, b, c); }

// Both as int16, saturated; the first in the low half.
MVIT_DEVICE uint32_t saturated_halves(int32_t low, int32_t high) {
    uint32_t word;
    asm("cvt.pack.sat.s16.s32 %0, %1, %2;" : "=r"(word) : "r"(high), "r"(low));
    return word;
}

#else

int32_t dot4(uint32_t a, uint32_t b, int32_t c);
uint32_t dot4_unsigned(uint32_t a, uint32_t b, uint32_t c);
int32_t dot4_signed(uint32_t a, uint32_t b, int32_t c);
uint32_t permute(uint32_t a, uint32_t b, uint32_t selector);
uint32_t add_distance(uint32_t a, uint32_t b, uint32_t c);
uint32_t saturated_halves(int32_t low, int32_t high);

#endif

}  // namespace mvit::cuda
