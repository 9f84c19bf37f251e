// SiLU and GELU on int16 numbers, from what a product came to, to the byte that is written. Internal linkage.
//
// Both are max(x, 0) + e(|x|) with a small e: a quadratic polynomial on each of 64 segments. With X = x 2^f / s_y, 2^f steps to one of the
// bytes written, everything is int16, of which a vector holds twice as many as of float32, and exact on every processor:
//
//     X = rint(min(float(sum) * scale[n], 2^17)), saturated to int16          scale: s_a s_w 2^f / s_y; one rounded multiplication
//     a = min(|X|, 32767),  i = a / 512,  r = (a mod 512) 2^6                 which segment, and where in it, of 2^15
//     E = T0[i] + r * (T1[i] + r * T2[i])                                     a * b = (a b + 2^14) / 2^15, rounded down: vpmulhrsw
//     Y = max(X, 0) + E * 2^10                                                T is 32 times as fine as X
//     y = min(max((Y + offset) / 2^f, 0), most)                               rounded down; Y + offset saturates
//
// offset is the zero-point times 2^f and half of 2^f. f is as large as int16 allows while X reaches |x| = 12 (GELU: 5), where e is nothing;
// so the result is within about 1 / 2^f of the function, and then rounded. mvit_kernels/reference/activation_curve.py makes the tables and
// defines the same.
//
// Floor: 17 instructions for a vector of 32, beside 5 for two of 16 sums that become one of int16.
#pragma once

#include <cstdint>

#include "cpu/core/simd.h"

namespace mvit {

// Three tables, then f, offset and most; and one more, so that gathers of 32 bits stay inside.
inline constexpr int qcurve_segments = 64, qcurve_size = 3 * qcurve_segments + 4;

namespace {

#if defined(MVIT_ISA_AVX512VNNI)

class QCurve {
  public:
    explicit QCurve(const int16_t* curve)
        : shift_(_mm_cvtsi32_si128(curve[192])), offset_(_mm512_set1_epi16(curve[193])), most_(_mm512_set1_epi16(curve[194])) {
        for (int t = 0; t < 3; ++t)
            for (int half = 0; half < 2; ++half) table_[t][half] = _mm512_loadu_si512(curve + 64 * t + 32 * half);
    }
    // int16 to int16 in 0 .. most.
    __m512i operator()(__m512i x) const {
        const __m512i size = _mm512_min_epu16(_mm512_abs_epi16(x), _mm512_set1_epi16(32767));
        const __m512i i = _mm512_srli_epi16(size, 9), r = _mm512_and_si512(_mm512_slli_epi16(size, 6), _mm512_set1_epi16(0x7FC0));
        const auto pick = [&](int t) { return _mm512_permutex2var_epi16(table_[t][0], i, table_[t][1]); };
        const __m512i slope = _mm512_add_epi16(pick(1), _mm512_mulhrs_epi16(r, pick(2)));
        const __m512i e = _mm512_add_epi16(pick(0), _mm512_mulhrs_epi16(r, slope));
        const __m512i y = _mm512_add_epi16(_mm512_max_epi16(x, _mm512_setzero_si512()), _mm512_mulhrs_epi16(e, _mm512_set1_epi16(1024)));
        const __m512i shifted = _mm512_sra_epi16(_mm512_adds_epi16(y, offset_), shift_);
        return _mm512_min_epi16(_mm512_max_epi16(shifted, _mm512_setzero_si512()), most_);
    }

  private:
    __m512i table_[3][2];
    __m128i shift_;
    __m512i offset_, most_;
};

// Sums times scale as int32 in the range of int16, or beyond where saturation takes care of it.
inline __m512i curve_argument(__m512i sum, __m512 scale) {
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), _mm512_set1_ps(0x1p17f)));
}

