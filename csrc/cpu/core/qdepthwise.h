// One output row of the integer 3x3 depthwise convolution on channels-last bytes. Internal linkage.
//
//     sum[x, c] = init[c] + sum_{ky, kx} in[ky][stride x + kx - 1, c] w[c, ky, kx]        over taps inside of the map, modulo 2^32
//
// AVX512-VNNI: the three bytes of a column (and one that meets a zero) become the four bytes of a lane; a column is put together once for
// all outputs that it belongs to, and each output takes one vpdpbusd a column. 64 outputs cost, in 512-bit instructions,
//
//                       loads   interleaving   vpdpbusd   float and back   packing, zero-point, clamp   stores
//     stride 1            3          8            12            12                     7                  1
//     stride 2            6         16            12            12                     7                  1
//
// or 39 and 47 that compute: on a processor with two 512-bit pipes 20 and 24 cycles. An activation by segments adds 84 of them. Where 32
// channels or fewer are left, vectors of half the size do.
//
// AVX2 has no product of bytes that keeps all bits (see qrows.h): bytes become int16, pairs (row 0, row 2) and (row 1, 0) of them meet
// vpmaddwd. 16 outputs: 7 (stride 2: 14) to load and interleave, 24 multiplications and additions, 9 to int16, 4 from there to bytes; a
// curve takes 40.
//
// Narrow steps: where a result is a byte and nothing is added on the way, clamping after the conversion to int32 gives the same, as long as
// that conversion cannot overflow and 16 bits hold zero-points (within 2^14) beside what saturates:
//
//     rint(min(max(x, low), high)) + z = min(max(sat8(sat16(sat16(rint(x)) + z)), low + z), high + z)
//
// since low, high and z are integers. It takes 7 instructions for 64 values instead of 15. Weights, zero-point and bias bound the sum
// (is_narrow of mvit_kernels/ops/qdepthwise_conv2d.py); behind segments |activation(x)| <= |x| + 1. A curve's argument is rounded and
// saturated like a plain result, and what it gives is a byte.
//
// Rows outside of the map are taken from their neighbour with weights of zero.
#pragma once

#include <optional>

#include "cpu/core/dots.h"
#include "cpu/core/qdepthwise_types.h"
#include "cpu/core/qepilogue.h"
#if defined(MVIT_ISA_AVX2)
#include "cpu/core/qwords.h"
#endif

namespace mvit {
namespace {

struct QDepthwiseRow {
    const uint8_t* rows[3];  // above, at and below the output row; null where outside of the map. The one in the middle always exists
    int64_t width;           // of the input; the output has (width - 1) / stride + 1 pixels
    int64_t pixel_stride, channels;
    const QDepthwiseBlock* blocks;
    bool narrow;    // see above: finished by narrow steps
    int64_t first;  // pixels are rows of the epilogue: the number of the first one
};

// The taps of a row: pointers that can all be read, and the bytes of weights that count.
struct QDepthwiseTaps {
    const uint8_t* rows[3];
    int32_t counts;  // 0xFF in the bytes ky of rows inside
    int rows_outside;

    explicit QDepthwiseTaps(const QDepthwiseRow& r)
        : rows{r.rows[0] ? r.rows[0] : r.rows[1], r.rows[1], r.rows[2] ? r.rows[2] : r.rows[1]},
          counts((r.rows[0] ? 0xFF : 0) | 0xFF00 | (r.rows[2] ? 0xFF0000 : 0)),
          rows_outside(outside(!r.rows[0], !r.rows[2])) {}
};

// Sums of some pixels of one block of channels, in the order of channels, until they are finished together.
struct QDepthwiseSums {
    static constexpr int64_t most = 16;
    int32_t sum[most][qdepthwise_block];

