// The exact sum and sum of squares of int16 values: what mean and variance of an integer stream are computed from. Internal linkage.
//
// int64 holds both of up to 2^33 values. Integers can be added in any order: neither threads nor the instruction set show.
#pragma once

#include <cstdint>

#include "cpu/core/simd.h"

namespace mvit {
namespace {

struct QSums {
    int64_t sum, squares;
};

#if defined(MVIT_ISA_AVX512VNNI)

inline QSums sums_of(const int16_t* x, int64_t count) {
    constexpr int64_t run = 32 * (1 << 14);  // each lane of `pairs` gets up to 2^16 in size from a vector
    const __m512i ones = _mm512_set1_epi16(1), low = _mm512_set1_epi64(0xFFFFFFFF);
    __m512i squares = _mm512_setzero_si512();
    int64_t sum = 0;
    for (int64_t begin = 0; begin < count; begin += run) {
        const int64_t end = count - begin < run ? count : begin + run;
        __m512i pairs = _mm512_setzero_si512();
        for (int64_t i = begin; i < end; i += 32) {
            const __m512i v = end - i < 32 ? _mm512_maskz_loadu_epi16((__mmask32{1} << (end - i)) - 1, x + i) : _mm512_loadu_si512(x + i);
            pairs = _mm512_add_epi32(pairs, _mm512_madd_epi16(v, ones));
            const __m512i square = _mm512_madd_epi16(v, v);  // up to 2^31: unsigned
            squares = _mm512_add_epi64(squares, _mm512_add_epi64(_mm512_and_si512(square, low), _mm512_srli_epi64(square, 32)));
        }
        sum += _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(pairs)),
                                                        _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(pairs, 1))));
    }
    return {sum, _mm512_reduce_add_epi64(squares)};
}

#elif defined(MVIT_ISA_AVX2)

inline int64_t sum_lanes(__m256i x) {
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return _mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
}

inline QSums sums_of(const int16_t* x, int64_t count) {
    constexpr int64_t run = 16 * (1 << 14);  // each lane of `pairs` gets up to 2^16 in size from a vector
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi64x(0xFFFFFFFF);
    __m256i squares = _mm256_setzero_si256();
    QSums sums{};
    int64_t i = 0;
    while (i + 16 <= count) {
        const int64_t end = count - i < run ? count : i + run;
        __m256i pairs = _mm256_setzero_si256();
        for (; i + 16 <= end; i += 16) {
            const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
            pairs = _mm256_add_epi32(pairs, _mm256_madd_epi16(v, ones));
            const __m256i square = _mm256_madd_epi16(v, v);  // up to 2^31: unsigned
            squares = _mm256_add_epi64(squares, _mm256_add_epi64(_mm256_and_si256(square, low), _mm256_srli_epi64(square, 32)));
        }
        sums.sum += sum_lanes(_mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(pairs)),
                                               _mm256_cvtepi32_epi64(_mm256_extracti128_si256(pairs, 1))));
    }
    sums.squares = sum_lanes(squares);
    for (; i < count; ++i) {
        sums.sum += x[i];
        sums.squares += x[i] * x[i];
    }
    return sums;
}

#else

inline QSums sums_of(const int16_t* x, int64_t count) {
    QSums sums{};
    for (int64_t i = 0; i < count; ++i) {
        sums.sum += x[i];
        sums.squares += x[i] * x[i];
    }
    return sums;
}

#endif

// Of rows `stride` values apart.
inline QSums sums_of_rows(const int16_t* x, int64_t stride, int64_t rows, int64_t columns) {
    if (stride == columns) return sums_of(x, rows * columns);
    QSums total{};
    for (int64_t r = 0; r < rows; ++r) {
        const QSums row = sums_of(x + r * stride, columns);
        total.sum += row.sum, total.squares += row.squares;
    }
    return total;
}

}  // namespace
}  // namespace mvit
