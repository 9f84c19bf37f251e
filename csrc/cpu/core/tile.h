// The one matrix multiplication that every float op is built on: a few rows times a panel of packed columns.
//
// A weight of N columns (output channels) and depth K is packed into ceil(N / panel) panels; panel j holds, for k = 0 .. K - 1, the `panel`
// values w[panel j .. panel (j + 1))[k] side by side, zeros beyond N. One layout serves every instruction set.
//
// Floor: on registers of W lanes, R rows and V vectors of columns take R V fused multiply-adds for R broadcasts and V loads: with the tiles
// of isa/tile.cpp fewer loads than multiply-adds, so the multiply-adds set the pace.
#pragma once

#include <cstdint>

namespace mvit {

inline constexpr int panel = 32;  // columns

inline constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline constexpr int64_t panels(int64_t columns) { return (columns + panel - 1) / panel; }

// The distance between rows of a scratch matrix: whole panels, and never a multiple of 2 KB, at which a dozen rows would share two or three
// sets of the first cache.
inline constexpr int64_t scratch_stride(int64_t columns) {
    const int64_t whole = round_up(columns, panel);
    return whole % 512 == 0 ? whole + 16 : whole;
}

struct TileKernels {
    // c[r, j] = init[r, j] + sum_k a[r, k] b[k, j] for `rows` rows and the first `columns` <= panel columns of a packed
    // panel. Writes, and reads of init, whole vectors: as many columns as the next multiple of `vector`. init may be c; its stride may be
    // 0.
    void (*multiply)(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, int columns, const float* init,
                     int64_t init_stride, float* c, int64_t c_stride);
    int vector;  // lanes
};

}  // namespace mvit
