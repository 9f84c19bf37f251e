// The one matrix multiplication that every float op is built on: a few rows times a panel of packed columns.
//
// A weight of N columns (output channels) and depth K is packed into ceil(N / panel) panels; panel j holds, for k = 0 .. K - 1, the `panel`
// values w[panel j .. panel (j + 1))[k] side by side, zeros beyond N. One layout serves every instruction set.
//
// Maps of bfloat16 multiply by weights of bfloat16, with sums of float32, which vdpbf16ps of AVX512-BF16 does at twice the rate of float32
// (Zen 4) and tiles of AMX at 16 times; both take subnormal numbers for 0. Each half of a panel, 16 columns, lies in pairs: for k = 0, 2,
// .. the values k and k + 1 of its first column, of its second, and so on, zeros beyond N and K.
//
// Floor: on registers of W lanes, R rows and V vectors of columns take R V fused multiply-adds for R broadcasts and V loads: with the tiles
// of isa/tile.cpp fewer loads than multiply-adds, so the multiply-adds set the pace, and of pairs vdpbf16ps. By tiles of AMX, 16 rows and
// 16 columns of 32 values of k take 16 cycles.
#pragma once

#include <cstdint>

#include "cpu/core/types.h"

namespace mvit {

inline constexpr int panel = 32;  // columns
inline constexpr int64_t half_panel = panel / 2;

// What the values of a map are multiplied as.
template <class T>
struct OperandOf {
    using Type = float;
};
template <>
struct OperandOf<bf16> {
    using Type = bf16;
};
template <class T>
using Operand = typename OperandOf<T>::Type;

// Values of a packed column.
template <class O>
inline constexpr int64_t packed_depth(int64_t depth) {
    return is_bf16<O> ? (depth + 1) / 2 * 2 : depth;
}

inline constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline constexpr int64_t panels(int64_t columns) { return (columns + panel - 1) / panel; }

// The distance between rows of a scratch matrix: whole panels, and never a multiple of 2 KB, at which a dozen rows would share two or three
// sets of the first cache.
template <class O = float>
inline constexpr int64_t scratch_stride(int64_t columns) {
    constexpr int64_t size = sizeof(O);
    const int64_t whole = round_up(columns, panel);
    return whole * size % 2048 == 0 ? whole + 64 / size : whole;
}

struct TileKernels {
    // c[r, j] = init[r, j] + sum_k a[r, k] b[k, j] for `rows` rows and the first `columns` <= panel columns of a packed
    // panel. Writes, and reads of init, whole vectors: as many columns as the next multiple of `vector`. init may be c; its stride may be
    // 0.
    void (*multiply)(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, int columns, const float* init,
                     int64_t init_stride, float* c, int64_t c_stride);
    // The same of pairs and the first `columns` columns of halves of panels, one behind the other. Reads
    // packed_depth<bf16>(depth) values of a row, the last of which may be anything but infinite or NaN where depth is odd. Writes, and
    // reads of init, whole half panels.
    void (*multiply_bf16)(const bf16* a, int64_t a_stride, int64_t rows, const bf16* b, int64_t depth, int columns, const float* init,
                          int64_t init_stride, float* c, int64_t c_stride);
    int vector;  // lanes
};

}  // namespace mvit
