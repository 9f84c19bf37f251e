// Register tiles of the integer multiplication in core/qtile.h. Compiled once an ISA.
#include "cpu/core/qtile.h"

#include <cstring>
#include <type_traits>

#include "cpu/core/dots.h"
#include "cpu/core/isa.h"
#include "cpu/core/qcurve.h"
#include "cpu/core/qrows.h"
#include "cpu/core/qtile_amx.h"
#if defined(MVIT_ISA_AVX2)
#include "cpu/core/qwords.h"
#endif

namespace mvit {
namespace {

// As few tiles as possible, all as high as possible: body(rows, first row).
template <class Body>
inline void each_tile(int64_t rows, int most, const Body& body) {
    int64_t first = 0;
    for (int64_t left = (rows + most - 1) / most; left > 0; --left) {
        const int64_t height = (rows - first + left - 1) / left;
        body(static_cast<int>(height), first);
        first += height;
    }
}

// body(tile of some rows, the first of them) for as many rows at a time as there is room for.
template <class Body>
inline void each_turn(const QTile& t, int64_t room, const Body& body) {
    QTile some = t;
    for (int64_t first = 0; first < t.rows; first += some.rows) {
        some.rows = t.rows - first < room ? t.rows - first : room;
        some.a = static_cast<const char*>(t.a) + first * t.a_stride;
        some.init = t.init + first * t.init_stride;
        body(some, first);
    }
}

[[maybe_unused]] inline int32_t four_of_row(const uint8_t* a) {
    int32_t four;
    std::memcpy(&four, a, sizeof four);
    return four;
}

// The last one to three bytes of a row, and zeros.
inline int32_t tail_of_row(const uint8_t* a, int64_t count) {
    uint32_t bytes = 0;
    for (int64_t i = 0; i < count; ++i) bytes |= static_cast<uint32_t>(a[i]) << (8 * i);
    return static_cast<int32_t>(bytes);
}

#if defined(MVIT_ISA_AVX512VNNI)

// A value that stays in its register: where registers are left, gcc 12 would load it again for every row of a low tile.
inline void keep(__m512i& x) { asm("" : "+v"(x)); }

// Bytes of the first columns. Where that is all of them: a masked store takes several times as long as another one.
inline void store_some(uint8_t* to, __mmask32 some, __m256i bytes) {
    if (some == ~__mmask32{0}) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
    _mm256_mask_storeu_epi8(to, some, bytes);
}
inline void store_some(uint8_t* to, __mmask16 some, __m128i bytes) {
    if (some == 0xFFFF) return _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
    _mm_mask_storeu_epi8(to, some, bytes);
}

template <int rows, int vectors>
[[gnu::always_inline]] inline void multiply_tile(const QTile& t, int64_t first, __m512i (&sum)[rows][vectors]) {
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[r][v] = _mm512_loadu_si512(t.init + (first + r) * t.init_stride + v * qpanel);

    // A pointer for every third row: the two after it are one and two strides away, which an x86 address holds.
    constexpr int groups = (rows + 2) / 3;
    const int64_t stride = t.a_stride, panel_stride = t.w_stride;
    const uint8_t* row[groups];
#pragma GCC unroll 5
    for (int g = 0; g < groups; ++g) row[g] = static_cast<const uint8_t*>(t.a) + (first + 3 * g) * stride;
    const int8_t* w = static_cast<const int8_t*>(t.w);

    for (int64_t block = t.depth / 4; block > 0; --block) {
        __m512i column[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            column[v] = _mm512_loadu_si512(w + v * panel_stride);
            keep(column[v]);
        }
#pragma GCC unroll 14
        for (int r = 0; r < rows; ++r) {
            const __m512i x = _mm512_set1_epi32(four_of_row(row[r / 3] + (r % 3) * stride));
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) dot_of_bytes(sum[r][v], x, column[v]);
        }
#pragma GCC unroll 5
        for (int g = 0; g < groups; ++g) row[g] += 4;
        w += qblock;
    }
    if (const int64_t tail = t.depth % 4; tail != 0) {
        __m512i column[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) column[v] = _mm512_loadu_si512(w + v * panel_stride);
#pragma GCC unroll 14
        for (int r = 0; r < rows; ++r) {
            const __m512i x = _mm512_set1_epi32(tail_of_row(row[r / 3] + (r % 3) * stride, tail));
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) dot_of_bytes(sum[r][v], x, column[v]);
        }
    }
}

// A single row meets every weight once: nothing is reused, so what counts is to read them in the order in which they lie, four blocks at a
// time to hide the latency of the sums, and 6-bit weights as the planes that they are.
constexpr int ahead = 1024;  // bytes