    [[gnu::noinline]] void finish(const QEpilogue& e, int64_t pixel, int64_t pixels, int64_t channel, int64_t channels) const {
        finish_rows(e, sum[0], qdepthwise_block, pixel, pixels, channel, channels);
    }
};

// How a row is finished: by the epilogue, or by narrow steps, plain or behind segments or a curve.
enum class QDepthwiseFinish { epilogue, plain, segments, curve };

#if defined(MVIT_ISA_AVX512VNNI)

constexpr int16_t no_curve[qcurve_size] = {};

inline __m512i converted(__m512i sum, F32 scale, F32 inverse, const float* table) {
    return to_int(activate_segments(to_float(I32{sum}) * scale, table) * inverse).v;
}

// 64 or 32 bytes, and what is done with them.
struct Bytes64 {
    using Vector = __m512i;
    static constexpr int size = 64;
    static Vector all(int32_t x) { return _mm512_set1_epi32(x); }
    static Vector load(const void* p) { return _mm512_loadu_si512(p); }
    static Vector load(const uint8_t* p, uint64_t mask) { return _mm512_maskz_loadu_epi8(mask, p); }
    static void store(uint8_t* p, Vector x) { _mm512_storeu_si512(p, x); }
    static void store(uint8_t* p, uint64_t mask, Vector x) { _mm512_mask_storeu_epi8(p, mask, x); }
    static Vector low8(Vector a, Vector b) { return _mm512_unpacklo_epi8(a, b); }
    static Vector high8(Vector a, Vector b) { return _mm512_unpackhi_epi8(a, b); }
    static Vector low16(Vector a, Vector b) { return _mm512_unpacklo_epi16(a, b); }
    static Vector high16(Vector a, Vector b) { return _mm512_unpackhi_epi16(a, b); }
    static Vector both(Vector a, Vector b) { return _mm512_and_si512(a, b); }
    template <bool segments>
    static void convert(Vector (&sum)[4], const QDepthwiseBlock& block, const float* table) {
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
            const float *scale = block.scale + 16 * q, *inverse = block.inverse + 16 * q;
            sum[q] = segments ? converted(sum[q], F32::load(scale), F32::load(inverse), table)
                              : to_int(to_float(I32{sum[q]}) * F32::load(scale)).v;
        }
    }
    static Vector to_words(Vector a, Vector b, Vector zero_point) { return _mm512_adds_epi16(_mm512_packs_epi32(a, b), zero_point); }
    static Vector to_bytes(Vector a, Vector b, Vector low, Vector high) {
        return _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(a, b), low), high);
    }
    static Vector curved(const Vector (&sum)[4], const QCurve& curve) {
        return _mm512_packus_epi16(curve(_mm512_packs_epi32(sum[0], sum[1])), curve(_mm512_packs_epi32(sum[2], sum[3])));
    }
    // Vectors of positions to the order of channels: a transpose of quarters.
    static void in_order(const Vector (&q)[4], int32_t* to) {
        const Vector a = _mm512_shuffle_i32x4(q[0], q[1], 0x44), b = _mm512_shuffle_i32x4(q[2], q[3], 0x44);
        const Vector c = _mm512_shuffle_i32x4(q[0], q[1], 0xEE), d = _mm512_shuffle_i32x4(q[2], q[3], 0xEE);
        _mm512_storeu_si512(to, _mm512_shuffle_i32x4(a, b, 0x88));
        _mm512_storeu_si512(to + 16, _mm512_shuffle_i32x4(a, b, 0xDD));
        _mm512_storeu_si512(to + 32, _mm512_shuffle_i32x4(c, d, 0x88));
        _mm512_storeu_si512(to + 48, _mm512_shuffle_i32x4(c, d, 0xDD));
    }
};

struct Bytes32 {
    using Vector = __m256i;
    static constexpr int size = 32;
    static Vector all(int32_t x) { return _mm256_set1_epi32(x); }
    static Vector load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static Vector load(const uint8_t* p, uint64_t mask) { return _mm256_maskz_loadu_epi8(static_cast<__mmask32>(mask), p); }
    static void store(uint8_t* p, Vector x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
    static void store(uint8_t* p, uint64_t mask, Vector x) { _mm256_mask_storeu_epi8(p, static_cast<__mmask32>(mask), x); }
    static Vector low8(Vector a, Vector b) { return _mm256_unpacklo_epi8(a, b); }
    static Vector high8(Vector a, Vector b) { return _mm256_unpackhi_epi8(a, b); }
    static Vector low16(Vector a, Vector b) { return _mm256_unpacklo_epi16(a, b); }
    static Vector high16(Vector a, Vector b) { return _mm256_unpackhi_epi16(a, b); }
    static Vector both(Vector a, Vector b) { return _mm256_and_si256(a, b); }
    template <bool segments>
    static void convert(Vector (&sum)[4], const QDepthwiseBlock& block, const float* table) {
        if constexpr (segments) {
#pragma GCC unroll 2
            for (int q = 0; q < 4; q += 2) {
                const F32 scale = two(block.scale + 16 * q), inverse = two(block.inverse + 16 * q);
                const __m512i pair = _mm512_inserti64x4(_mm512_castsi256_si512(sum[q]), sum[q + 1], 1);
                const __m512i done = converted(pair, scale, inverse, table);
                sum[q] = _mm512_castsi512_si256(done), sum[q + 1] = _mm512_extracti64x4_epi64(done, 1);
            }
        } else {
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q)
                sum[q] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sum[q]), _mm256_loadu_ps(block.scale + 16 * q)));
        }
    }
    static F32 two(const float* p) { return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p)), _mm256_loadu_ps(p + 16), 1)}; }
    static Vector to_words(Vector a, Vector b, Vector zero_point) { return _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero_point); }
    static Vector to_bytes(Vector a, Vector b, Vector low, Vector high) {
        return _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(a, b), low), high);
    }
    static Vector curved(const Vector (&sum)[4], const QCurve& curve) {
        const __m512i a = _mm512_castsi256_si512(_mm256_packs_epi32(sum[0], sum[1]));
        const __m512i both = curve(_mm512_inserti64x4(a, _mm256_packs_epi32(sum[2], sum[3]), 1));
        return _mm256_packus_epi16(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
    }
    static void in_order(const Vector (&q)[4], int32_t* to) {
        auto* out = reinterpret_cast<__m256i*>(to);
        _mm256_storeu_si256(out, _mm256_permute2x128_si256(q[0], q[1], 0x20));
        _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(q[2], q[3], 0x20));
        _mm256_storeu_si256(out + 2, _mm256_permute2x128_si256(q[0], q[1], 0x31));
        _mm256_storeu_si256(out + 3, _mm256_permute2x128_si256(q[2], q[3], 0x31));
    }
};

