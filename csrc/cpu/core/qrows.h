// Rows of bytes and panels of a packed weight in the form that this instruction set multiplies. Internal linkage.
//
// AVX512-VNNI and plain C++ multiply bytes by bytes. AVX2 has no such instruction that keeps all bits: vpmaddubsw adds two products in a
// saturating int16, which 2 * 255 * 127 overflows. With 8-bit weights both sides are therefore widened to int16 and multiplied by vpmaddwd,
// two k of 8 columns at a time, so that each lane of a sum is a column. AVX-VNNI, which processors without AVX-512 have, multiplies bytes.
// With 6-bit weights two products are at most 2 * 255 * 32 = 16320 in size, and even two such pairs can be added: bytes it is.
#pragma once

#include "cpu/core/qtile.h"
#include "cpu/core/simd.h"

namespace mvit {
namespace {

#if defined(MVIT_ISA_AVX2) && !defined(MVIT_ISA_AVXVNNI)
inline constexpr bool widens(int bits) { return bits == 8; }
#else
inline constexpr bool widens(int) { return false; }
#endif

// A single row meets 6-bit weights as they are: there is nothing to share the unpacked ones with.
#if defined(MVIT_ISA_AVX512VNNI)
inline constexpr bool row_meets_planes = true;
#else
inline constexpr bool row_meets_planes = false;
#endif

struct QOperand {
    const void* data;
    int64_t stride;  // bytes
    Windows windows = {};
};

inline int64_t qrows_stride(int64_t depth, int bits) { return widens(bits) ? qblocks(depth) * 4 * 2 + 64 : 0; }
inline int64_t qpanel_stride(int64_t depth, int bits) {
    if (widens(bits)) return qblocks(depth) * qblock * 2;
    return bits == 6 ? (depth + 15) / 16 * 4 * qblock : 0;
}
// Bytes of scratch for load_qrows and load_qpanels.
inline int64_t qrows_scratch(int64_t rows, int64_t depth, int bits) { return rows * qrows_stride(depth, bits); }
inline int64_t qpanels_scratch(int64_t depth, int bits) { return qgroup * qpanel_stride(depth, bits); }

// The rows themselves, or int16 copies with zeros up to the next multiple of 4.
inline QOperand load_qrows(const uint8_t* a, int64_t a_stride, int64_t rows, int64_t depth, int bits, void* scratch) {
    if (!widens(bits)) return {.data = a, .stride = a_stride};
    const int64_t stride = qrows_stride(depth, bits);
    for (int64_t r = 0; r < rows; ++r) {
        auto* to = reinterpret_cast<int16_t*>(static_cast<char*>(scratch) + r * stride);
        const uint8_t* from = a + r * a_stride;
        for (int64_t k = 0; k < depth; ++k) to[k] = from[k];
        for (int64_t k = depth; k < qblocks(depth) * 4; ++k) to[k] = 0;
    }
    return {.data = scratch, .stride = stride};
}

// Three planes of a 6-bit panel as the four blocks that they hold. Flipping bit 5 and taking 32 away carries the sign up.
#if defined(MVIT_ISA_AVX512VNNI)
inline void unpack_planes(const uint8_t* planes, __m512i (&block)[4]) {
    const __m512i low = _mm512_set1_epi8(63), sign = _mm512_set1_epi8(32);
    const __m512i p0 = _mm512_loadu_si512(planes), p1 = _mm512_loadu_si512(planes + qblock), p2 = _mm512_loadu_si512(planes + 2 * qblock);
    constexpr int and_xor = 0x6A, or_or = 0xFE;  // truth tables of (a & b) ^ c and a | b | c
    block[0] = _mm512_ternarylogic_epi32(p0, low, sign, and_xor);
    block[1] = _mm512_ternarylogic_epi32(p1, low, sign, and_xor);
    block[2] = _mm512_ternarylogic_epi32(p2, low, sign, and_xor);
    const __m512i a = _mm512_and_si512(_mm512_srli_epi16(p0, 6), _mm512_set1_epi8(3));
    const __m512i b = _mm512_and_si512(_mm512_srli_epi16(p1, 4), _mm512_set1_epi8(12));
    const __m512i c = _mm512_and_si512(_mm512_srli_epi16(p2, 2), _mm512_set1_epi8(48));
    block[3] = _mm512_xor_si512(_mm512_ternarylogic_epi32(a, b, c, or_or), sign);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) block[i] = _mm512_sub_epi8(block[i], sign);
}
inline void unpack_planes(const uint8_t* planes, int8_t* blocks) {
    __m512i block[4];
    unpack_planes(planes, block);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) _mm512_storeu_si512(blocks + i * qblock, block[i]);
}
#elif defined(MVIT_ISA_AVX2)
inline void unpack_planes(const uint8_t* planes, int8_t* blocks) {
    const __m256i low = _mm256_set1_epi8(63), sign = _mm256_set1_epi8(32);
    for (int half = 0; half < qblock; half += 32) {
        const auto load = [&](int plane) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(planes + plane * qblock + half)); };
        const auto store = [&](__m256i six_bits, int block) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(blocks + block * qblock + half),
                                _mm256_sub_epi8(_mm256_xor_si256(six_bits, sign), sign));
        };
        const __m256i p0 = load(0), p1 = load(1), p2 = load(2);
        store(_mm256_and_si256(p0, low), 0);
        store(_mm256_and_si256(p1, low), 1);
        store(_mm256_and_si256(p2, low), 2);
        const __m256i a = _mm256_and_si256(_mm256_srli_epi16(p0, 6), _mm256_set1_epi8(3));
        const __m256i b = _mm256_and_si256(_mm256_srli_epi16(p1, 4), _mm256_set1_epi8(12));
        const __m256i c = _mm256_and_si256(_mm256_srli_epi16(p2, 2), _mm256_set1_epi8(48));
        store(_mm256_or_si256(_mm256_or_si256(a, b), c), 3);
    }
}
#else
inline void unpack_planes(const uint8_t* planes, int8_t* blocks) {
    const auto value = [](int bits) { return static_cast<int8_t>((bits ^ 32) - 32); };
    for (int i = 0; i < qblock; ++i) {
        const int p0 = planes[i], p1 = planes[qblock + i], p2 = planes[2 * qblock + i];
        blocks[i] = value(p0 & 63);
        blocks[qblock + i] = value(p1 & 63);
        blocks[2 * qblock + i] = value(p2 & 63);
        blocks[3 * qblock + i] = value(p0 >> 6 | (p1 >> 6) << 2 | (p2 >> 6) << 4);
    }
}
#endif

