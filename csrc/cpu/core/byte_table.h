// y[i] = table[x[i]]: any function of a byte. Internal linkage; y may be x.
//
// Floor: every byte read and written once. AVX-512 with VBMI looks up 64 bytes with two vpermi2b, of 128 entries each, and takes one or the
// other by the top bit: memory speed. Without VBMI there is vpshufb, which looks up a table of 16 by the low four bits and gives 0 where
// the top bit is set: 16 steps, of three instructions each, and still two to four times as fast as a loop of loads.
//
// In step k the index is x - 16 k, so its low bits stay and its top bit says when a byte takes part. Let h = x / 16. Below 128, x takes
// part in the steps 0 .. h; in step 8 it is negative, and from there on subtraction saturates, so that it remains so. From 128 on, x takes
// part in the steps h - 7 .. h. What those steps give is combined by exclusive or, of tables D[k] such that it comes to the h-th sixteenth
// t[h]:
//
//     D[k] = t[k] ^ t[k - 1] ^ D[k - 8], without what has a negative index
//
// (below 128 the sum telescopes; from 128 on, the one for h is that for h - 1 with D[h] more and D[h - 8] less). As in XNNPACK's x8-lut.
#pragma once

#include <cstdint>

#if defined(MVIT_ISA_AVX512VNNI) || defined(MVIT_ISA_AVX2)
#include <immintrin.h>
#endif

namespace mvit {

// Whether this processor has AVX512-VBMI, which AVX512-VNNI does not imply. Tests switch it off to see the other way.
extern bool byte_table_vbmi;

namespace {

inline void look_up_one_by_one(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) {
    for (int64_t i = 0; i < count; ++i) y[i] = table[x[i]];
}

#if defined(MVIT_ISA_AVX512VNNI)

inline __mmask64 first_bytes(int64_t n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }

__attribute__((target("avx512vbmi"))) inline void look_up_vbmi(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) {
    const __m512i t0 = _mm512_loadu_si512(table), t1 = _mm512_loadu_si512(table + 64);
    const __m512i t2 = _mm512_loadu_si512(table + 128), t3 = _mm512_loadu_si512(table + 192);
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
        const __m512i v = _mm512_loadu_si512(x + i), low = _mm512_permutex2var_epi8(t0, v, t1), high = _mm512_permutex2var_epi8(t2, v, t3);
        _mm512_storeu_si512(y + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), low, high));
    }
    if (i < count) {
        const __mmask64 lanes = first_bytes(count - i);
        const __m512i v = _mm512_maskz_loadu_epi8(lanes, x + i);
        const __m512i low = _mm512_permutex2var_epi8(t0, v, t1), high = _mm512_permutex2var_epi8(t2, v, t3);
        _mm512_mask_storeu_epi8(y + i, lanes, _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), low, high));
    }
}

struct Bytes {
    static constexpr int width = 64;
    __m512i v;

    static Bytes load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
    void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
    static Bytes sixteen(const uint8_t* p) { return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
    Bytes less_16() const { return {_mm512_sub_epi8(v, _mm512_set1_epi8(16))}; }
    Bytes less_16_saturated() const { return {_mm512_subs_epi8(v, _mm512_set1_epi8(16))}; }
    Bytes at(Bytes i) const { return {_mm512_shuffle_epi8(v, i.v)}; }
};
inline Bytes operator^(Bytes a, Bytes b) { return {_mm512_xor_si512(a.v, b.v)}; }

#elif defined(MVIT_ISA_AVX2)

struct Bytes {
    static constexpr int width = 32;
    __m256i v;

    static Bytes load(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
    void store(uint8_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
    static Bytes sixteen(const uint8_t* p) { return {_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
    Bytes less_16() const { return {_mm256_sub_epi8(v, _mm256_set1_epi8(16))}; }
    Bytes less_16_saturated() const { return {_mm256_subs_epi8(v, _mm256_set1_epi8(16))}; }
    Bytes at(Bytes i) const { return {_mm256_shuffle_epi8(v, i.v)}; }
};
inline Bytes operator^(Bytes a, Bytes b) { return {_mm256_xor_si256(a.v, b.v)}; }

#endif

#if defined(MVIT_ISA_AVX512VNNI) || defined(MVIT_ISA_AVX2)

inline void look_up_by_sixteens(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) {
    Bytes d[16];
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) {
        d[k] = Bytes::sixteen(table + 16 * k);
        if (k > 0) d[k] = d[k] ^ Bytes::sixteen(table + 16 * (k - 1));
        if (k >= 8) d[k] = d[k] ^ d[k - 8];
    }
    int64_t i = 0;
    for (; i + Bytes::width <= count; i += Bytes::width) {
        Bytes v = Bytes::load(x + i), result = d[0].at(v);
#pragma GCC unroll 16
        for (int k = 1; k < 16; ++k) {
            v = k <= 8 ? v.less_16() : v.less_16_saturated();
            result = result ^ d[k].at(v);
        }
        result.store(y + i);
    }
    look_up_one_by_one(table, x + i, y + i, count - i);
}

#endif

inline void look_up(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) {
#if defined(MVIT_ISA_AVX512VNNI)
    if (byte_table_vbmi) return look_up_vbmi(table, x, y, count);
#endif
#if defined(MVIT_ISA_AVX512VNNI) || defined(MVIT_ISA_AVX2)
    if (count >= Bytes::width) return look_up_by_sixteens(table, x, y, count);
#endif
    look_up_one_by_one(table, x, y, count);
}

}  // namespace
}  // namespace mvit
