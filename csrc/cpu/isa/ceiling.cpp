// Chains of multiply-adds in registers; see ops/ceiling.h. Compiled once an ISA.
#include "cpu/ops/ceiling.h"

#include "cpu/core/isa.h"
#include "cpu/core/simd.h"

namespace mvit {
namespace {

// 12 chains cover a latency of 4 to 6 cycles on two units, and with factor and term they fit the 16 registers of AVX2. Each has a name, as
// an array of them might end up in memory, and a beginning of its own, as equal ones might become one.
float chains(int64_t rounds, float factor, float term) {
    const F32 x = F32::all(factor), y = F32::all(term);
    F32 a = F32::all(1), b = F32::all(2), c = F32::all(3), d = F32::all(4), e = F32::all(5), f = F32::all(6);
    F32 g = F32::all(7), h = F32::all(8), i = F32::all(9), j = F32::all(10), k = F32::all(11), l = F32::all(12);
    for (int64_t round = 0; round < rounds; ++round) {
        a = fma(a, x, y), b = fma(b, x, y), c = fma(c, x, y), d = fma(d, x, y), e = fma(e, x, y), f = fma(f, x, y);
        g = fma(g, x, y), h = fma(h, x, y), i = fma(i, x, y), j = fma(j, x, y), k = fma(k, x, y), l = fma(l, x, y);
    }
    return first_lane(((a + b) + (c + d)) + ((e + f) + (g + h)) + ((i + j) + (k + l)));
}

}  // namespace

extern const CeilingKernels MVIT_ISA_SYMBOL(ceiling);
const CeilingKernels MVIT_ISA_SYMBOL(ceiling) = {chains, 2 * 12 * F32::width};

}  // namespace mvit
