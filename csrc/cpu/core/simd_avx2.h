// F32 on AVX2, FMA and F16C: 8 lanes. See simd.h.
#pragma once

#include <immintrin.h>

namespace mvit {
namespace {

// n ones followed by zeros starts at first_lanes + 8 - n.
alignas(32) constexpr int32_t first_lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

struct F32 {
    static constexpr int width = 8;
    __m256 v;

    static F32 all(float s) { return {_mm256_set1_ps(s)}; }

    static F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static F32 load(const bf16* p) { return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static F32 load(const f16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }

    static F32 load_n(const float* p, int n, float fill) {
        const __m256i lanes = first(n);
        return {_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes))};
    }
    // AVX2 has no masked 16-bit access: the tail goes through a small buffer.
    template <class Half>
    static F32 load_n(const Half* p, int n, float fill) {
        Half buffer[width] = {};
        for (int i = 0; i < n; ++i) buffer[i] = p[i];
        return {_mm256_blendv_ps(_mm256_set1_ps(fill), load(buffer).v, _mm256_castsi256_ps(first(n)))};
    }

    void store(float* p) const { _mm256_storeu_ps(p, v); }
    void store(bf16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16()); }
    void store(f16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_f16()); }

    void store_n(float* p, int n) const { _mm256_maskstore_ps(p, first(n), v); }
    template <class Half>
    void store_n(Half* p, int n) const {
        Half buffer[width];
        store(buffer);
        for (int i = 0; i < n; ++i) p[i] = buffer[i];
    }

    template <int s>
    F32 swap_lanes() const {
        if constexpr (s == 4) return {_mm256_permute2f128_ps(v, v, 0x01)};
        if constexpr (s == 2) return {_mm256_permute_ps(v, 0x4E)};
        if constexpr (s == 1) return {_mm256_permute_ps(v, 0xB1)};
    }

  private:
    static __m256i first(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first_lanes + width - n)); }
    static F32 widen_bf16(__m128i bits) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))}; }
    // Round to nearest even; NaN becomes the quiet NaN 0x7FC0.
    __m128i narrow_bf16() const {
        const __m256i bits = _mm256_castps_si256(v);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        __m256i r = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
        const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
        r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7FC0), _mm256_castps_si256(nan));
        return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    }
    __m128i narrow_f16() const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32 round(F32 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F32 pow2(F32 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
inline F32 times_pow2(F32 x, F32 n) { return x * pow2(min(max(n, F32::all(-126.0f)), F32::all(127.0f))); }
inline F32 where_positive(F32 v, F32 x) { return {_mm256_and_ps(_mm256_cmp_ps(v.v, _mm256_setzero_ps(), _CMP_NLE_UQ), x.v)}; }
inline F32 where_not_below(F32 v, float bound, F32 x) {
    return {_mm256_and_ps(_mm256_cmp_ps(v.v, _mm256_set1_ps(bound), _CMP_NLT_UQ), x.v)};
}

struct I32 {
    __m256i v;

    static I32 all(int32_t s) { return {_mm256_set1_epi32(s)}; }

    static I32 load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
    static I32 load(const int16_t* p) { return {_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
    static I32 load(const uint8_t* p) { return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))}; }

    static I32 load_n(const int32_t* p, int n) { return {_mm256_maskload_epi32(p, first(n))}; }
    template <class T>
    static I32 load_n(const T* p, int n) {
        T buffer[8] = {};
        for (int i = 0; i < n; ++i) buffer[i] = p[i];
        return load(buffer);
    }

    void store(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
    void store(int16_t* p) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                         _mm_unpacklo_epi64(gather<0x0D0C090805040100LL>(0), gather<0x0D0C090805040100LL>(1)));
    }
    void store(uint8_t* p) const {
        const __m128i bytes = _mm_unpacklo_epi32(gather<0x0C080400LL>(0), gather<0x0C080400LL>(1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
    }

    void store_n(int32_t* p, int n) const { _mm256_maskstore_epi32(p, first(n), v); }
    template <class T>
    void store_n(T* p, int n) const {
        T buffer[8];
        store(buffer);
        for (int i = 0; i < n; ++i) p[i] = buffer[i];
    }

  private:
    static __m256i first(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first_lanes + 8 - n)); }
    // Bytes of one half, chosen by their numbers.
    template <int64_t bytes>
    __m128i gather(int half) const {
        const __m128i from = half == 0 ? _mm256_castsi256_si128(v) : _mm256_extracti128_si256(v, 1);
        return _mm_shuffle_epi8(from, _mm_cvtsi64_si128(bytes));
    }
};

inline I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline I32 operator*(I32 a, I32 b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
inline I32 max(I32 a, I32 b) { return {_mm256_max_epi32(a.v, b.v)}; }
inline I32 min(I32 a, I32 b) { return {_mm256_min_epi32(a.v, b.v)}; }
inline F32 to_float(I32 a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline I32 to_int(F32 a) { return {_mm256_cvtps_epi32(a.v)}; }
inline I32 truncated(F32 a) { return {_mm256_cvttps_epi32(a.v)}; }
inline F32 pick(const float* table, I32 i) { return {_mm256_i32gather_ps(table, i.v, 4)}; }

inline void transpose(F32 (&x)[8]) {
    __m256 a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(x[i].v, x[i + 1].v);
        a[i + 1] = _mm256_unpackhi_ps(x[i].v, x[i + 1].v);
    }
    // b[g + j] gets column 4 l + j of the rows g .. g + 3 into its 128-bit lane l.
#pragma GCC unroll 2
    for (int g = 0; g < 8; g += 4) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const __m256d low = _mm256_castps_pd(a[g + j]), high = _mm256_castps_pd(a[g + 2 + j]);
            b[g + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
            b[g + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        x[j].v = _mm256_permute2f128_ps(b[j], b[4 + j], 0x20);
        x[4 + j].v = _mm256_permute2f128_ps(b[j], b[4 + j], 0x31);
    }
}

}  // namespace
}  // namespace mvit