[[gnu::always_inline]] inline __m512i row_by_panel(const QTile& t, const int8_t* w) {
    const uint8_t* a = static_cast<const uint8_t*>(t.a);
    __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()}, block[4];
    int64_t left = t.depth;
    for (; left >= 16; left -= 16, a += 16) {
        if (t.planes) {
            unpack_planes(reinterpret_cast<const uint8_t*>(w), block);
        } else {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) block[i] = _mm512_loadu_si512(w + i * qblock);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            _mm_prefetch(w + ahead + i * qblock, _MM_HINT_T0);
            dot_of_bytes(sum[i], _mm512_set1_epi32(four_of_row(a + 4 * i)), block[i]);
        }
        w += (t.planes ? 3 : 4) * qblock;
    }
    if (left > 0) {
        if (t.planes) unpack_planes(reinterpret_cast<const uint8_t*>(w), block);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const int64_t some = left - 4 * i;
            if (some <= 0) continue;
            const int32_t four = some >= 4 ? four_of_row(a + 4 * i) : tail_of_row(a + 4 * i, some);
            dot_of_bytes(sum[i], _mm512_set1_epi32(four), t.planes ? block[i] : _mm512_loadu_si512(w + i * qblock));
        }
    }
    return _mm512_add_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_add_epi32(sum[2], sum[3]));
}

template <int vectors>
[[gnu::always_inline]] inline void multiply_row(const QTile& t, __m512i (&sum)[1][vectors]) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
        sum[0][v] =
            _mm512_add_epi32(_mm512_loadu_si512(t.init + v * qpanel), row_by_panel(t, static_cast<const int8_t*>(t.w) + v * t.w_stride));
}

template <int rows, int vectors>
[[gnu::always_inline]] inline void multiply(const QTile& t, int64_t first, __m512i (&sum)[rows][vectors]) {
    if constexpr (rows == 1) {  // tiles are as high as each other: one of a single row is all there is
        multiply_row(t, sum);
    } else {
        multiply_tile(t, first, sum);
    }
}

template <int rows, int vectors>
void accumulate_tile(const QTile& t, int64_t first, int32_t* c, int64_t c_stride) {
    __m512i sum[rows][vectors];
    multiply(t, first, sum);
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) _mm512_storeu_si512(c + (first + r) * c_stride + v * qpanel, sum[r][v]);
}

// Whether the clamp is what packing does anyway: 0 .. 255 in all columns, products that stay below 2^30, which the conversion takes, and
// zero-points that 16 bits hold beside what saturates (core/qdepthwise.h has the proof): they are added to packed values then. It is all of
// them except behind a ReLU, with 6 bits or at odd scales.
inline bool packing_clamps(const QChannels& channels, int columns) {
    __mmask16 other = 0;
    for (int j = 0; j < columns; j += qpanel) {
        const __mmask16 some = columns - j < qpanel ? static_cast<__mmask16>((1u << (columns - j)) - 1u) : static_cast<__mmask16>(0xFFFF);
        const __m512i zero_point = _mm512_loadu_si512(channels.zero_point + j);
        const __m512 zero = _mm512_cvtepi32_ps(zero_point);
        const __m512 low = _mm512_add_ps(_mm512_loadu_ps(channels.low + j), zero);
        const __m512 high = _mm512_add_ps(_mm512_loadu_ps(channels.high + j), zero);
        other = static_cast<__mmask16>(other | _mm512_mask_cmp_ps_mask(some, low, _mm512_setzero_ps(), _CMP_NEQ_UQ));
        other = static_cast<__mmask16>(other | _mm512_mask_cmp_ps_mask(some, high, _mm512_set1_ps(255.0f), _CMP_NEQ_UQ));
        const __m512 scale = _mm512_loadu_ps(channels.scale + j);
        other = static_cast<__mmask16>(other | _mm512_mask_cmp_ps_mask(some, scale, _mm512_set1_ps(0.5f), _CMP_NLE_UQ));
        const __m512i size = _mm512_abs_epi32(zero_point);
        other = static_cast<__mmask16>(other | _mm512_mask_cmpgt_epi32_mask(some, size, _mm512_set1_epi32(1 << 14)));
    }
    return other == 0;
}

// Rounded; where nothing is clamped, the zero-point is still to be added.
template <bool clamps, int rows, int vectors>
[[gnu::always_inline]] inline void round_sums(__m512i (&sum)[rows][vectors], const QChannels& channels) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
        const __m512 scale = _mm512_loadu_ps(channels.scale + v * qpanel);
        const __m512 low = _mm512_loadu_ps(channels.low + v * qpanel), high = _mm512_loadu_ps(channels.high + v * qpanel);
        const __m512i zero = _mm512_loadu_si512(channels.zero_point + v * qpanel);
#pragma GCC unroll 14
        for (int r = 0; r < rows; ++r) {
            __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][v]), scale);
            if (clamps) x = _mm512_max_ps(_mm512_min_ps(x, high), low);
            sum[r][v] = _mm512_cvtps_epi32(x);
            if (clamps) sum[r][v] = _mm512_add_epi32(sum[r][v], zero);
        }
    }
}

