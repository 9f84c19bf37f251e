// F32 on AVX-512 (F, BW, VL, DQ): 16 lanes. See simd.h.
#pragma once

#include <immintrin.h>

namespace mvit {
namespace {

struct F32 {
    static constexpr int width = 16;
    __m512 v;

    static F32 all(float s) { return {_mm512_set1_ps(s)}; }

    static F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static F32 load(const bf16* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static F32 load(const f16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }

    static F32 load_n(const float* p, int n, float fill) { return {_mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), p)}; }
    static F32 load_n(const bf16* p, int n, float fill) {
        return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), first(n), widen_bf16(_mm256_maskz_loadu_epi16(first(n), p)).v)};
    }
    static F32 load_n(const f16* p, int n, float fill) {
        return {_mm512_mask_cvtph_ps(_mm512_set1_ps(fill), first(n), _mm256_maskz_loadu_epi16(first(n), p))};
    }

    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16()); }
    void store(f16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16()); }

    void store_n(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
    void store_n(bf16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), narrow_bf16()); }
    void store_n(f16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), narrow_f16()); }

#if defined(MVIT_ISA_AVX512BF16)
    void store_normal(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded_to_bf16()); }
    void store_normal_n(bf16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), rounded_to_bf16()); }
#endif

    template <int s>
    F32 swap_lanes() const {
        if constexpr (s == 8) return {_mm512_shuffle_f32x4(v, v, 0x4E)};
        if constexpr (s == 4) return {_mm512_shuffle_f32x4(v, v, 0xB1)};
        if constexpr (s == 2) return {_mm512_permute_ps(v, 0x4E)};
        if constexpr (s == 1) return {_mm512_permute_ps(v, 0xB1)};
    }

  private:
    static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
    static F32 widen_bf16(__m256i bits) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))}; }
    // Round to nearest even; NaN becomes the quiet NaN 0x7FC0.
    __m256i narrow_bf16() const {
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i r = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
        r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC0));
        return _mm512_cvtepi32_epi16(r);
    }
#if defined(MVIT_ISA_AVX512BF16)
    __m256i rounded_to_bf16() const { return __builtin_bit_cast(__m256i, _mm512_cvtneps_pbh(v)); }
#endif
    __m256i narrow_f16() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F32 pow2(F32 n) { return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v)}; }
inline F32 times_pow2(F32 x, F32 n) { return {_mm512_scalef_ps(x.v, n.v)}; }
// x - floor(x), and 0 of infinity.
inline F32 fraction(F32 x) { return {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
// -min(|x|, |most|), -|most| of NaN.
inline F32 minus_size(F32 x, F32 most) { return {_mm512_range_ps(x.v, most.v, 0xE)}; }
// 1 / x within 2^-14, relative.
inline F32 reciprocal_estimate(F32 x) { return {_mm512_rcp14_ps(x.v)}; }
inline F32 where_positive(F32 v, F32 x) { return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v.v, _mm512_setzero_ps(), _CMP_NLE_UQ), x.v)}; }
inline F32 where_not_below(F32 v, float bound, F32 x) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v.v, _mm512_set1_ps(bound), _CMP_NLT_UQ), x.v)};
}

struct I32 {
    __m512i v;

    static I32 all(int32_t s) { return {_mm512_set1_epi32(s)}; }

    static I32 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
    static I32 load(const int16_t* p) { return {_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
    static I32 load(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }

    static I32 load_n(const int32_t* p, int n) { return {_mm512_maskz_loadu_epi32(first(n), p)}; }
    static I32 load_n(const int16_t* p, int n) { return {_mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(first(n), p))}; }
    static I32 load_n(const uint8_t* p, int n) { return {_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p))}; }

    void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
    void store(int16_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v)); }
    void store(uint8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }

    void store_n(int32_t* p, int n) const { _mm512_mask_storeu_epi32(p, first(n), v); }
    void store_n(int16_t* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(v)); }
    void store_n(uint8_t* p, int n) const { _mm_mask_storeu_epi8(p, first(n), _mm512_cvtepi32_epi8(v)); }

  private:
    static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

inline I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32 operator*(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline I32 min(I32 a, I32 b) { return {_mm512_min_epi32(a.v, b.v)}; }
inline F32 to_float(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I32 to_int(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline I32 truncated(F32 a) { return {_mm512_cvttps_epi32(a.v)}; }
inline F32 pick(const float* table, I32 i) { return {_mm512_permutex2var_ps(_mm512_loadu_ps(table), i.v, _mm512_loadu_ps(table + 16))}; }

inline void transpose(F32 (&x)[16]) {
    __m512 a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
        a[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
    }
    // b[g + j] gets column 4 l + j of the rows g .. g + 3 into its 128-bit lane l; below, 4 x 4 such lanes change places.
#pragma GCC unroll 4
    for (int g = 0; g < 16; g += 4) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const __m512d low = _mm512_castps_pd(a[g + j]), high = _mm512_castps_pd(a[g + 2 + j]);
            b[g + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[g + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512 even0 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), even1 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
        const __m512 odd0 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xDD), odd1 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xDD);
        x[j].v = _mm512_shuffle_f32x4(even0, even1, 0x88);
        x[4 + j].v = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
        x[8 + j].v = _mm512_shuffle_f32x4(even0, even1, 0xDD);
        x[12 + j].v = _mm512_shuffle_f32x4(odd0, odd1, 0xDD);
    }
}

}  // namespace
}  // namespace mvit
