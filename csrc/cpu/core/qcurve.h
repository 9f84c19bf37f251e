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
// offset is the zero-point times 2^f and half of 2^f. f is as large as int16 allows while X reaches |x| = 12 (GELU: 5.5), where e is
// nothing; so the result is within about 1 / 2^f of the function, and then rounded. mvit_kernels/reference/activation_curve.py makes the
// tables and defines the same.
//
// Floor: 16 instructions for a vector of 32, beside 7 for two of 16 sums that become one of int16.
#pragma once

#include <cstdint>

#include "cpu/core/simd.h"

namespace mvit {

// Three tables, then f, offset and most, and one more.
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
    // int16 to int16 of at most `most`; what is negative stands for 0, as packing to bytes takes it.
    __m512i operator()(__m512i x) const {
        const __m512i size = _mm512_min_epu16(_mm512_abs_epi16(x), _mm512_set1_epi16(32767));
        const __m512i i = _mm512_srli_epi16(size, 9), r = _mm512_and_si512(_mm512_slli_epi16(size, 6), _mm512_set1_epi16(0x7FC0));
        const auto pick = [&](int t) { return _mm512_permutex2var_epi16(table_[t][0], i, table_[t][1]); };
        const __m512i slope = _mm512_add_epi16(pick(1), _mm512_mulhrs_epi16(r, pick(2)));
        const __m512i e = _mm512_add_epi16(pick(0), _mm512_mulhrs_epi16(r, slope));
        const __m512i y = _mm512_add_epi16(_mm512_max_epi16(x, _mm512_setzero_si512()), _mm512_mulhrs_epi16(e, _mm512_set1_epi16(1024)));
        return _mm512_min_epi16(_mm512_sra_epi16(_mm512_adds_epi16(y, offset_), shift_), most_);
    }

  private:
    __m512i table_[3][2];
    __m128i shift_;
    __m512i offset_, most_;
};

// Sums times scale as int32 in the range of int16, or beyond where saturation takes care of it; `small`: of scales below 1, with which the
// conversion cannot overflow.
template <bool small = false>
inline __m512i curve_argument(__m512i sum, __m512 scale) {
    const __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
    return _mm512_cvtps_epi32(small ? x : _mm512_min_ps(x, _mm512_set1_ps(0x1p17f)));
}

inline I32 curve_of(const QCurve& curve, I32 sum, F32 scale) {
    const __m256i words = _mm512_cvtsepi32_epi16(curve_argument(sum.v, scale.v));
    const __m256i y = _mm256_max_epi16(_mm512_castsi512_si256(curve(_mm512_castsi256_si512(words))), _mm256_setzero_si256());
    return {_mm512_cvtepi16_epi32(y)};
}

#elif defined(MVIT_ISA_AVX2)

// Gathers take longer than everything else here. vpshufb looks up 16 bytes by the low four bits and gives 0 where the top bit is set: four
// of them for the low and four for the high bytes of a table of 64, each with 16 taken away from the index once more. For an index h in the
// quarter k those of 0 .. k give something, and the exclusive or of what they give is t[k], if their tables are t[k] ^ t[k - 1].
class QCurve {
  public:
    explicit QCurve(const int16_t* curve) : shift_(_mm_cvtsi32_si128(curve[192])), offset_(curve[193]), most_(curve[194]) {
        for (int t = 0; t < 3; ++t) {
            const int16_t* table = curve + qcurve_segments * t;
            int16_t steps[qcurve_segments];  // by themselves: of one loop that does both gcc 12 makes no vectors
            for (int i = 0; i < 16; ++i) steps[i] = table[i];
            for (int i = 16; i < qcurve_segments; ++i) steps[i] = static_cast<int16_t>(table[i] ^ table[i - 16]);
            for (int i = 0; i < qcurve_segments; ++i) {
                bytes_[t][0][i] = static_cast<uint8_t>(steps[i]);
                bytes_[t][1][i] = static_cast<uint8_t>(steps[i] >> 8);
            }
        }
    }
    // int16 of two vectors to bytes, as packing gives them: eights of x and y by turns.
    __m256i operator()(__m256i x, __m256i y) const {
        const __m256i most = _mm256_set1_epi16(32767), inside = _mm256_set1_epi16(0x7FC0), sixteen = _mm256_set1_epi8(16);
        const auto size_of = [&](__m256i v) { return _mm256_min_epu16(_mm256_abs_epi16(v), most); };
        const auto rest_of = [&](__m256i size) { return _mm256_and_si256(_mm256_slli_epi16(size, 6), inside); };
        const __m256i x_size = size_of(x), y_size = size_of(y), x_rest = rest_of(x_size), y_rest = rest_of(y_size);
        // Bytes in the order of packing, which unpacking bytes to words undoes.
        const __m256i i0 = _mm256_packus_epi16(_mm256_srli_epi16(x_size, 9), _mm256_srli_epi16(y_size, 9));
        const __m256i i1 = _mm256_sub_epi8(i0, sixteen), i2 = _mm256_sub_epi8(i1, sixteen), i3 = _mm256_sub_epi8(i2, sixteen);
        const auto look_up = [&](const uint8_t* table) {
            const auto part = [&](int k, __m256i i) {
                const __m128i some = _mm_load_si128(reinterpret_cast<const __m128i*>(table + 16 * k));
                return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(some), i);
            };
            return _mm256_xor_si256(_mm256_xor_si256(part(0, i0), part(1, i1)), _mm256_xor_si256(part(2, i2), part(3, i3)));
        };
        __m256i x_sum = _mm256_setzero_si256(), y_sum = x_sum;
#pragma GCC unroll 3
        for (int t = 2; t >= 0; --t) {
            const __m256i low = look_up(bytes_[t][0]), high = look_up(bytes_[t][1]);
            const __m256i of_x = _mm256_unpacklo_epi8(low, high), of_y = _mm256_unpackhi_epi8(low, high);
            x_sum = t == 2 ? of_x : _mm256_add_epi16(of_x, _mm256_mulhrs_epi16(x_rest, x_sum));
            y_sum = t == 2 ? of_y : _mm256_add_epi16(of_y, _mm256_mulhrs_epi16(y_rest, y_sum));
        }
        return _mm256_min_epu8(_mm256_packus_epi16(finish(x, x_sum), finish(y, y_sum)), _mm256_set1_epi8(static_cast<char>(most_)));
    }

  private:
    __m256i finish(__m256i x, __m256i e) const {
        const __m256i fine = _mm256_mulhrs_epi16(e, _mm256_set1_epi16(1024));
        const __m256i y = _mm256_add_epi16(_mm256_max_epi16(x, _mm256_setzero_si256()), fine);
        return _mm256_sra_epi16(_mm256_adds_epi16(y, _mm256_set1_epi16(offset_)), shift_);
    }

    alignas(16) uint8_t bytes_[3][2][qcurve_segments];
    __m128i shift_;
    int16_t offset_, most_;
};

inline __m256i curve_argument(__m256i sum, __m256 scale) {
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale), _mm256_set1_ps(0x1p17f)));
}

inline I32 curve_of(const QCurve& curve, I32 sum, F32 scale) {
    const __m256i x = curve_argument(sum.v, scale.v), words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x, x), 0x08);
    return {_mm256_cvtepu8_epi32(_mm256_castsi256_si128(curve(words, words)))};
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