// Packed with saturation: to int16, then to bytes. This works inside 128-bit lanes: four groups of 4 columns end up side by side, a quarter
// of each vector. Four vectors of a row, two of two rows or one of four rows are packed at once; of three the last one stands in.
// finish: of the int16 of the first or second two vectors.
template <int rows, int vectors, class Finish>
[[gnu::always_inline]] inline void store_bytes(const __m512i (&sum)[rows][vectors], int columns, uint8_t* y, int64_t y_stride,
                                               const Finish& finish) {
    constexpr int at_once = vectors == 1 ? 4 : vectors == 2 ? 2 : 1;
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __mmask64 mask = columns == 64 ? ~__mmask64{0} : (__mmask64{1} << columns) - 1;
#pragma GCC unroll 14
    for (int r = 0; r < rows; r += at_once) {
        constexpr int v1 = vectors > 1 ? 1 : 0, v2 = vectors > 2 ? 2 : 0, v3 = vectors > 3 ? 3 : vectors - 1, half = vectors > 2 ? 1 : 0;
        const int r1 = r + 1 < rows ? r + 1 : r, r2 = r + 2 < rows ? r + 2 : r1, r3 = r + 3 < rows ? r + 3 : r2;
        uint8_t* to = y + r * y_stride;
        if constexpr (at_once == 1) {
            const __m512i a = finish(_mm512_packs_epi32(sum[r][0], sum[r][v1]), 0),
                          b = finish(_mm512_packs_epi32(sum[r][v2], sum[r][v3]), half);
            _mm512_mask_storeu_epi8(to, mask, _mm512_permutexvar_epi32(in_order, _mm512_packus_epi16(a, b)));
        } else if constexpr (at_once == 2) {
            const __m512i a = finish(_mm512_packs_epi32(sum[r][0], sum[r][v1]), 0),
                          b = finish(_mm512_packs_epi32(sum[r1][0], sum[r1][v1]), 0);
            const __m512i bytes = _mm512_permutexvar_epi32(in_order, _mm512_packus_epi16(a, b));
            const auto some = static_cast<__mmask32>(mask);
            store_some(to, some, _mm512_castsi512_si256(bytes));
            if (r + 1 < rows) store_some(to + y_stride, some, _mm512_extracti64x4_epi64(bytes, 1));
        } else {
            const __m512i a = finish(_mm512_packs_epi32(sum[r][0], sum[r1][0]), 0),
                          b = finish(_mm512_packs_epi32(sum[r2][0], sum[r3][0]), 0);
            const __m512i bytes = _mm512_permutexvar_epi32(in_order, _mm512_packus_epi16(a, b));
            const auto some = static_cast<__mmask16>(mask);
            store_some(to, some, _mm512_castsi512_si128(bytes));
            if (r + 1 < rows) store_some(to + y_stride, some, _mm512_extracti32x4_epi32(bytes, 1));
            if (r + 2 < rows) store_some(to + 2 * y_stride, some, _mm512_extracti32x4_epi32(bytes, 2));
            if (r + 3 < rows) store_some(to + 3 * y_stride, some, _mm512_extracti32x4_epi32(bytes, 3));
        }
    }
}

inline bool scales_are_small(const QChannels& channels, int columns) {
    __mmask16 other = 0;
    for (int j = 0; j < columns; j += qpanel) {
        const __mmask16 some = columns - j < qpanel ? static_cast<__mmask16>((1u << (columns - j)) - 1u) : static_cast<__mmask16>(0xFFFF);
        const __m512 scale = _mm512_loadu_ps(channels.scale + j);
        other = static_cast<__mmask16>(other | _mm512_mask_cmp_ps_mask(some, scale, _mm512_set1_ps(1.0f), _CMP_NLT_UQ));
    }
    return other == 0;
}

// Arguments of a curve: the conversion may leave the range of int16 to packing.
template <bool small, int rows, int vectors>
[[gnu::always_inline]] inline void curve_arguments(__m512i (&sum)[rows][vectors], const QChannels& channels) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
        const __m512 scale = _mm512_loadu_ps(channels.scale + v * qpanel);
#pragma GCC unroll 14
        for (int r = 0; r < rows; ++r) sum[r][v] = curve_argument<small>(sum[r][v], scale);
    }
}

// What is done to sums.
struct Finish {
    const QChannels& channels;
    const QCurve* curve;
    bool clamps;  // or, with a curve, scales that are not small
    int columns;
};

