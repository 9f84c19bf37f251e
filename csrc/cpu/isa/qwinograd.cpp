// Blocks of tiles of a 3x3 convolution of bytes by minimal filtering; formula in ops/qwinograd.h. Compiled once an ISA.
#include "cpu/ops/qwinograd.h"

#include <cstring>

#include "cpu/core/dots.h"
#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"
#include "cpu/core/vector_bytes.h"

namespace mvit {
namespace {

constexpr int halves = vector_bytes / 2, words = vector_bytes / 4;  // lanes

// Integer vectors of the compiler: additions, shifts and multiplications are those of int16 and, modulo 2^32, of uint32.
using Halves [[gnu::vector_size(vector_bytes)]] = int16_t;
using Words [[gnu::vector_size(vector_bytes)]] = uint32_t;
using Signed [[gnu::vector_size(vector_bytes)]] = int32_t;

constexpr int width = qgroup * qpanel;   // columns of the products at once
constexpr uint32_t ninth = 0x38E38E39;   // 9 * ninth = 1 modulo 2^32
constexpr int shifts[4] = {3, 2, 1, 1};  // 24, 12, 6 and 6 are 3 times these powers of two

// As many bytes as there are halves. The compiler's own conversion goes by way of two half vectors.
inline Halves load_bytes(const uint8_t* from) {
#if defined(MVIT_ISA_AVX512VNNI)
    return reinterpret_cast<Halves>(_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(MVIT_ISA_AVX2)
    return reinterpret_cast<Halves>(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    Halves x;
    for (int i = 0; i < halves; ++i) x[i] = from[i];
    return x;
#endif
}

// B^T d
inline void transform_input(const Halves (&d)[6], Halves (&v)[6]) {
    const Halves even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], far = d[4] - d[2], near = 2 * (d[3] - d[1]);
    v[0] = 4 * d[0] - 5 * d[2] + d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = far + near;
    v[4] = far - near;
    v[5] = 4 * d[1] - 5 * d[3] + d[5];
}

// A^T m
inline void transform_output(const Words (&m)[6], Words (&y)[4]) {
    const Words p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], t = m[3] - m[4];
    y[0] = 6 * m[0] - 4 * p + r;
    y[1] = t - 2 * q;
    y[2] = r - p;
    y[3] = 2 * t - q + 6 * m[5];
}

// Channels [c, c + halves) of a tile, whose 36 pixels are at these addresses, into row `to` of each of the 36 matrices.
inline void transform_vector(const uint8_t* const (&pixel)[6][6], int64_t c, int16_t* to, int64_t step) {
    Halves rows[6][6];  // [position][column]
    for (int x = 0; x < 6; ++x) {
        Halves d[6], v[6];
#pragma GCC unroll 6
        for (int y = 0; y < 6; ++y) d[y] = load_bytes(pixel[y][x] + c) - 128;
        transform_input(d, v);
#pragma GCC unroll 6
        for (int y = 0; y < 6; ++y) rows[y][x] = v[y];
    }
    for (int y = 0; y < 6; ++y) {
        Halves v[6];
        transform_input(rows[y], v);
#pragma GCC unroll 6
        for (int x = 0; x < 6; ++x) std::memcpy(to + (6 * y + x) * step, &v[x], sizeof v[x]);
    }
}

// The channels of one input of a tile. The last vector may overlap the one before.
inline void transform_map(const QMap& map, const QConv2dProblem& p, int64_t image, int64_t top, int64_t left, const uint8_t* padding,
                          int16_t* to, int64_t step) {
    const uint8_t* pixel[6][6];
    for (int64_t y = 0; y < 6; ++y)
        for (int64_t x = 0; x < 6; ++x) {
            const int64_t i = top + y, j = left + x;
            const bool inside = i >= 0 && i < p.height && j >= 0 && j < p.width;
            pixel[y][x] = inside ? map.data + image * map.image + i * map.row + j * map.pixel : padding;
        }
    for (int64_t c = 0; c < map.channels; c += halves) {
        const int64_t from = c + halves > map.channels ? map.channels - halves : c;
        transform_vector(pixel, from, to + from, step);
    }
}

// c[r, n] = sum_k a[r, k] w[n, k] in int16 by int16, pairs of k: `rows` rows, and 16 columns of each of `panels` panels.
struct Product {
    const int16_t* a;
    int64_t a_stride, rows, pairs;
    const int16_t* w;
    int64_t w_stride;  // from panel to panel
    int panels;
    int32_t* c;  // rows are `width` apart
};

#if defined(MVIT_ISA_AVX512VNNI)

template <int rows, int vectors>
void multiply_tile(const Product& p, int64_t first) {
    __m512i sum[rows][vectors];
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[r][v] = _mm512_setzero_si512();
    constexpr int groups = (rows + 2) / 3;
    const int64_t stride = p.a_stride, panel_stride = p.w_stride;
    const int16_t* row[groups];
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) row[g] = p.a + (first + 3 * g) * stride;
    const int16_t* w = p.w;
    for (int64_t k = p.pairs; k > 0; --k) {
        __m512i column[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) column[v] = _mm512_loadu_si512(w + v * panel_stride);
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
            int32_t pair;
            std::memcpy(&pair, row[r / 3] + (r % 3) * stride, sizeof pair);
            const __m512i x = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) dot_of_words(sum[r][v], x, column[v]);
        }
#pragma GCC unroll 4
        for (int g = 0; g < groups; ++g) row[g] += 2;
        w += 2 * qpanel;
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) _mm512_storeu_si512(p.c + (first + r) * width + v * qpanel, sum[r][v]);
}

