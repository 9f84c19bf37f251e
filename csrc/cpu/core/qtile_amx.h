// The sums of qtile.h by AMX. Internal linkage.
//
// Four registers hold sums, of 1 x 4, 1 x 3, 2 x 2 or 4 x 1 bands of 16 rows and panels, and the others what is being multiplied: for 4
// products of 16 cycles each at most 5 loads of 8.
#pragma once

#include <type_traits>

#include "cpu/core/amx.h"
#include "cpu/core/isa.h"
#include "cpu/core/qtile.h"

#if defined(MVIT_ISA_AVX512VNNI)

namespace mvit {
namespace {

inline constexpr int64_t tile_depth = tile_bytes;        // of one product, at most
inline constexpr int64_t least_tile_depth = 32;          // below, half of each product or more would be padding
inline constexpr int64_t least_tile_products = 4 * 256;  // rows times depth: loading the shapes takes as long as some products

// A row's last one to three bytes are nothing that a tile could end at.
inline bool tiles_take(const QTile& t) {
    return isa_active() == Isa::amx && t.depth % 4 == 0 && t.depth >= least_tile_depth && t.rows * t.depth >= least_tile_products;
}

struct TileRange {
    const uint8_t* a;
    int64_t a_stride;
    const int8_t* w;
    int64_t w_stride;
    int64_t blocks, bytes;  // of k, each so many bytes of a row
    const int32_t* init;
    int64_t init_stride;
    int32_t* c;
    int64_t c_stride;
};

template <int n, class Body>
[[gnu::always_inline]] inline void times(const Body& body) {
    if constexpr (n > 0) {
        times<n - 1>(body);
        body(std::integral_constant<int, n - 1>{});
    }
}

// Registers: sums first; then, of whichever there is more, each in turn where there is not room for all.
template <int bands, int panels>
inline void multiply_tiles(const TileRange& t) {
    constexpr int sums = bands * panels, first = 4, fixed = bands > 1 ? panels : 1, moving = tile_registers - first - fixed;
    static_assert(sums <= first && moving > 0);
    constexpr auto a_tile = [](int b) { return bands > 1 ? first + fixed + b % moving : first; };
    constexpr auto w_tile = [](int p) { return bands > 1 ? first + p : first + fixed + p % moving; };

    times<sums>([&](auto s) {
        constexpr int b = s / panels, p = s % panels;
        load_tile<s>(t.init + b * tile_rows * t.init_stride + p * qpanel, t.init_stride * int64_t{sizeof(int32_t)});
    });
    const uint8_t* a = t.a;
    const int8_t* w = t.w;
    for (int64_t block = 0; block < t.blocks; ++block, a += t.bytes, w += t.bytes / 4 * qblock) {
        if constexpr (bands > 1) times<panels>([&](auto p) { load_tile<w_tile(p)>(w + p * t.w_stride, qblock); });
        times<bands>([&](auto b) {
            load_tile<a_tile(b)>(a + b * tile_rows * t.a_stride, t.a_stride);
            times<panels>([&](auto p) {
                if constexpr (bands == 1) load_tile<w_tile(p)>(w + p * t.w_stride, qblock);
                dot<b * panels + p, a_tile(b), w_tile(p)>();
            });
        });
    }
    times<sums>([&](auto s) {
        constexpr int b = s / panels, p = s % panels;
        store_tile<s>(t.c + b * tile_rows * t.c_stride + p * qpanel, t.c_stride * int64_t{sizeof(int32_t)});
    });
}

using MultiplyTiles = void (*)(const TileRange&);
inline constexpr MultiplyTiles multiply_a_band[qgroup] = {multiply_tiles<1, 1>, multiply_tiles<1, 2>, multiply_tiles<1, 3>,
                                                          multiply_tiles<1, 4>};
inline constexpr MultiplyTiles multiply_bands[qgroup] = {multiply_tiles<4, 1>, multiply_tiles<2, 2>, multiply_tiles<1, 3>,
                                                         multiply_tiles<1, 4>};
inline constexpr int bands_at_once[qgroup] = {4, 2, 1, 1};

inline void take_shapes(int64_t rows, int64_t bytes, int panels, int bands) {
    TileShapes shapes;
    for (int s = 0; s < 4; ++s) shapes.set(s, rows, tile_bytes);
    const int fixed = bands > 1 ? panels : 1;
    for (int tile = 4; tile < tile_registers; ++tile) {
        const bool of_panels = (tile < 4 + fixed) == (bands > 1);
        of_panels ? shapes.set(tile, bytes / 4, tile_bytes) : shapes.set(tile, rows, bytes);
    }
    shapes.take();
}

// All rows of t, `blocks` blocks of its depth from k on, added to init.
inline void add_blocks(const QTile& t, int64_t k, int64_t blocks, int64_t bytes, const int32_t* init, int64_t init_stride, int32_t* c,
                       int64_t c_stride) {
    const auto range = [&](int64_t row) {
        return TileRange{static_cast<const uint8_t*>(t.a) + row * t.a_stride + k,
                         t.a_stride,
                         static_cast<const int8_t*>(t.w) + k / 4 * qblock,
                         t.w_stride,
                         blocks,
                         bytes,
                         init + row * init_stride,
                         init_stride,
                         c + row * c_stride,
                         c_stride};
    };
    const int bands = bands_at_once[t.panels - 1];
    int64_t row = 0;
    if (t.rows >= bands * tile_rows) take_shapes(tile_rows, bytes, t.panels, bands);
    for (; row + bands * tile_rows <= t.rows; row += bands * tile_rows) multiply_bands[t.panels - 1](range(row));
    if (bands > 1 && row + tile_rows <= t.rows) take_shapes(tile_rows, bytes, t.panels, 1);
    for (; row + tile_rows <= t.rows; row += tile_rows) multiply_a_band[t.panels - 1](range(row));
    if (row < t.rows) {
        take_shapes(t.rows - row, bytes, t.panels, 1);
        multiply_a_band[t.panels - 1](range(row));
    }
}

// The largest part of a depth that divides it and fits a tile, or a whole tile where that would leave much of it empty.
inline int64_t tile_part(int64_t depth) {
    for (int64_t bytes = tile_depth; bytes > tile_depth / 2; bytes -= 4)
        if (depth % bytes == 0) return bytes;
    return tile_depth < depth ? tile_depth : depth;
}

inline void sum_by_tiles(const QTile& t, int32_t* c, int64_t c_stride) {
    const int64_t bytes = tile_part(t.depth), blocks = t.depth / bytes, rest = t.depth % bytes;
    add_blocks(t, 0, blocks, bytes, t.init, t.init_stride, c, c_stride);
    if (rest > 0) add_blocks(t, t.depth - rest, 1, rest, c, c_stride, c, c_stride);
    release_tiles();
}

}  // namespace
}  // namespace mvit

#endif