template <int rows, int vectors>
[[gnu::always_inline]] inline void finish_sums(__m512i (&sum)[rows][vectors], const Finish& f, uint8_t* y, int64_t y_stride) {
    const QChannels& channels = f.channels;
    if (f.curve) {
        if (f.clamps) {
            curve_arguments<false>(sum, channels);
        } else {
            curve_arguments<true>(sum, channels);
        }
        return store_bytes(sum, f.columns, y, y_stride, [&f](__m512i words, int) { return (*f.curve)(words); });
    }
    if (f.clamps) {
        round_sums<true>(sum, channels);
        return store_bytes(sum, f.columns, y, y_stride, [](__m512i words, int) { return words; });
    }
    round_sums<false>(sum, channels);
    const auto zero_point = [&](int v) { return _mm512_loadu_si512(channels.zero_point + (v < vectors ? v : vectors - 1) * qpanel); };
    const __m512i zero[2] = {_mm512_packs_epi32(zero_point(0), zero_point(1)), _mm512_packs_epi32(zero_point(2), zero_point(3))};
    store_bytes(sum, f.columns, y, y_stride, [&](__m512i words, int half) { return _mm512_adds_epi16(words, zero[half]); });
}

template <int rows, int vectors>
void requantize_tile(const QTile& t, int64_t first, const Finish& finish, uint8_t* y, int64_t y_stride) {
    __m512i sum[rows][vectors];
    multiply(t, first, sum);
    finish_sums(sum, finish, y + first * y_stride, y_stride);
}

constexpr int most_rows[qgroup] = {14, 12, 8, 6};  // of 1, 2, 3, 4 panels: 24 sums, and columns and a row beside them
// Half as many sums, where panels stay in the first cache, from which they are read twice as often: the processor begins the next tile
// while it finishes one.
constexpr int low_rows[qgroup] = {12, 6, 4, 3};
constexpr int64_t low_depth = 256;

using AccumulateTile = void (*)(const QTile&, int64_t, int32_t*, int64_t);
using RequantizeTile = void (*)(const QTile&, int64_t, const Finish&, uint8_t*, int64_t);

#define MVIT_TILE(function, r, v) function<((r) <= most_rows[(v) - 1] ? (r) : 1), v>
#define MVIT_TILES(function, r) {MVIT_TILE(function, r, 1), MVIT_TILE(function, r, 2), MVIT_TILE(function, r, 3), MVIT_TILE(function, r, 4)}
#define MVIT_ALL_TILES(function)                                                                                                      \
    {MVIT_TILES(function, 1),  MVIT_TILES(function, 2),  MVIT_TILES(function, 3),  MVIT_TILES(function, 4), MVIT_TILES(function, 5),  \
     MVIT_TILES(function, 6),  MVIT_TILES(function, 7),  MVIT_TILES(function, 8),  MVIT_TILES(function, 9), MVIT_TILES(function, 10), \
     MVIT_TILES(function, 11), MVIT_TILES(function, 12), MVIT_TILES(function, 13), MVIT_TILES(function, 14)}
constexpr AccumulateTile accumulate_tiles[14][qgroup] = MVIT_ALL_TILES(accumulate_tile);
constexpr RequantizeTile requantize_tiles[14][qgroup] = MVIT_ALL_TILES(requantize_tile);
#undef MVIT_ALL_TILES
#undef MVIT_TILES
#undef MVIT_TILE

#if defined(MVIT_ISA_AMX)
void accumulate_by_tiles(const QTile& t, int32_t* c, int64_t c_stride, const RowsDone& done) {
    const TileOperands<OfBytes> operands = tile_operands(t);
    HeldTiles held;
    TileProduct product(operands, held);
    for (int64_t first = 0; first < t.rows; first += summed_rows) {
        const int64_t rows = t.rows - first < summed_rows ? t.rows - first : summed_rows;
        product.each_band(first, first + rows,
                          [&](int64_t row, int64_t some) { product.sum(row, some, c + (row - first) * c_stride, c_stride); });
        done(first, rows);
    }
}

#endif

void accumulate(const QTile& t, int32_t* c, int64_t c_stride, const RowsDone& done) {
#if defined(MVIT_ISA_AMX)
    if (tiles_take(t)) return accumulate_by_tiles(t, c, c_stride, done);
#endif
    each_turn(t, summed_rows, [&](const QTile& some, int64_t first) {
        each_tile(some.rows, most_rows[t.panels - 1],
                  [&](int rows, int64_t row) { accumulate_tiles[rows - 1][t.panels - 1](some, row, c, c_stride); });
        done(first, some.rows);
    });
}