constexpr int most_rows[qgroup] = {12, 12, 8, 6};
using MultiplyTile = void (*)(const Product&, int64_t);
#define MVIT_TILE(r, v) multiply_tile<((r) <= most_rows[(v) - 1] ? (r) : 1), v>
#define MVIT_TILES(r) {MVIT_TILE(r, 1), MVIT_TILE(r, 2), MVIT_TILE(r, 3), MVIT_TILE(r, 4)}
constexpr MultiplyTile multiply_tiles[12][qgroup] = {MVIT_TILES(1), MVIT_TILES(2),  MVIT_TILES(3),  MVIT_TILES(4),
                                                     MVIT_TILES(5), MVIT_TILES(6),  MVIT_TILES(7),  MVIT_TILES(8),
                                                     MVIT_TILES(9), MVIT_TILES(10), MVIT_TILES(11), MVIT_TILES(12)};
#undef MVIT_TILES
#undef MVIT_TILE

inline void multiply(const Product& p) {
    const int most = most_rows[p.panels - 1];
    int64_t first = 0;
    for (int64_t left = (p.rows + most - 1) / most; left > 0; --left) {
        const int64_t height = (p.rows - first + left - 1) / left;
        multiply_tiles[height - 1][p.panels - 1](p, first);
        first += height;
    }
}

#elif defined(MVIT_ISA_AVX2)

template <int rows>
void multiply_tile(const Product& p, int64_t first, int panel) {
    __m256i sum[rows][2];
#pragma GCC unroll 5
    for (int r = 0; r < rows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    const int16_t* a = p.a + first * p.a_stride;
    const int16_t* w = p.w + panel * p.w_stride;
    for (int64_t k = p.pairs; k > 0; --k) {
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
        const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + qpanel));
#pragma GCC unroll 5
        for (int r = 0; r < rows; ++r) {
            int32_t pair;
            std::memcpy(&pair, a + r * p.a_stride, sizeof pair);
            const __m256i x = _mm256_set1_epi32(pair);
            dot_of_words(sum[r][0], x, low);
            dot_of_words(sum[r][1], x, high);
        }
        a += 2;
        w += 2 * qpanel;
    }
#pragma GCC unroll 5
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < 2; ++v)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p.c + (first + r) * width + panel * qpanel + 8 * v), sum[r][v]);
}

inline void multiply(const Product& p) {
    constexpr void (*tiles[5])(const Product&, int64_t, int) = {multiply_tile<1>, multiply_tile<2>, multiply_tile<3>, multiply_tile<4>,
                                                                multiply_tile<5>};
    for (int panel = 0; panel < p.panels; ++panel)
        for (int64_t first = 0; first < p.rows; first += 5) tiles[(p.rows - first < 5 ? p.rows - first : 5) - 1](p, first, panel);
}

#else

inline void multiply(const Product& p) {
    for (int panel = 0; panel < p.panels; ++panel)
        for (int64_t r = 0; r < p.rows; ++r) {
            uint32_t sum[qpanel] = {};
            const int16_t* w = p.w + panel * p.w_stride;
            for (int64_t k = 0; k < p.pairs; ++k, w += 2 * qpanel) {
                const int32_t a = p.a[r * p.a_stride + 2 * k], b = p.a[r * p.a_stride + 2 * k + 1];
                for (int n = 0; n < qpanel; ++n) sum[n] += static_cast<uint32_t>(a * w[2 * n] + b * w[2 * n + 1]);
            }
            std::memcpy(p.c + r * width + panel * qpanel, sum, sizeof sum);
        }
}

#endif

