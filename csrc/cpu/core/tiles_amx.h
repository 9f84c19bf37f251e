// Products of rows and packed panels by AMX, of bytes (qtile.h) or of bfloat16 (tile.h): both are 4 bytes of a row times blocks of 64
// bytes, 16 columns, to 16 sums of 4 bytes. Internal linkage.
//
// Four registers hold sums, of 1 x 4, 1 x 3, 2 x 2 or 4 x 1 bands of 16 rows and panels, and the others what is being multiplied: for 4
// products of 16 cycles each at most 5 loads of 8.
#pragma once

#include <type_traits>

#include "cpu/core/amx.h"
#include "cpu/core/windows.h"

#if defined(MVIT_ISA_AMX)

namespace mvit {
namespace {

inline constexpr int tile_columns = 16;  // of a panel
inline constexpr int most_tile_panels = 4;

struct OfBytes {
    using Sum = int32_t;
    template <int c, int a, int w>
    static void dot() {
        dot_bytes<c, a, w>();
    }
};
struct OfBf16 {
    using Sum = float;
    template <int c, int a, int w>
    static void dot() {
        dot_bf16<c, a, w>();
    }
};

// In bytes but for init_stride.
template <class Of>
struct TileOperands {
    const void* a;
    int64_t a_stride, depth;  // from row to row; of a row, a multiple of 4
    const void* w;
    int64_t w_stride;  // from panel to panel
    int panels;        // at most 4
    const typename Of::Sum* init;
    int64_t init_stride;  // sums from row to row, or 0
    Windows windows = {};
};

// The largest part that divides a depth and fills most of a tile, or else a whole tile, and a rest.
inline int64_t tile_part(int64_t depth) {
    for (int64_t bytes = tile_bytes; bytes > tile_bytes / 2; bytes -= 4)
        if (depth % bytes == 0) return bytes;
    return tile_bytes < depth ? tile_bytes : depth;
}

template <class Sum>
struct TileRange {
    const char* a;
    int64_t a_stride;
    const char* w;
    int64_t w_stride;
    int64_t runs, run_step;  // pieces of a row, and bytes from one to the next
    int64_t blocks, bytes;   // of k in each, of so many bytes
    const Sum* init;
    int64_t init_stride;
    Sum* c;
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
template <class Of, int bands, int panels>
inline void multiply_tiles(const TileRange<typename Of::Sum>& t) {
    constexpr int sums = bands * panels, first = 4, fixed = bands > 1 ? panels : 1, moving = tile_registers - first - fixed;
    static_assert(sums <= first && moving > 0);
    constexpr auto a_tile = [](int b) { return bands > 1 ? first + fixed + b % moving : first; };
    constexpr auto w_tile = [](int p) { return bands > 1 ? first + p : first + fixed + p % moving; };

    times<sums>([&](auto s) {
        constexpr int b = s / panels, p = s % panels;
        load_tile<s>(t.init + b * tile_rows * t.init_stride + p * tile_columns, t.init_stride * int64_t{sizeof(typename Of::Sum)});
    });
    const char* w = t.w;
    for (int64_t run = 0; run < t.runs; ++run) {
        const char* a = t.a + run * t.run_step;
        for (int64_t block = 0; block < t.blocks; ++block, a += t.bytes, w += t.bytes / 4 * tile_bytes) {
            if constexpr (bands > 1) times<panels>([&](auto p) { load_tile<w_tile(p)>(w + p * t.w_stride, tile_bytes); });
            times<bands>([&](auto b) {
                load_tile<a_tile(b)>(a + b * tile_rows * t.a_stride, t.a_stride);
                times<panels>([&](auto p) {
                    if constexpr (bands == 1) load_tile<w_tile(p)>(w + p * t.w_stride, tile_bytes);
                    Of::template dot<b * panels + p, a_tile(b), w_tile(p)>();
                });
            });
        }
    }
    times<sums>([&](auto s) {
        constexpr int b = s / panels, p = s % panels;
        store_tile<s>(t.c + b * tile_rows * t.c_stride + p * tile_columns, t.c_stride * int64_t{sizeof(typename Of::Sum)});
    });
}

// The registers while it lives, in the shapes that were last taken.
class HeldTiles {
  public:
    HeldTiles() = default;
    HeldTiles(const HeldTiles&) = delete;
    HeldTiles& operator=(const HeldTiles&) = delete;
    ~HeldTiles() {
        if (bands_ > 0) release_tiles();
    }

