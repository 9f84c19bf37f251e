// Chains of multiply-adds in registers; see ops/ceiling.h. Compiled once an ISA.
#include "cpu/ops/ceiling.h"

#include "cpu/core/amx.h"
#include "cpu/core/dots.h"
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

#if defined(MVIT_ISA_AVX512VNNI)
using Dots = __m512i;
inline void dot(Dots& sum, Dots x, Dots y) { dot_of_bytes(sum, x, y); }
inline Dots dots_of(float x) { return _mm512_castps_si512(_mm512_set1_ps(x)); }
inline float value_of(Dots x) { return _mm512_cvtss_f32(_mm512_castsi512_ps(x)); }
constexpr int64_t products = 64;

#if defined(MVIT_ISA_AMX)
// Four sums in turn, each of 16 cycles: no latency is longer.
template <class Dot>
float tile_dots(int64_t products_of_tiles, const Dot& dot) {
    TileShapes shapes;
    for (int tile = 0; tile < 6; ++tile) shapes.set(tile, tile_rows, tile_bytes);
    shapes.take();
    for (int64_t left = products_of_tiles; left > 0; left -= 4) dot();
    release_tiles();
    return 0.0f;
}
constexpr int64_t bytes_of_a_tile = int64_t{tile_rows} * tile_rows * tile_bytes;  // multiply-adds of them; operations on bfloat16
#endif
#elif defined(MVIT_ISA_AVX2)
using Dots = __m256i;
#if defined(MVIT_ISA_AVXVNNI)
inline void dot(Dots& sum, Dots x, Dots y) { dot_of_bytes(sum, x, y); }
constexpr int64_t products = 32;
#else
inline void dot(Dots& sum, Dots x, Dots y) { dot_of_words(sum, x, y); }
constexpr int64_t products = 16;
#endif
inline Dots dots_of(float x) { return _mm256_castps_si256(_mm256_set1_ps(x)); }
inline float value_of(Dots x) { return _mm256_cvtss_f32(_mm256_castsi256_ps(x)); }
#else
using Dots = I32;
inline void dot(Dots& sum, Dots x, Dots y) { sum = sum * x + y; }
inline Dots dots_of(float x) { return I32::all(static_cast<int32_t>(x) + 3); }
inline float value_of(Dots x) { return first_lane(to_float(x)); }
constexpr int64_t products = F32::width;
#endif

constexpr int64_t dots_of_a_round = 10;

float dots(int64_t rounds, float factor, float term) {
#if defined(MVIT_ISA_AMX)
    static_cast<void>(factor), static_cast<void>(term);
    return tile_dots(rounds * dots_of_a_round * products / bytes_of_a_tile,
                     [] { dot_bytes<0, 4, 5>(), dot_bytes<1, 4, 5>(), dot_bytes<2, 4, 5>(), dot_bytes<3, 4, 5>(); });
#else
    const Dots x = dots_of(factor), y = dots_of(term);
    Dots a = dots_of(1), b = dots_of(2), c = dots_of(3), d = dots_of(4), e = dots_of(5);
    Dots f = dots_of(6), g = dots_of(7), h = dots_of(8), i = dots_of(9), j = dots_of(10);
    for (int64_t round = 0; round < rounds; ++round) {
        dot(a, x, y), dot(b, x, y), dot(c, x, y), dot(d, x, y), dot(e, x, y);
        dot(f, x, y), dot(g, x, y), dot(h, x, y), dot(i, x, y), dot(j, x, y);
    }
    return value_of(a) + value_of(b) + value_of(c) + value_of(d) + value_of(e) + value_of(f) + value_of(g) + value_of(h) + value_of(i) +
           value_of(j);
#endif
}

#if defined(MVIT_ISA_AMX)
constexpr int64_t pairs_of_a_round = 2 * dots_of_a_round * products;
float pairs(int64_t rounds, float, float) {
    return tile_dots(rounds * pairs_of_a_round / bytes_of_a_tile,
                     [] { dot_bf16<0, 4, 5>(), dot_bf16<1, 4, 5>(), dot_bf16<2, 4, 5>(), dot_bf16<3, 4, 5>(); });
}
#elif defined(MVIT_ISA_AVX512BF16)
constexpr int64_t pairs_of_a_round = 2 * 2 * 12 * F32::width;
float pairs(int64_t rounds, float factor, float term) {
    const __m512i x = dots_of(factor), y = dots_of(term);
    __m512 a = F32::all(1).v, b = F32::all(2).v, c = F32::all(3).v, d = F32::all(4).v, e = F32::all(5).v, f = F32::all(6).v;
    __m512 g = F32::all(7).v, h = F32::all(8).v, i = F32::all(9).v, j = F32::all(10).v, k = F32::all(11).v, l = F32::all(12).v;
    for (int64_t round = 0; round < rounds; ++round) {
        dot_of_pairs(a, x, y), dot_of_pairs(b, x, y), dot_of_pairs(c, x, y), dot_of_pairs(d, x, y), dot_of_pairs(e, x, y);
        dot_of_pairs(f, x, y), dot_of_pairs(g, x, y), dot_of_pairs(h, x, y), dot_of_pairs(i, x, y), dot_of_pairs(j, x, y);
        dot_of_pairs(k, x, y), dot_of_pairs(l, x, y);
    }
    return first_lane({((a + b) + (c + d)) + ((e + f) + (g + h)) + ((i + j) + (k + l))});
}
#else
constexpr int64_t pairs_of_a_round = 2 * 12 * F32::width;
constexpr auto pairs = chains;
#endif

}  // namespace

extern const CeilingKernels MVIT_ISA_SYMBOL(ceiling);
const CeilingKernels MVIT_ISA_SYMBOL(ceiling) = {chains, 2 * 12 * F32::width,           pairs, pairs_of_a_round,
                                                 dots,   2 * dots_of_a_round * products};

}  // namespace mvit