inline Words load(const int32_t* from) {
    Words x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline void store(Words x, int32_t* to) { std::memcpy(to, &x, sizeof x); }

// The sums of the 16 pixels of a tile from its 36 products, `step` apart; `base` is what they begin with.
inline void finish_tile(const int32_t* products, int64_t step, int64_t columns, const int32_t* base, int32_t* sums) {
    for (int64_t n = 0; n < columns; n += words) {
        Words half[4][6];
        for (int x = 0; x < 6; ++x) {
            Words m[6], y[4];
#pragma GCC unroll 6
            for (int i = 0; i < 6; ++i) m[i] = load(products + (6 * i + x) * step + n);
            transform_output(m, y);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) half[i][x] = y[i];
        }
        const Words start = load(base + n);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            Words y[4];
            transform_output(half[i], y);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const Words exact = reinterpret_cast<Words>(reinterpret_cast<Signed>(y[j] * ninth) >> (shifts[i] + shifts[j]));
                store(exact + start, sums + (4 * i + j) * width + n);
            }
        }
    }
}

// What all sums begin with: init, and 128 for each byte.
inline void begin_sums(const int32_t* init, const int32_t* column_sum, int64_t columns, int32_t* base) {
    for (int64_t n = 0; n < columns; n += words) store(load(init + n) + 128 * load(column_sum + n), base + n);
}

// sums += of - instead_of
inline void change_sums(const int32_t* of, const int32_t* instead_of, int64_t columns, int32_t* sums) {
    for (int64_t n = 0; n < columns; n += words) store(load(sums + n) + load(of + n) - load(instead_of + n), sums + n);
}

inline int64_t taps_outside(int64_t at, int64_t size) { return (at == 0 ? 1 : 0) | (at + 1 == size ? 2 : 0); }

void block(const QWinogradBlock& b) {
    const QConv2dProblem& p = *b.problem;
    const QEpilogue& e = p.epilogue;
    const int32_t* usual = p.border ? p.border : e.channels.init;  // where all taps are inside
    const int64_t pairs = qwinograd_pairs(p), depth = 2 * pairs, step = b.tiles * depth, channels = p.x.channels + p.second.channels;
    const int64_t across = qwinograd_tiles(p.width), down = qwinograd_tiles(p.height), all = qpanels(p.weight.columns) * qpanel;
    auto* matrices = static_cast<int16_t*>(b.scratch);
    auto* products = reinterpret_cast<int32_t*>(matrices + qtile_positions * step);
    int32_t* sums = products + qtile_positions * b.tiles * width;
    int32_t* base = sums + 16 * width;
    auto* padding = reinterpret_cast<uint8_t*>(base + width);
    for (int64_t c = 0; c < channels; ++c) padding[c] = p.border ? uint8_t{0} : static_cast<uint8_t>(p.zero_point[c]);

    for (int64_t t = 0; t < b.tiles; ++t) {
        const int64_t tile = b.first + t, image = tile / (across * down), top = tile / across % down * 4 - 1, left = tile % across * 4 - 1;
        transform_map(p.x, p, image, top, left, padding, matrices + t * depth, step);
        if (p.second.channels > 0)
            transform_map(p.second, p, image, top, left, padding + p.x.channels, matrices + t * depth + p.x.channels, step);
        if (channels % 2)
            for (int64_t i = 0; i < qtile_positions; ++i) matrices[i * step + t * depth + channels] = 0;
    }
    for (int64_t panel = b.panel_begin; panel < b.panel_end;) {
        const int64_t left = b.panel_end - panel, count = left == 5 ? 3 : left < qgroup ? left : qgroup, first = panel * qpanel;
        const int64_t columns = p.weight.columns - first < count * qpanel ? p.weight.columns - first : count * qpanel;
        for (int64_t i = 0; i < qtile_positions; ++i)
            multiply({matrices + i * step, depth, b.tiles, pairs, p.filtered + (panel * qtile_positions + i) * depth * qpanel,
                      qtile_positions * depth * qpanel, static_cast<int>(count), products + i * b.tiles * width});
        begin_sums(usual + first, p.weight.sum + first, count * qpanel, base);
        for (int64_t t = 0; t < b.tiles; ++t) {
            const int64_t tile = b.first + t, image = tile / (across * down), top = tile / across % down * 4, start = tile % across * 4;
            finish_tile(products + t * width, b.tiles * width, count * qpanel, base, sums);
            const int64_t inside = p.width - start < 4 ? p.width - start : 4;
            for (int64_t y = top; y < top + 4 && y < p.height; ++y) {
                int32_t* row = sums + (y - top) * 4 * width;
                const int64_t pixel = (image * p.height + y) * p.width + start;
                for (int64_t x = 0; p.border && x < inside; ++x)
                    if (const int64_t outside = 4 * taps_outside(y, p.height) + taps_outside(start + x, p.width); outside != 0)
                        change_sums(p.border + outside * all + first, usual + first, count * qpanel, row + x * width);
                finish_rows(e, row, width, pixel, inside, first, columns);
                look_up_rows(e, pixel, inside, first, columns);
            }
        }
        panel += count;
    }
}

}  // namespace

extern const QWinogradKernels MVIT_ISA_SYMBOL(qwinograd);
const QWinogradKernels MVIT_ISA_SYMBOL(qwinograd) = {block, halves};

}  // namespace mvit