// A block of four k of bytes as two of two k of int16: [16 columns: k0 k1 | 16 columns: k2 k3].
inline void widen_block(const int8_t* block, int16_t* to) {
#if defined(MVIT_ISA_AVX2)
    for (int half = 0; half < 2; ++half) {  // a byte to the upper half of its int16, and down again with its sign
        const __m256i four = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 32 * half));
        const auto pair = [&](__m256i of_bytes, int at) {
            const __m256i words = _mm256_srai_epi16(_mm256_shuffle_epi8(four, of_bytes), 8);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), words);
        };
        const __m128i first = _mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13);
        const __m128i second = _mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15);
        pair(_mm256_broadcastsi128_si256(first), 16 * half);
        pair(_mm256_broadcastsi128_si256(second), 32 + 16 * half);
    }
#else
    for (int n = 0; n < qpanel; ++n)
        for (int k = 0; k < 4; ++k) to[32 * (k / 2) + 2 * n + k % 2] = block[4 * n + k];
#endif
}

inline constexpr bool meets_planes(int64_t rows, int bits) { return bits == 6 && rows == 1 && row_meets_planes; }

// Panels as they are, where that is how `rows` rows meet them, or in scratch.
inline QOperand load_qpanels(const QWeight& w, int64_t first, int64_t count, int64_t rows, void* scratch) {
    const int64_t bytes = qpanel_bytes(w.depth, w.bits);
    const int8_t* from = w.panels + first * bytes;
    if ((w.bits == 8 && !widens(8)) || meets_planes(rows, w.bits)) return {.data = from, .stride = bytes};
    const int64_t stride = qpanel_stride(w.depth, w.bits);
    for (int64_t p = 0; p < count; ++p) {
        char* to = static_cast<char*>(scratch) + p * stride;
        const int8_t* panel = from + p * bytes;
        if (w.bits == 8) {
            for (int64_t at = 0; at < bytes; at += qblock) widen_block(panel + at, reinterpret_cast<int16_t*>(to) + at);
        } else {
            for (int64_t i = 0; i < (w.depth + 15) / 16; ++i)
                unpack_planes(reinterpret_cast<const uint8_t*>(panel) + i * 3 * qblock, reinterpret_cast<int8_t*>(to) + i * 4 * qblock);
        }
    }
    return {.data = scratch, .stride = stride};
}

}  // namespace
}  // namespace mvit