inline I32 curve_of(const QCurve& curve, I32 sum, F32 scale) {
    const __m256i words = _mm512_cvtsepi32_epi16(curve_argument(sum.v, scale.v));
    return {_mm512_cvtepi16_epi32(_mm512_castsi512_si256(curve(_mm512_castsi256_si512(words))))};
}

#elif defined(MVIT_ISA_AVX2)

class QCurve {
  public:
    explicit QCurve(const int16_t* curve) : curve_(curve) {}
    // int16 to int16 in 0 .. most.
    __m256i operator()(__m256i x) const {
        const __m256i size = _mm256_min_epu16(_mm256_abs_epi16(x), _mm256_set1_epi16(32767)), zero = _mm256_setzero_si256();
        const __m256i i = _mm256_srli_epi16(size, 9), r = _mm256_and_si256(_mm256_slli_epi16(size, 6), _mm256_set1_epi16(0x7FC0));
        // Indices of even and of odd words; what is gathered lies in the low half of 32 bits.
        const __m256i even = _mm256_and_si256(i, _mm256_set1_epi32(0xFFFF)), odd = _mm256_srli_epi32(i, 16);
        const auto pick = [&](int t) {
            const auto* table = reinterpret_cast<const int*>(curve_ + 64 * t);
            const __m256i low = _mm256_i32gather_epi32(table, even, 2), high = _mm256_i32gather_epi32(table, odd, 2);
            return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xAA);
        };
        const __m256i slope = _mm256_add_epi16(pick(1), _mm256_mulhrs_epi16(r, pick(2)));
        const __m256i e = _mm256_add_epi16(pick(0), _mm256_mulhrs_epi16(r, slope));
        const __m256i y = _mm256_add_epi16(_mm256_max_epi16(x, zero), _mm256_mulhrs_epi16(e, _mm256_set1_epi16(1024)));
        const __m256i shifted = _mm256_sra_epi16(_mm256_adds_epi16(y, _mm256_set1_epi16(curve_[193])), _mm_cvtsi32_si128(curve_[192]));
        return _mm256_min_epi16(_mm256_max_epi16(shifted, zero), _mm256_set1_epi16(curve_[194]));
    }

  private:
    const int16_t* curve_;
};

inline __m256i curve_argument(__m256i sum, __m256 scale) {
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale), _mm256_set1_ps(0x1p17f)));
}

inline I32 curve_of(const QCurve& curve, I32 sum, F32 scale) {
    const __m256i x = curve_argument(sum.v, scale.v);
    const __m128i words = _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packs_epi32(x, x), 0x08));
    return {_mm256_cvtepi16_epi32(_mm256_castsi256_si128(curve(_mm256_castsi128_si256(words))))};
}

#else

class QCurve {
  public:
    explicit QCurve(const int16_t* curve) : curve_(curve) {}
    int32_t operator()(int32_t x) const {
        const auto times = [](int32_t a, int32_t b) { return (a * b + (1 << 14)) >> 15; };
        const int32_t size = x < 0 ? (x < -32767 ? 32767 : -x) : x, i = size >> 9, r = (size & 511) << 6;
        const int32_t e = curve_[i] + times(r, curve_[64 + i] + times(r, curve_[128 + i]));
        const int32_t sum = (x > 0 ? x : 0) + times(e, 1024) + curve_[193], y = (sum < 32767 ? sum : 32767) >> curve_[192];
        return y < 0 ? 0 : y < curve_[194] ? y : curve_[194];
    }

  private:
    const int16_t* curve_;
};

inline I32 curve_of(const QCurve& curve, I32 sum, F32 scale) {
    const I32 x = max(to_int(max(min(to_float(sum) * scale, F32::all(0x1p17f)), F32::all(-0x1p17f))), I32::all(INT16_MIN));
    int32_t lanes[F32::width];
    min(x, I32::all(INT16_MAX)).store(lanes);
    for (int32_t& lane : lanes) lane = curve(lane);
    return I32::load(lanes);
}

#endif

}  // namespace
}  // namespace mvit