// Channels [channel, channel + B::size) of a row or, unless `whole`, those of them that exist.
template <int stride, class B, bool whole, QDepthwiseFinish finish>
[[gnu::noinline]] void qdepthwise_channels(const QDepthwiseRow& r, const QEpilogue& e, const QDepthwiseTaps& taps, int64_t channel) {
    using Vector = typename B::Vector;
    const int64_t left = r.channels - channel, count = left < B::size ? left : B::size;
    const uint64_t mask = count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0};
    const QDepthwiseBlock& block = r.blocks[channel / qdepthwise_block];
    const int64_t in_width = r.width, width = (in_width - 1) / stride + 1, pixel_stride = r.pixel_stride, first = r.first;
    const uint8_t *row0 = taps.rows[0] + channel, *row1 = taps.rows[1] + channel, *row2 = taps.rows[2] + channel;
    const Vector none = B::all(0);

    Vector weight[3][4];
#pragma GCC unroll 3
    for (int kx = 0; kx < 3; ++kx)
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) weight[kx][q] = B::both(B::load(block.weight[kx][16 * q]), B::all(taps.counts));

    struct Column {
        Vector q[4];
    };
    const auto column = [&](int64_t at, Column& to) {
        at *= pixel_stride;
        const Vector a = whole ? B::load(row0 + at) : B::load(row0 + at, mask);
        const Vector b = whole ? B::load(row1 + at) : B::load(row1 + at, mask);
        const Vector c = whole ? B::load(row2 + at) : B::load(row2 + at, mask);
        const Vector low = B::low8(a, b), high = B::high8(a, b), low2 = B::low8(c, none), high2 = B::high8(c, none);
        to.q[0] = B::low16(low, low2), to.q[1] = B::high16(low, low2);
        to.q[2] = B::low16(high, high2), to.q[3] = B::high16(high, high2);
    };

    uint8_t* y = static_cast<uint8_t*>(e.y) + first * e.y_stride + channel;  // by narrow steps
    const int64_t y_stride = e.y_stride;
    const Vector zero_point[2] = {B::load(block.zero_point), B::load(block.zero_point + 32)};
    const Vector low = B::load(block.low), high = B::load(block.high);
    QDepthwiseSums sums;  // otherwise
    const QCurve curve(finish == QDepthwiseFinish::curve ? e.curve : no_curve);

    Column before{{none, none, none, none}}, here, after;
    if constexpr (stride == 1) column(0, here);
    for (int64_t x = 0; x < width; ++x) {
        const bool ends = stride * x + 1 == in_width;
        if constexpr (stride == 2) column(2 * x, here);
        if (!ends) {
            column(stride * x + 1, after);
        } else {
            after = {{none, none, none, none}};
        }
        const int32_t* init = block.init[taps.rows_outside][outside(x == 0, ends)];
        Vector sum[4];
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
            Vector one = B::load(init + 16 * q);  // by itself: gcc 12 would write an array to memory
            dot_of_bytes(one, before.q[q], weight[0][q]);
            dot_of_bytes(one, here.q[q], weight[1][q]);
            dot_of_bytes(one, after.q[q], weight[2][q]);
            sum[q] = one;
        }
        if constexpr (stride == 1) {
            before = here, here = after;
        } else {
            before = after;
        }
        if constexpr (finish != QDepthwiseFinish::epilogue) {
            B::template convert<finish == QDepthwiseFinish::segments>(sum, block, e.segments);
            Vector bytes;
            if constexpr (finish == QDepthwiseFinish::curve) {
                bytes = B::curved(sum, curve);
            } else {
                const Vector a = B::to_words(sum[0], sum[1], zero_point[0]), b = B::to_words(sum[2], sum[3], zero_point[1]);
                bytes = B::to_bytes(a, b, low, high);
            }
            if constexpr (whole) {
                B::store(y, bytes);
            } else {
                B::store(y, mask, bytes);
            }
            y += y_stride;
        } else {
            const int64_t i = x % QDepthwiseSums::most;
            B::in_order(sum, sums.sum[i]);
            if (i + 1 == QDepthwiseSums::most || x + 1 == width) sums.finish(e, first + x - i, i + 1, channel, count);
        }
    }
}

