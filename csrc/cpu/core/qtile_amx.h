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

inline constexpr int64_t least_tile_depth = 32;  // below, half of each product or more would be padding
inline constexpr int64_t least_tile_rows = 4;    // fewer wait for their weights, not for products
// Rows of a panel, counted for each: fewer are fewer than four sums at a time, which is what hides the latency of products and pays for the
// shapes of tiles.
inline constexpr int64_t least_panel_rows = 64;

// A row's last one to three bytes are nothing that a tile could end at.
inline bool tiles_take(const QTile& t) {
    if (t.windows.line > 0) return true;  // which were asked about before
    return isa_active() == Isa::amx && t.depth % 4 == 0 && t.depth >= least_tile_depth && t.rows >= least_tile_rows &&
           t.rows * t.panels >= least_panel_rows;
}

// The largest part that divides a depth and fills most of a tile, or else a whole tile, and a rest.
inline int64_t tile_part(int64_t depth) {
    for (int64_t bytes = tile_bytes; bytes > tile_bytes / 2; bytes -= 4)
        if (depth % bytes == 0) return bytes;
    return tile_bytes < depth ? tile_bytes : depth;
}

struct TileRange {
    const uint8_t* a;
    int64_t a_stride;
    const int8_t* w;
    int64_t w_stride;
    int64_t runs, run_step;  // pieces of a row, and bytes from one to the next
    int64_t blocks, bytes;   // of k in each, of so many bytes
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
    const int8_t* w = t.w;
    for (int64_t run = 0; run < t.runs; ++run) {
        const uint8_t* a = t.a + run * t.run_step;
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
    }
    times<sums>([&](auto s) {
        constexpr int b = s / panels, p = s % panels;
        store_tile<s>(t.c + b * tile_rows * t.c_stride + p * qpanel, t.c_stride * int64_t{sizeof(int32_t)});
    });
}

// Sums of a tile, some rows at a time, and the registers' shapes while it lives.
class TileProduct {
  public:
    explicit TileProduct(const QTile& t)
        : t_(t), run_(t.windows.line > 0 ? t.windows.run : t.depth), part_(tile_part(run_)), whole_(run_ / part_), rest_(run_ % part_) {}
    TileProduct(const TileProduct&) = delete;
    TileProduct& operator=(const TileProduct&) = delete;
    ~TileProduct() { release_tiles(); }

    int64_t rows_at_once() const { return most_bands[t_.panels - 1] * tile_rows; }

    // body(row, rows) for rows [first, end), at most so many at once, of windows those of one line.
    template <class Body>
    void each_band(int64_t first, int64_t end, const Body& body) const {
        const int64_t line = t_.windows.line;
        for (int64_t row = first, rows; row < end; row += rows) {
            const int64_t left = end - row, near = line > 0 ? line - row % line : left;
            rows = near < left ? near : left;
            rows = rows < rows_at_once() ? rows : rows_at_once();
            body(row, rows);
        }
    }

    // Of `rows` rows from `row` on, as each_band has them.
    void sum(int64_t row, int64_t rows, int32_t* c, int64_t c_stride) {
        if (rows < rows_at_once() && rows > tile_rows) {  // only all bands have registers for more than one
            for (int64_t r = 0; r < rows; r += tile_rows)
                sum(row + r, rows - r < tile_rows ? rows - r : tile_rows, c + r * c_stride, c_stride);
            return;
        }
        const int bands = rows > tile_rows ? most_bands[t_.panels - 1] : 1;
        const MultiplyTiles multiply = (bands > 1 ? multiply_bands : multiply_a_band)[t_.panels - 1];
        TileRange range{row_of(row),
                        t_.a_stride,
                        static_cast<const int8_t*>(t_.w),
                        t_.w_stride,
                        t_.depth / run_,
                        t_.windows.run_step,
                        whole_,
                        part_,
                        t_.init + row * t_.init_stride,
                        t_.init_stride,
                        c,
                        c_stride};
        take_shapes(rows < tile_rows ? rows : tile_rows, part_, bands);
        multiply(range);
        if (rest_ == 0) return;
        range.a += t_.depth - rest_, range.w += (t_.depth - rest_) / 4 * qblock, range.blocks = 1, range.bytes = rest_;
        range.init = c, range.init_stride = c_stride;
        take_shapes(rows < tile_rows ? rows : tile_rows, rest_, bands);
        multiply(range);
    }

  private:
    using MultiplyTiles = void (*)(const TileRange&);
    static constexpr int most_bands[qgroup] = {4, 2, 1, 1};
    static constexpr MultiplyTiles multiply_a_band[qgroup] = {multiply_tiles<1, 1>, multiply_tiles<1, 2>, multiply_tiles<1, 3>,
                                                              multiply_tiles<1, 4>};
    static constexpr MultiplyTiles multiply_bands[qgroup] = {multiply_tiles<4, 1>, multiply_tiles<2, 2>, multiply_tiles<1, 3>,
                                                             multiply_tiles<1, 4>};

    const uint8_t* row_of(int64_t row) const {
        const auto* a = static_cast<const uint8_t*>(t_.a);
        const QWindows& windows = t_.windows;
        if (windows.line == 0) return a + row * t_.a_stride;
        return a + row / windows.line * windows.line_step + row % windows.line * t_.a_stride;
    }

    // Takes as long as some products: only where they change.
    void take_shapes(int64_t rows, int64_t bytes, int bands) {
        if (rows == rows_ && bytes == bytes_ && bands == bands_) return;
        rows_ = rows, bytes_ = bytes, bands_ = bands;
        TileShapes shapes;
        for (int s = 0; s < 4; ++s) shapes.set(s, rows, tile_bytes);
        const int fixed = bands > 1 ? t_.panels : 1;
        for (int tile = 4; tile < tile_registers; ++tile) {
            const bool panel = (tile < 4 + fixed) == (bands > 1);
            panel ? shapes.set(tile, bytes / 4, tile_bytes) : shapes.set(tile, rows, bytes);
        }
        shapes.take();
    }

    const QTile& t_;
    int64_t run_, part_, whole_, rest_;  // rest_: only of rows of one piece
    int64_t rows_ = 0, bytes_ = 0;
    int bands_ = 0;
};

// Whether rows can be windows: tiles end where lines do.
inline bool tiles_take_windows(int64_t line, int64_t run) {
    return isa_active() == Isa::amx && run % 4 == 0 && run >= least_tile_depth && run % tile_part(run) == 0 &&
           4 * line >= 3 * round_up(line, tile_rows);
}

}  // namespace
}  // namespace mvit

#else

namespace mvit {
namespace {

inline bool tiles_take_windows(int64_t, int64_t) { return false; }

}  // namespace
}  // namespace mvit

#endif