#if defined(MVIT_ISA_AMX)
// From memory a row needs no company in registers but of those that it is packed with.
template <int vectors>
void finish_rows(const int32_t* c, int64_t c_stride, int64_t rows, const Finish& finish, uint8_t* y, int64_t y_stride) {
    const auto some = [&]<int count>(int64_t r) {
        __m512i sum[count][vectors];
#pragma GCC unroll 4
        for (int i = 0; i < count; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sum[i][v] = _mm512_load_si512(c + (r + i) * c_stride + v * qpanel);
        finish_sums(sum, finish, y + r * y_stride, y_stride);
    };
    constexpr int at_once = vectors == 1 ? 4 : vectors == 2 ? 2 : 1;
    int64_t r = 0;
    for (; r + at_once <= rows; r += at_once) some.template operator()<at_once>(r);
    for (; r < rows; ++r) some.template operator()<1>(r);
}
using FinishRows = void (*)(const int32_t*, int64_t, int64_t, const Finish&, uint8_t*, int64_t);
constexpr FinishRows finish_rows_of[qgroup] = {finish_rows<1>, finish_rows<2>, finish_rows<3>, finish_rows<4>};

void requantize_by_tiles(const QTile& t, const Finish& finish, uint8_t* y, int64_t y_stride) {
    const TileOperands<OfBytes> operands = tile_operands(t);
    HeldTiles held;
    TileProduct product(operands, held);
    SumsInTurn<OfBytes> sums;
    const auto finish_some = [&](const int32_t* c, const TilePlace& at) {
        finish_rows_of[t.panels - 1](c, at.stride, at.rows, finish, y + at.row * y_stride, y_stride);
    };
    product.each_band(0, t.rows, [&](int64_t row, int64_t rows) {
        sums.make(product, {row, rows, 0, t.panels * qpanel, t.panels * qpanel}, finish_some);
    });
    sums.end(finish_some);
}
#endif

void requantize(const QTile& t, const QChannels& channels, int columns, uint8_t* y, int64_t y_stride, const int16_t* curve) {
    const int* most = t.depth <= low_depth ? low_rows : most_rows;
    const auto run = [&](bool clamps, const QCurve* by) {
        const Finish finish{channels, by, clamps, columns};
#if defined(MVIT_ISA_AMX)
        if (tiles_take(t)) return requantize_by_tiles(t, finish, y, y_stride);
#endif
        each_tile(t.rows, most[t.panels - 1],
                  [&](int rows, int64_t first) { requantize_tiles[rows - 1][t.panels - 1](t, first, finish, y, y_stride); });
    };
    if (curve) {
        const QCurve by(curve);
        return run(!scales_are_small(channels, columns), &by);
    }
    run(!packing_clamps(channels, columns), nullptr);
}

#elif defined(MVIT_ISA_AVX2)

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store256(__m256i x, void* p) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

// What sums of `rows` rows and 16 columns begin with.
template <int rows>
[[gnu::always_inline]] inline void begin_sums(const QTile& t, int64_t first, const int32_t* init, __m256i (&sum)[rows][2]) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) sum[r][v] = load256(init + (first + r) * t.init_stride + 8 * v);
}

#if defined(MVIT_ISA_AVXVNNI)
inline void dot(__m256i& sum, __m256i x, __m256i columns) { dot_of_bytes(sum, x, columns); }
#else
inline void dot(__m256i& sum, __m256i x, __m256i columns) { dot_of_words(sum, x, columns); }
#endif

// A pointer for every third row of a tile, as in the one of AVX512-VNNI.
template <int rows>
struct TileRows {
    static constexpr int groups = (rows + 2) / 3;
    const uint8_t* group[groups];
    int64_t stride;

    [[gnu::always_inline]] TileRows(const QTile& t, int64_t first) : stride(t.a_stride) {
#pragma GCC unroll 2
        for (int g = 0; g < groups; ++g) group[g] = static_cast<const uint8_t*>(t.a) + (first + 3 * g) * stride;
    }
    [[gnu::always_inline]] const uint8_t* operator[](int r) const { return group[r / 3] + (r % 3) * stride; }

    // add(sum, four bytes of a row, of 8 columns) for each sum, `steps` times.
    template <class Add>
    [[gnu::always_inline]] void multiply(int64_t steps, const char*& panel, __m256i (&sum)[rows][2], const Add& add) {
        for (; steps > 0; --steps) {
            const __m256i columns[2] = {load256(panel), load256(panel + 32)};
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) {
                const __m256i x = _mm256_set1_epi32(four_of_row((*this)[r]));
                add(sum[r][0], x, columns[0]);
                add(sum[r][1], x, columns[1]);
            }
#pragma GCC unroll 2
            for (int g = 0; g < groups; ++g) group[g] += 4;
            panel += 64;
        }
    }
};