template <int stride, QDepthwiseFinish finish>
inline void qdepthwise_blocks(const QDepthwiseRow& r, const QEpilogue& e, const QDepthwiseTaps& taps) {
    int64_t c = 0;
    for (; c + 64 <= r.channels; c += 64) qdepthwise_channels<stride, Bytes64, true, finish>(r, e, taps, c);
    const int64_t left = r.channels - c;
    if (left > 32) {
        qdepthwise_channels<stride, Bytes64, false, finish>(r, e, taps, c);
    } else if (left == 32) {
        qdepthwise_channels<stride, Bytes32, true, finish>(r, e, taps, c);
    } else if (left > 0) {
        qdepthwise_channels<stride, Bytes32, false, finish>(r, e, taps, c);
    }
}

#elif defined(MVIT_ISA_AVX2)

// Sixteen channels are the quarter l of every vector of positions: four of them begin at position 16 q + 4 l. Interleaved int16 of them
// are the channels 0 to 3 and 8 to 11 (q 0 and 2) in one vector and the others (q 1 and 3) in the next.
inline __m256i two_quarters(const void* a, const void* b) {
    const __m128i low = _mm_loadu_si128(static_cast<const __m128i*>(a));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_loadu_si128(static_cast<const __m128i*>(b)), 1);
}

