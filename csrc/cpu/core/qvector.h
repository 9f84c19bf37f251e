// What the loops over bytes share: a run a vector at a time, bytes as real numbers, and four vectors of bytes stored as one. Internal
// linkage.
#pragma once

#include "cpu/core/qreal.h"
#include "cpu/core/simd.h"

namespace mvit {
namespace {

// Runs body(i, lanes) over [0, count).
template <class Body>
inline void each_vector(int64_t count, const Body& body) {
    int64_t i = 0;
    for (; i + F32::width <= count; i += F32::width) body(i, F32::width);
    if (i < count) body(i, lanes_left(count, i));
}

// Stores four vectors of integers in 0 .. 255. Two packs work on quarters of a vector each, and a permutation puts them in order: half the
// instructions of four narrowing stores.
inline void store_bytes(const I32 (&x)[4], uint8_t* p) {
#if defined(MVIT_ISA_AVX512VNNI)
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(x[0].v, x[1].v), _mm512_packs_epi32(x[2].v, x[3].v));
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, bytes));
#elif defined(MVIT_ISA_AVX2)
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(x[0].v, x[1].v), _mm256_packs_epi32(x[2].v, x[3].v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(bytes, order));
#else
    for (int j = 0; j < 4; ++j) x[j].store(p + j * F32::width);
#endif
}

// y[i ...] = value(i, lanes), integers in 0 .. 255, over [0, count).
template <class Value>
inline void write_bytes(uint8_t* y, int64_t count, const Value& value) {
    constexpr int W = F32::width;
    int64_t i = 0;
    for (; i + 4 * W <= count; i += 4 * W) {
        I32 x[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) x[j] = value(i + j * W, W);
        store_bytes(x, y + i);
    }
    for (; i < count; i += W) {
        const int n = lanes_left(count, i);
        store(value(i, n), y + i, n);
    }
}

inline F32 float_of_bits(I32 bits) {
#if defined(MVIT_ISA_AVX512VNNI)
    return {_mm512_castsi512_ps(bits.v)};
#elif defined(MVIT_ISA_AVX2)
    return {_mm256_castsi256_ps(bits.v)};
#else
    return each_lane([&](int i) { return from_bits(static_cast<uint32_t>(bits.lane[i])); });
#endif
}

struct QRealVector {
    F32 scale, high;
    I32 low;

    explicit QRealVector(const QReal& all) : scale(F32::all(all.scale)), high(F32::all(all.high)), low(I32::all(all.low)) {}
    QRealVector(F32 scale, F32 high, I32 low) : scale(scale), high(high), low(low) {}
    F32 operator()(I32 q) const { return (to_float(q + low) + high) * scale; }
};

// The same where low is 0. 2^23 + q is made by an integer addition instead of a conversion, for which there are fewer units; it is exact,
// and so is high - 2^23.
struct QNearRealVector {
    F32 scale, high;

    explicit QNearRealVector(const QReal& all) : scale(F32::all(all.scale)), high(F32::all(all.high - 0x1p23f)) {}
    F32 operator()(I32 q) const { return (float_of_bits(q + I32::all(0x4B000000)) + high) * scale; }
};

}  // namespace
}  // namespace mvit