// Four bytes of a row at a time: two k of int16 by int16 (see qrows.h), or with AVX-VNNI four of bytes. 12 sums, two columns, a row and, of
// int16, its products are the sixteen registers.
struct EightBits {
    static constexpr int most_rows = 6;
    template <int rows>
    [[gnu::always_inline]] static inline void multiply(const QTile& t, int64_t first, const char* panel, __m256i (&sum)[rows][2]) {
        TileRows<rows> row(t, first);
        row.multiply(widens(8) ? 2 * qblocks(t.depth) : t.depth / 4, panel, sum, dot);
        if (widens(8) || t.depth % 4 == 0) return;
        const __m256i columns[2] = {load256(panel), load256(panel + 32)};
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            const __m256i x = _mm256_set1_epi32(tail_of_row(row[r], t.depth % 4));
            dot(sum[r][0], x, columns[0]);
            dot(sum[r][1], x, columns[1]);
        }
    }
};

#if defined(MVIT_ISA_AVXVNNI)
using SixBits = EightBits;
using SixBySix = EightBits;
#else
// Bytes by 6-bit weights: two vpmaddubsw add up in int16 before they are widened.
struct SixBits {
    static constexpr int most_rows = 4;
    template <int rows>
    [[gnu::always_inline]] static inline void multiply(const QTile& t, int64_t first, const char* panel, __m256i (&sum)[rows][2]) {
        const __m256i ones = _mm256_set1_epi16(1);
        const uint8_t* a = static_cast<const uint8_t*>(t.a) + first * t.a_stride;
        const int64_t stride = t.a_stride;
        int64_t k = 0;
        for (; k + 8 <= t.depth; k += 8) {
            __m256i column[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) column[v] = load256(panel + 32 * v);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                int32_t four[2];
                std::memcpy(four, a + r * stride + k, sizeof four);
                const __m256i x = _mm256_set1_epi32(four[0]), y = _mm256_set1_epi32(four[1]);
#pragma GCC unroll 2
                for (int v = 0; v < 2; ++v) {
                    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(x, column[v]), _mm256_maddubs_epi16(y, column[2 + v]));
                    sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(pairs, ones));
                }
            }
            panel += 2 * qblock;
        }
        for (; k < t.depth; k += 4) {
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                const int64_t left = t.depth - k;
                const __m256i x = _mm256_set1_epi32(tail_of_row(a + r * stride + k, left < 4 ? left : 4));
#pragma GCC unroll 2
                for (int v = 0; v < 2; ++v)
                    sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(_mm256_maddubs_epi16(x, load256(panel + 32 * v)), ones));
            }
            panel += qblock;
        }
    }
};

// Pairs of products of bytes to sums of int16; in one piece, see dots.h.
inline void dot_of_small_bytes(__m256i& sum, __m256i x, __m256i columns) {
    __m256i pairs;
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(pairs) : "x"(x), "x"(columns));
}

// Six-bit weights by bytes below 64, as six-bit activations are: pairs of products are within 2 * 63 * 32 = 4032, and eight of them add up
// in int16 before they are widened. The registers are sums of int16; those of int32 wait in memory.
struct SixBySix {
    static constexpr int most_rows = 6;
    template <int rows>
    [[gnu::always_inline]] static inline void multiply(const QTile& t, int64_t first, const char* panel, __m256i (&sum)[rows][2]) {
        constexpr int64_t steps = 8;
        TileRows<rows> row(t, first);
        alignas(32) int32_t held[rows][2][8];
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) store256(sum[r][0], held[r][0]), store256(sum[r][1], held[r][1]);
        const auto add = [&](int r, int v, __m256i pairs) {
            store256(_mm256_add_epi32(load256(held[r][v]), _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))), held[r][v]);
        };
        for (int64_t left = t.depth / 4; left > 0; left -= steps) {
            __m256i pairs[rows][2];
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) pairs[r][0] = pairs[r][1] = _mm256_setzero_si256();
            row.multiply(left < steps ? left : steps, panel, pairs, dot_of_small_bytes);
            asm volatile("" : : "r"(held) : "memory");  // no registers for them
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) add(r, 0, pairs[r][0]), add(r, 1, pairs[r][1]);
        }
        if (t.depth % 4 != 0) {
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) {
                const __m256i x = _mm256_set1_epi32(tail_of_row(row[r], t.depth % 4));
                add(r, 0, _mm256_maddubs_epi16(x, load256(panel))), add(r, 1, _mm256_maddubs_epi16(x, load256(panel + 32)));
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) sum[r][0] = load256(held[r][0]), sum[r][1] = load256(held[r][1]);
    }
};
#endif

template <class Kind, int rows>
void accumulate_tile(const QTile& t, int64_t first, const char* panel, const int32_t* init, int32_t* c, int64_t c_stride) {
    __m256i sum[rows][2];
    begin_sums(t, first, init, sum);
    Kind::multiply(t, first, panel, sum);
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) store256(sum[r][v], c + (first + r) * c_stride + 8 * v);
}

