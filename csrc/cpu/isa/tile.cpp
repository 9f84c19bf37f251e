// Register tiles of the matrix multiplication in core/tile.h. Compiled once an ISA.
//
// All accumulators of a tile stay in registers over the whole depth. AVX-512 has 32: 14 rows x 2 vectors, a broadcast and 2 columns
// make 31. AVX2 has 16: 6 x 2 and 3. Every element is one chain of multiply-adds in ascending k, so its bits depend neither on the tile it
// falls into nor on anything beside it.
#include "cpu/core/tile.h"

#include "cpu/core/dots.h"
#include "cpu/core/isa.h"
#include "cpu/core/simd.h"

namespace mvit {
namespace {

constexpr int W = F32::width;
constexpr int64_t chunk = 256;
constexpr int line = 16;  // of a cache

#if defined(MVIT_ISA_AVX512VNNI)
constexpr int most_rows = 14;
#elif defined(MVIT_ISA_AVX2)
constexpr int most_rows = 6;
#else
constexpr int most_rows = 4;
#endif

// sum + x column: of floats, or of pairs of bfloat16 in each lane.
template <bool pairs>
inline F32 multiply_add(F32 x, F32 column, F32 sum) {
#if defined(MVIT_ISA_AVX512BF16)
    if constexpr (pairs) {
        dot_of_pairs(sum.v, _mm512_castps_si512(x.v), _mm512_castps_si512(column.v));
        return sum;
    }
#endif
    return fma(x, column, sum);
}

// Four bytes of every row at a step, a float or a pair. b: vectors of the first step, as many floats apart from each other and, from what
// is multiplied next, `ahead`. a_stride is in bytes.
template <bool pairs, int rows, int vectors>
void tile(const void* a, int64_t a_stride, const float* b, int64_t half_panels_apart, int64_t ahead, int64_t steps, const float* init,
          int64_t init_stride, float* c, int64_t c_stride) {
    F32 sum[rows][vectors];
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sum[r][v] = F32::all(0.0f);

    // A pointer for every third row: the two after it are one and two strides away, which an x86 address holds. One for each row would not
    // leave enough registers.
    constexpr int groups = (rows + 2) / 3;
    const char* row[groups];
#pragma GCC unroll 5
    for (int g = 0; g < groups; ++g) row[g] = static_cast<const char*>(a) + 3 * g * a_stride;

    const int64_t apart = pairs ? half_panels_apart : W;
    for (int64_t step = 0; step < steps; ++step) {
        F32 column[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            column[v] = F32::load(b + v * apart);
            if (v * W % line == 0) fetch_later(b + v * apart + ahead);
        }
#pragma GCC unroll 14
        for (int r = 0; r < rows; ++r) {
            float four;
            __builtin_memcpy(&four, row[r / 3] + (r % 3) * a_stride, sizeof four);
            const F32 x = F32::all(four);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) sum[r][v] = multiply_add<pairs>(x, column[v], sum[r][v]);
        }
#pragma GCC unroll 5
        for (int g = 0; g < groups; ++g) row[g] += sizeof(float);
        b += pairs ? half_panel : panel;
    }

#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) (F32::load(init + r * init_stride + v * W) + sum[r][v]).store(c + r * c_stride + v * W);
}

using Tile = void (*)(const void*, int64_t, const float*, int64_t, int64_t, int64_t, const float*, int64_t, float*, int64_t);

#define MVIT_TILES(rows) {tile < pairs, (rows) <= most_rows ? (rows) : 1, 1 >, tile < pairs, (rows) <= most_rows ? (rows) : 1, 2 > }
template <bool pairs>
constexpr Tile tiles[14][2] = {MVIT_TILES(1),  MVIT_TILES(2),  MVIT_TILES(3),  MVIT_TILES(4), MVIT_TILES(5),
                               MVIT_TILES(6),  MVIT_TILES(7),  MVIT_TILES(8),  MVIT_TILES(9), MVIT_TILES(10),
                               MVIT_TILES(11), MVIT_TILES(12), MVIT_TILES(13), MVIT_TILES(14)};
#undef MVIT_TILES

// body(first row, rows): as few tiles as possible, all as high as possible. 64 rows are 4 x 13 + 12, not 4 x 14 + 8.
template <class Body>
inline void each_tile(int64_t rows, const Body& body) {
    int64_t row = 0;
    for (int64_t left = (rows + most_rows - 1) / most_rows; left > 0; --left) {
        const int64_t height = (rows - row + left - 1) / left;
        body(row, height);
        row += height;
    }
}

// All rows by one chunk.
void multiply_chunk(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, int columns, const float* init,
                    int64_t init_stride, float* c, int64_t c_stride) {
    each_tile(rows, [&](int64_t row, int64_t height) {
        for (int j = 0; j < columns; j += 2 * W)
            tiles<false>[height - 1][columns - j > W ? 1 : 0](a + row* a_stride, a_stride* int64_t{sizeof(float)}, b + j, 0, depth* panel,
                                                              depth, init + row* init_stride + j, init_stride, c + row* c_stride + j,
                                                              c_stride);
    });
}

void multiply(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, int columns, const float* init,
              int64_t init_stride, float* c, int64_t c_stride) {
    for (int64_t left = depth > chunk ? (depth + chunk - 1) / chunk : 1; left > 0; --left) {
        const int64_t some = (depth + left - 1) / left;
        multiply_chunk(a, a_stride, rows, b, some, columns, init, init_stride, c, c_stride);
        init = c;
        init_stride = c_stride;
        depth -= some;
        a += some;
        b += some * panel;
    }
}

// --- bfloat16 ---

#if defined(MVIT_ISA_AVX512BF16)

// Panel after panel, and of deep ones as much at once as the first cache holds.
void multiply_bf16(const bf16* a, int64_t a_stride, int64_t rows, const bf16* b, int64_t depth, int columns, const float* init,
                   int64_t init_stride, float* c, int64_t c_stride) {
    const int64_t all = packed_depth<bf16>(depth) / 2, apart = all * half_panel;  // pairs
    const auto* w = reinterpret_cast<const float*>(b);
    for (int j = 0; j < columns; j += panel, w += 2 * apart, init += panel, c += panel) {
        const int halves = columns - j > half_panel ? 2 : 1;
        const float* begin = init;
        int64_t begin_stride = init_stride, pairs = all, done = 0;
        for (int64_t left = all > chunk ? (all + chunk - 1) / chunk : 1; left > 0; --left) {
            const int64_t some = (pairs + left - 1) / left;
            each_tile(rows, [&](int64_t row, int64_t height) {
                tiles<true>[height - 1][halves - 1](a + row* a_stride + 2 * done, a_stride* int64_t{sizeof(bf16)}, w + done* half_panel,
                                                    apart, halves* apart, some, begin + row* begin_stride, begin_stride, c + row* c_stride,
                                                    c_stride);
            });
            begin = c;
            begin_stride = c_stride;
            pairs -= some;
            done += some;
        }
    }
}

#else

constexpr int64_t widened = 128;  // values of k at once

// The pairs of half a panel, as two of its rows.
inline void widen_pairs(const bf16* from, float* to) {
    uint32_t pairs[half_panel], first[half_panel], second[half_panel];
    __builtin_memcpy(pairs, from, sizeof pairs);
    for (int n = 0; n < half_panel; ++n) {
        first[n] = pairs[n] << 16;
        second[n] = pairs[n] & 0xFFFF0000u;
    }
    __builtin_memcpy(to, first, sizeof first);
    __builtin_memcpy(to + panel, second, sizeof second);
}

// As float32, a panel and a few rows at a time, in the first cache.
void multiply_bf16(const bf16* a, int64_t a_stride, int64_t rows, const bf16* b, int64_t depth, int columns, const float* init,
                   int64_t init_stride, float* c, int64_t c_stride) {
    float w[widened * panel], some[most_rows * widened];
    const int64_t size = half_panel * packed_depth<bf16>(depth);
    const int whole = static_cast<int>(round_up(columns, half_panel));
    for (int left = whole; left > 0; left -= panel, b += 2 * size, init += panel, c += panel) {
        const int width = left < panel ? left : panel;
        const float* begin = init;
        int64_t begin_stride = init_stride;
        for (int64_t first = 0; first == 0 || first < depth; first += widened) {
            const int64_t count = depth - first < widened ? depth - first : widened;
            for (int64_t k = 0; k < count; k += 2)
                for (int64_t half = 0; half < width / half_panel; ++half)
                    widen_pairs(b + half * size + (first + k) * half_panel, w + k * panel + half * half_panel);
            for (int64_t row = 0, height; row < rows; row += height) {
                height = rows - row < most_rows ? rows - row : most_rows;
                for (int64_t r = 0; r < height; ++r)
                    for (int64_t k = 0; k < count; k += W) {
                        const int lanes = lanes_left(count, k);
                        store(load(a + (row + r) * a_stride + first + k, lanes, 0.0f), some + r * widened + k, lanes);
                    }
                multiply_chunk(some, widened, height, w, count, width, begin + row * begin_stride, begin_stride, c + row * c_stride,
                               c_stride);
            }
            begin = c;
            begin_stride = c_stride;
        }
    }
}

#endif

}  // namespace

extern const TileKernels MVIT_ISA_SYMBOL(tile);
const TileKernels MVIT_ISA_SYMBOL(tile) = {multiply, multiply_bf16, W};

}  // namespace mvit