// Up to sixteen bytes as int16; zeros beyond.
template <bool whole>
inline __m256i as_words(const uint8_t* p, int64_t count) {
    if constexpr (whole) return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    uint8_t bytes[16] = {};
    for (int64_t i = 0; i < count; ++i) bytes[i] = p[i];
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

inline F32 two_quarters(const float* p) { return {_mm256_castsi256_ps(two_quarters(static_cast<const void*>(p), p + 32))}; }

template <QDepthwiseFinish finish>
inline __m256i converted(__m256i sum, F32 scale, const float* inverse, const float* table) {
    F32 x = to_float(I32{sum}) * scale;
    if constexpr (finish == QDepthwiseFinish::segments) x = activate_segments(x, table) * two_quarters(inverse);
    return to_int(x).v;
}

// Words of pixels of the channels from `channel` on, by narrow steps.
template <QDepthwiseFinish finish>
[[gnu::noinline]] void leave_words(const QWords& words, const QEpilogue& e, const QDepthwiseBlock& block,
                                   const std::optional<QCurve>& curve, int64_t pixel, int64_t pixels, int64_t channel, int64_t count) {
    uint8_t* y = static_cast<uint8_t*>(e.y) + pixel * e.y_stride + channel;
    const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
    if constexpr (finish == QDepthwiseFinish::curve) {
        words.leave(pixels, count, order, y, e.y_stride, *curve);
    } else {
        const int64_t in_block = channel % qdepthwise_block;
        const auto eights = [](const uint8_t* p) {  // as packing has them: each eight of channels of two pixels
            return _mm256_permute4x64_epi64(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 0x50);
        };
        const __m256i low = eights(block.low + in_block), high = eights(block.high + in_block);
        const int16_t* from = block.zero_point + in_block / 2;
        const __m256i zero_point = two_quarters(from, from + 32);
        words.leave(pixels, count, order, y, e.y_stride, [&](__m256i a, __m256i b) {
            const __m256i bytes = _mm256_packus_epi16(_mm256_adds_epi16(a, zero_point), _mm256_adds_epi16(b, zero_point));
            return _mm256_min_epu8(_mm256_max_epu8(bytes, low), high);
        });
    }
}

// Channels [channel, channel + 16) of a row or, unless `whole`, those of them that exist.
template <int stride, bool whole, QDepthwiseFinish finish>
[[gnu::noinline]] void qdepthwise_channels(const QDepthwiseRow& r, const QEpilogue& e, const QDepthwiseTaps& taps,
                                           const std::optional<QCurve>& curve, int64_t channel) {
    const int64_t left = r.channels - channel, count = left < 16 ? left : 16;
    const QDepthwiseBlock& block = r.blocks[channel / qdepthwise_block];
    const int64_t in_block = channel % qdepthwise_block, l = in_block / 16, position = 4 * l;
    const int64_t in_width = r.width, width = (in_width - 1) / stride + 1, pixel_stride = r.pixel_stride, first = r.first;
    const uint8_t *row0 = taps.rows[0] + channel, *row1 = taps.rows[1] + channel, *row2 = taps.rows[2] + channel;

    // [kx][pair][half]: (row 0, row 2) are the low bytes of a lane's two words, (row 1, 0) their high bytes.
    alignas(32) int16_t weight[3][2][2][16];
    for (int kx = 0; kx < 3; ++kx)
        for (int half = 0; half < 2; ++half) {
            const int8_t (*w)[4] = block.weight[kx] + position + 16 * half;
            const __m256i bytes = _mm256_and_si256(two_quarters(w, w + 32), _mm256_set1_epi32(taps.counts));
            _mm256_store_si256(reinterpret_cast<__m256i*>(weight[kx][0][half]), _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8));
            _mm256_store_si256(reinterpret_cast<__m256i*>(weight[kx][1][half]), _mm256_srai_epi16(bytes, 8));
        }

    // What sums begin with, by the columns that are outside.
    alignas(32) int32_t init[4][2][8];
    for (int columns = 0; columns < 4; ++columns)
        for (int half = 0; half < 2; ++half) {
            const int32_t* from = block.init[taps.rows_outside][columns] + position + 16 * half;
            _mm256_store_si256(reinterpret_cast<__m256i*>(init[columns][half]), two_quarters(from, from + 32));
        }

    // Members by name: gcc 12 keeps arrays in memory and copies them by halves, for which a load of the whole then waits.
    struct Column {
        __m256i low, high, middle_low, middle_high;  // (row 0, row 2) and (row 1, 0)
    };
    const auto column = [&](int64_t at) {
        at *= pixel_stride;
        const __m256i a = as_words<whole>(row0 + at, count), b = as_words<whole>(row1 + at, count), c = as_words<whole>(row2 + at, count);
        const __m256i none = _mm256_setzero_si256();
        return Column{_mm256_unpacklo_epi16(a, c), _mm256_unpackhi_epi16(a, c), _mm256_unpacklo_epi16(b, none),
                      _mm256_unpackhi_epi16(b, none)};
    };
    struct Sum {
        __m256i low, high;
    };
    const auto add = [&](Sum& sum, const Column& c, int kx) {
        const auto of = [&](int pair, int half) { return reinterpret_cast<const __m256i*>(weight[kx][pair][half]); };
        dot_of_words(sum.low, c.low, of(0, 0));
        dot_of_words(sum.high, c.high, of(0, 1));
        dot_of_words(sum.low, c.middle_low, of(1, 0));
        dot_of_words(sum.high, c.middle_high, of(1, 1));
    };

    const F32 scale[2] = {two_quarters(block.scale + position), two_quarters(block.scale + position + 16)};
    const float* inverse = block.inverse + position;
    QDepthwiseSums sums;  // of the epilogue
    QWords words;         // of narrow steps
    const auto leave = [&](Sum sum, int64_t x) {
        if constexpr (finish != QDepthwiseFinish::epilogue) {
            const int64_t i = x % QWords::most;
            const __m256i a = converted<finish>(sum.low, scale[0], inverse, e.segments);
            words.put(i, _mm256_packs_epi32(a, converted<finish>(sum.high, scale[1], inverse + 16, e.segments)));
            if (i + 1 == QWords::most || x + 1 == width) leave_words<finish>(words, e, block, curve, first + x - i, i + 1, channel, count);
        } else {
            const int64_t i = x % QDepthwiseSums::most;
            auto* to = reinterpret_cast<__m256i*>(sums.sum[i]);
            _mm256_storeu_si256(to, _mm256_permute2x128_si256(sum.low, sum.high, 0x20));
            _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(sum.low, sum.high, 0x31));
            if (i + 1 == QDepthwiseSums::most || x + 1 == width) sums.finish(e, first + x - i, i + 1, channel, count);
        }
    };

    // Sixteen registers hold no window of columns: each column is added to all sums that it belongs to.
    const auto start = [&](int64_t x, Sum& sum) {
        const int32_t (&from)[2][8] = init[outside(x == 0, stride * x + 1 == in_width)];
        sum.low = I32::load(from[0]).v, sum.high = I32::load(from[1]).v;
    };
    Sum here, next, after;
    start(0, here);
    if constexpr (stride == 1) {
        start(1, next);
        Column c = column(0);
        add(here, c, 1);
        add(next, c, 0);
        for (int64_t x = 0; x < width; ++x) {
            start(x + 2, after);
            if (x + 1 < width) {
                c = column(x + 1);
                add(here, c, 2);
                add(next, c, 1);
                add(after, c, 0);
            }
            leave(here, x);
            here.low = next.low, here.high = next.high;
            next.low = after.low, next.high = after.high;
        }
    } else {
        for (int64_t x = 0; x < width; ++x) {
            Column c = column(2 * x);
            add(here, c, 1);
            start(x + 1, next);
            if (2 * x + 1 < in_width) {
                c = column(2 * x + 1);
                add(here, c, 2);
                add(next, c, 0);
            }
            leave(here, x);
            here.low = next.low, here.high = next.high;
        }
    }
}