// See the one of AVX512-VNNI.
inline bool packing_clamps(const QChannels& channels, int columns) {
    int other = 0;
    for (int j = 0; j < columns; j += 8) {
        const __m256i zero_point = load256(channels.zero_point + j);
        const __m256 zero = _mm256_cvtepi32_ps(zero_point), scale = _mm256_loadu_ps(channels.scale + j);
        const __m256 low = _mm256_add_ps(_mm256_loadu_ps(channels.low + j), zero);
        const __m256 high = _mm256_add_ps(_mm256_loadu_ps(channels.high + j), zero);
        const __m256 bytes =
            _mm256_or_ps(_mm256_cmp_ps(low, _mm256_setzero_ps(), _CMP_NEQ_UQ), _mm256_cmp_ps(high, _mm256_set1_ps(255.0f), _CMP_NEQ_UQ));
        const __m256 large =
            _mm256_or_ps(_mm256_cmp_ps(scale, _mm256_set1_ps(0.5f), _CMP_NLE_UQ),
                         _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_abs_epi32(zero_point), _mm256_set1_epi32(1 << 14))));
        other |= _mm256_movemask_ps(_mm256_or_ps(bytes, large)) & (columns - j < 8 ? (1 << (columns - j)) - 1 : 255);
    }
    return other == 0;
}

// What a sum becomes in 16 bits. Where nothing is clamped (packing_clamps), the zero-point is added to packed values.
enum class Words { rounded, clamped, curve_argument };

template <Words kind>
inline __m256i word_of(__m256i sum, const QChannels& channels, int column) {
    const __m256 scale = _mm256_loadu_ps(channels.scale + column);
    if constexpr (kind == Words::curve_argument) return curve_argument(sum, scale);
    __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
    if constexpr (kind == Words::rounded) return _mm256_cvtps_epi32(x);
    x = _mm256_min_ps(_mm256_max_ps(x, _mm256_loadu_ps(channels.low + column)), _mm256_loadu_ps(channels.high + column));
    return _mm256_add_epi32(_mm256_cvtps_epi32(x), load256(channels.zero_point + column));
}

// Packing works inside 128-bit lanes: columns are in the order 0 .. 3, 8 .. 11, 4 .. 7, 12 .. 15.
template <Words kind, int rows>
[[gnu::always_inline]] inline void put_words(const __m256i (&sum)[rows][2], int64_t first, const QChannels& channels, QWords& words) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
        words.put(first + r, _mm256_packs_epi32(word_of<kind>(sum[r][0], channels, 0), word_of<kind>(sum[r][1], channels, 8)));
}

template <class Kind, int rows>
void words_tile(const QTile& t, int64_t first, const char* panel, const int32_t* init, const QChannels& channels, Words kind,
                QWords& words) {
    __m256i sum[rows][2];
    begin_sums(t, first, init, sum);
    Kind::multiply(t, first, panel, sum);
    if (kind == Words::curve_argument) return put_words<Words::curve_argument>(sum, first, channels, words);
    if (kind == Words::rounded) return put_words<Words::rounded>(sum, first, channels, words);
    put_words<Words::clamped>(sum, first, channels, words);
}

using AccumulateTile = void (*)(const QTile&, int64_t, const char*, const int32_t*, int32_t*, int64_t);
using WordsTile = void (*)(const QTile&, int64_t, const char*, const int32_t*, const QChannels&, Words, QWords&);

#define MVIT_TILES(tile, Kind) \
    {tile<Kind, 1>, tile<Kind, 2>, tile<Kind, 3>, tile<Kind, 4>, tile < Kind, Kind::most_rows < 5 ? 4 : 5 >, tile<Kind, Kind::most_rows>}
constexpr AccumulateTile accumulate_tiles[3][6] = {MVIT_TILES(accumulate_tile, EightBits), MVIT_TILES(accumulate_tile, SixBits),
                                                   MVIT_TILES(accumulate_tile, SixBySix)};
constexpr WordsTile words_tiles[3][6] = {MVIT_TILES(words_tile, EightBits), MVIT_TILES(words_tile, SixBits),
                                         MVIT_TILES(words_tile, SixBySix)};
constexpr int most_rows[3] = {EightBits::most_rows, SixBits::most_rows, SixBySix::most_rows};
#undef MVIT_TILES

// Looks at bytes, 32 at once, up to the first row that has a larger one.
inline bool below_64(const QTile& t) {
    __m256i seen = _mm256_setzero_si256();
    int rest = 0;
    for (int64_t r = 0; r < t.rows; ++r) {
        const uint8_t* a = static_cast<const uint8_t*>(t.a) + r * t.a_stride;
        int64_t k = 0;
        for (; k + 32 <= t.depth; k += 32) seen = _mm256_or_si256(seen, load256(a + k));
        for (; k < t.depth; ++k) rest |= a[k];
        if (rest >= 64 || _mm256_testz_si256(seen, _mm256_set1_epi8(static_cast<char>(0xC0))) == 0) return false;
    }
    return true;
}