    // For `bands` bands of so many rows and panels, and so many bytes of k. Takes as long as some products: only where they change.
    void take(int64_t rows, int64_t bytes, int bands, int panels) {
        const int fixed = bands > 1 ? panels : 1;
        if (rows == rows_ && bytes == bytes_ && bands == bands_ && fixed == fixed_) return;
        rows_ = rows, bytes_ = bytes, bands_ = bands, fixed_ = fixed;
        TileShapes shapes;
        for (int s = 0; s < 4; ++s) shapes.set(s, rows, tile_bytes);
        for (int tile = 4; tile < tile_registers; ++tile) {
            const bool panel = (tile < 4 + fixed) == (bands > 1);
            panel ? shapes.set(tile, bytes / 4, tile_bytes) : shapes.set(tile, rows, bytes);
        }
        shapes.take();
    }

  private:
    int64_t rows_ = 0, bytes_ = 0;
    int bands_ = 0, fixed_ = 0;
};

// Sums of a tile, some rows at a time.
template <class Of>
class TileProduct {
    using Sum = typename Of::Sum;

  public:
    TileProduct(const TileOperands<Of>& t, HeldTiles& held)
        : t_(t),
          held_(held),
          run_(t.windows.line > 0 ? t.windows.run : t.depth),
          part_(tile_part(run_)),
          whole_(run_ / part_),
          rest_(run_ % part_) {}

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
    void sum(int64_t row, int64_t rows, Sum* c, int64_t c_stride) {
        if (rows < rows_at_once() && rows > tile_rows) {  // only all bands have registers for more than one
            for (int64_t r = 0; r < rows; r += tile_rows)
                sum(row + r, rows - r < tile_rows ? rows - r : tile_rows, c + r * c_stride, c_stride);
            return;
        }
        const int bands = rows > tile_rows ? most_bands[t_.panels - 1] : 1;
        const MultiplyTiles multiply = (bands > 1 ? multiply_bands : multiply_a_band)[t_.panels - 1];
        TileRange<Sum> range{row_of(row),
                             t_.a_stride,
                             static_cast<const char*>(t_.w),
                             t_.w_stride,
                             t_.depth / run_,
                             t_.windows.run_step,
                             whole_,
                             part_,
                             t_.init + row * t_.init_stride,
                             t_.init_stride,
                             c,
                             c_stride};
        held_.take(rows < tile_rows ? rows : tile_rows, part_, bands, t_.panels);
        multiply(range);
        if (rest_ == 0) return;
        range.a += t_.depth - rest_, range.w += (t_.depth - rest_) / 4 * tile_bytes, range.blocks = 1, range.bytes = rest_;
        range.init = c, range.init_stride = c_stride;
        held_.take(rows < tile_rows ? rows : tile_rows, rest_, bands, t_.panels);
        multiply(range);
    }

  private:
    using MultiplyTiles = void (*)(const TileRange<Sum>&);
    static constexpr int most_bands[most_tile_panels] = {4, 2, 1, 1};
    static constexpr MultiplyTiles multiply_a_band[most_tile_panels] = {multiply_tiles<Of, 1, 1>, multiply_tiles<Of, 1, 2>,
                                                                        multiply_tiles<Of, 1, 3>, multiply_tiles<Of, 1, 4>};
    static constexpr MultiplyTiles multiply_bands[most_tile_panels] = {multiply_tiles<Of, 4, 1>, multiply_tiles<Of, 2, 2>,
                                                                       multiply_tiles<Of, 1, 3>, multiply_tiles<Of, 1, 4>};

    const char* row_of(int64_t row) const {
        const auto* a = static_cast<const char*>(t_.a);
        const Windows& windows = t_.windows;
        if (windows.line == 0) return a + row * t_.a_stride;
        return a + row / windows.line * windows.line_step + row % windows.line * t_.a_stride;
    }

    const TileOperands<Of>& t_;
    HeldTiles& held_;
    int64_t run_, part_, whole_, rest_;  // rest_: only of rows of one piece
};

// Rows and columns of some sums, and sums from row to row.
struct TilePlace {
    int64_t row, rows, column;
    int width;
    int64_t stride;
};

// Sums that stay in the first cache until the next but one are made: what is done to them and tiles do not wait for each other.
template <class Of>
class SumsInTurn {
    using Sum = typename Of::Sum;

  public:
    // Those of a band of `product`; then done(sums, place) for the ones before.
    template <class Done>
    void make(TileProduct<Of>& product, const TilePlace& place, const Done& done) {
        product.sum(place.row, place.rows, sums_[turn_], place.stride);
        end(done);
        place_ = place;
        turn_ = 1 - turn_;
    }
    // done(sums, place) for the last ones.
    template <class Done>
    void end(const Done& done) {
        if (place_.rows > 0) done(static_cast<const Sum*>(sums_[1 - turn_]), place_);
        place_.rows = 0;
    }

  private:
    alignas(64) Sum sums_[2][4 * tile_rows * tile_columns];  // of 4 bands of a panel, or of one of 4
    int turn_ = 0;
    TilePlace place_{};
};

}  // namespace
}  // namespace mvit

#endif