template <int stride, QDepthwiseFinish finish>
inline void qdepthwise_blocks(const QDepthwiseRow& r, const QEpilogue& e, const QDepthwiseTaps& taps) {
    std::optional<QCurve> curve;
    if constexpr (finish == QDepthwiseFinish::curve) curve.emplace(e.curve);
    int64_t c = 0;
    for (; c + 16 <= r.channels; c += 16) qdepthwise_channels<stride, true, finish>(r, e, taps, curve, c);
    if (c < r.channels) qdepthwise_channels<stride, false, finish>(r, e, taps, curve, c);
}

#else

template <int stride, QDepthwiseFinish>
inline void qdepthwise_blocks(const QDepthwiseRow& r, const QEpilogue& e, const QDepthwiseTaps& taps) {
    const int64_t width = (r.width - 1) / stride + 1;
    for (int64_t channel = 0; channel < r.channels; channel += qdepthwise_block) {
        const int64_t left = r.channels - channel, count = left < qdepthwise_block ? left : qdepthwise_block;
        const QDepthwiseBlock& block = r.blocks[channel / qdepthwise_block];
        for (int64_t x = 0; x < width; ++x) {
            QDepthwiseSums sums;
            const int32_t* init = block.init[taps.rows_outside][outside(x == 0, stride * x + 1 == r.width)];
            for (int64_t c = 0; c < count; ++c) {
                const int64_t position = 16 * (c / 4 % 4) + 4 * (c / 16) + c % 4;
                auto sum = static_cast<uint32_t>(init[position]);
                for (int64_t ky = 0; ky < 3; ++ky)
                    for (int64_t kx = 0; kx < 3; ++kx) {
                        const int64_t at = stride * x + kx - 1;
                        if (!r.rows[ky] || at < 0 || at >= r.width) continue;
                        sum += static_cast<uint32_t>(r.rows[ky][at * r.pixel_stride + channel + c] * block.weight[kx][position][ky]);
                    }
                sums.sum[0][c] = static_cast<int32_t>(sum);
            }
            sums.finish(e, r.first + x, 1, channel, count);
        }
    }
}

#endif

template <int stride>
inline void qdepthwise_row(const QDepthwiseRow& r, const QEpilogue& e) {
    const QDepthwiseTaps taps(r);
    if (!r.narrow) {
        qdepthwise_blocks<stride, QDepthwiseFinish::epilogue>(r, e, taps);
    } else if (e.activation == QActivation::segments) {
        qdepthwise_blocks<stride, QDepthwiseFinish::segments>(r, e, taps);
    } else if (e.curve) {
        qdepthwise_blocks<stride, QDepthwiseFinish::curve>(r, e, taps);
    } else {
        qdepthwise_blocks<stride, QDepthwiseFinish::plain>(r, e, taps);
    }
    look_up_rows(e, r.first, (r.width - 1) / stride + 1, 0, r.channels);
}

}  // namespace
}  // namespace mvit