// Which of the tables of tiles; those of AVX-VNNI are all the same.
inline int kind_of(const QTile& t) { return t.bits == 8 || std::is_same_v<SixBits, EightBits> ? 0 : below_64(t) ? 2 : 1; }

// body(rows, first row, weights of the panel, its initial sums)
template <class Body>
inline void each_tile_of(const QTile& t, int kind, int panel, const Body& body) {
    const char* w = static_cast<const char*>(t.w) + panel * t.w_stride;
    each_tile(t.rows, most_rows[kind], [&](int rows, int64_t first) { body(rows, first, w, t.init + panel * qpanel); });
}

void accumulate(const QTile& t, int32_t* c, int64_t c_stride, const RowsDone& done) {
    const int kind = kind_of(t);
    each_turn(t, summed_rows, [&](const QTile& some, int64_t first) {
        for (int panel = 0; panel < t.panels; ++panel)
            each_tile_of(some, kind, panel, [&](int rows, int64_t row, const char* w, const int32_t* init) {
                accumulate_tiles[kind][rows - 1](some, row, w, init, c + panel * qpanel, c_stride);
            });
        done(first, some.rows);
    });
}

void requantize(const QTile& t, const QChannels& channels, int columns, uint8_t* y, int64_t y_stride, const int16_t* curve) {
    QWords words;
    const int tiles = kind_of(t);
    const auto run = [&](Words kind, const auto& to_bytes) {
        each_turn(t, QWords::most, [&](const QTile& some, int64_t first) {
            for (int panel = 0; panel < t.panels; ++panel) {
                const QChannels of_panel = channels.from(panel * qpanel);
                each_tile_of(some, tiles, panel, [&](int rows, int64_t row, const char* w, const int32_t* init) {
                    words_tiles[tiles][rows - 1](some, row, w, init, of_panel, kind, words);
                });
                const int left = columns - panel * qpanel;
                words.leave(some.rows, left < qpanel ? left : qpanel, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7),
                            y + first * y_stride + panel * qpanel, y_stride, to_bytes(of_panel));
            }
        });
    };
    if (curve) {
        const QCurve by(curve);
        return run(Words::curve_argument, [&](const QChannels&) { return [&](__m256i a, __m256i b) { return by(a, b); }; });
    }
    if (packing_clamps(channels, columns))
        return run(Words::rounded, [](const QChannels& of_panel) {
            const __m256i zero_point = _mm256_packs_epi32(load256(of_panel.zero_point), load256(of_panel.zero_point + 8));
            return [zero_point](__m256i a, __m256i b) {
                return _mm256_packus_epi16(_mm256_adds_epi16(a, zero_point), _mm256_adds_epi16(b, zero_point));
            };
        });
    run(Words::clamped, [](const QChannels&) { return [](__m256i a, __m256i b) { return _mm256_packus_epi16(a, b); }; });
}

#else

void accumulate_rows(const QTile& t, int32_t* c, int64_t c_stride) {
    for (int panel = 0; panel < t.panels; ++panel)
        for (int64_t r = 0; r < t.rows; ++r) {
            const uint8_t* a = static_cast<const uint8_t*>(t.a) + r * t.a_stride;
            const int8_t* w = static_cast<const int8_t*>(t.w) + panel * t.w_stride;
            uint32_t sum[qpanel];
            for (int n = 0; n < qpanel; ++n) sum[n] = static_cast<uint32_t>(t.init[r * t.init_stride + panel * qpanel + n]);
            for (int64_t k = 0; k < t.depth; k += 4) {
                const auto four = static_cast<uint32_t>(tail_of_row(a + k, t.depth - k < 4 ? t.depth - k : 4));
                for (int n = 0; n < qpanel; ++n)
                    for (int i = 0; i < 4; ++i) sum[n] += static_cast<uint32_t>(static_cast<int>(four >> (8 * i) & 255u) * w[4 * n + i]);
                w += qblock;
            }
            for (int n = 0; n < qpanel; ++n) c[r * c_stride + panel * qpanel + n] = static_cast<int32_t>(sum[n]);
        }
}

void accumulate(const QTile& t, int32_t* c, int64_t c_stride, const RowsDone& done) {
    each_turn(t, summed_rows, [&](const QTile& some, int64_t first) {
        accumulate_rows(some, c, c_stride);
        done(first, some.rows);
    });
}

#endif

}  // namespace

extern const QTileKernels MVIT_ISA_SYMBOL(qtile);
#if defined(MVIT_ISA_AVX512VNNI) || defined(MVIT_ISA_AVX2)
const QTileKernels MVIT_ISA_SYMBOL(qtile) = {accumulate, requantize};
#else
const QTileKernels MVIT_ISA_SYMBOL(qtile) = {accumulate, nullptr};
#endif

}  // namespace mvit
