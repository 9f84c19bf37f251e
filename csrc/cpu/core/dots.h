// Sums of products that the processor adds up itself, in each lane of 32 bits:
//
//     dot_of_bytes(sum, a, w)    sum += a[0] w[0] + .. + a[3] w[3]    a unsigned, w signed bytes, modulo 2^32: AVX512-VNNI, AVX-VNNI
//     dot_of_words(sum, a, w)    sum += a[0] w[0] + a[1] w[1]         int16, modulo 2^32: those and AVX2
//     dot_of_pairs(sum, a, w)    sum += a[0] w[0] + a[1] w[1]         bfloat16, float32, subnormal numbers taken for 0: AVX512-BF16
//
// As assembly: of the intrinsics gcc 12 keeps sums on the stack, which costs a factor of three. So an operand in memory, w as an address on
// AVX2, has to be asked for: loaded before, it takes one of sixteen registers. Internal linkage.
#pragma once

#if defined(MVIT_ISA_AVX2) || defined(MVIT_ISA_AVX512VNNI)

#include <immintrin.h>

namespace mvit {
namespace {

#if defined(MVIT_ISA_AVX512VNNI)
template <class Vector>
inline void dot_of_bytes(Vector& sum, Vector a, Vector w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
}
inline void dot_of_words(__m512i& sum, __m512i a, __m512i w) { asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w)); }
#elif defined(MVIT_ISA_AVXVNNI)
// The same instructions for processors without AVX-512, in an encoding that only they have: processors with AVX512-VNNI run them, to be
// tested, in the other one (`make -C csrc avxvnni`).
#if defined(MVIT_TEST_AVXVNNI)
#define MVIT_VEX ""
#else
#define MVIT_VEX "%{vex%} "
#endif
inline void dot_of_bytes(__m256i& sum, __m256i a, __m256i w) { asm(MVIT_VEX "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(w)); }
inline void dot_of_words(__m256i& sum, __m256i a, __m256i w) { asm(MVIT_VEX "vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(w)); }
inline void dot_of_words(__m256i& sum, __m256i a, const __m256i* w) { asm(MVIT_VEX "vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "m"(*w)); }
#undef MVIT_VEX
#else
// In one piece, as the compiler would first do all multiplications and push sums out of the sixteen registers.
inline void dot_of_words(__m256i& sum, __m256i a, __m256i w) {
    __m256i products;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(a), "x"(w));
}
inline void dot_of_words(__m256i& sum, __m256i a, const __m256i* w) {
    __m256i products;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(a), "m"(*w));
}
#endif

#if defined(MVIT_ISA_AVX512BF16)
inline void dot_of_pairs(__m512& sum, __m512i a, __m512i w) { asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w)); }
#endif

}  // namespace
}  // namespace mvit

#endif
