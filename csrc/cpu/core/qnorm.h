// From rows of an int16 stream to the normalised bytes that a product reads. Internal linkage.
//
// Of a group (an image) or a row of n values with the exact sums S1 = sum x and S2 = sum x^2, and with x = real / s, y = real / s_y:
//
//     mean     = S1 / n                                           float64, every step a single rounded operation
//     variance = max(S2 / n - mean mean, 0)
//     factor   = (s / s_y) / sqrt(variance (s s) + eps)
//     t = (float(x) - float(mean)) float(factor)                  float32, likewise
//     t = t gain[k] + offset[k]                                   two operations; only where gamma and beta belong to no next weight
//     y = rint(min(max(t, -z), 2^bits - 1 - z)) + z               ties to even
//
// mvit_kernels/reference/qnorm.py defines the same: all bits agree on every instruction set. float(x) is exact. In float64 the difference
// loses at most 2^-52 of S2 / n, which is 2^30 at most: 2^-22 of the square of a step of x. gamma and beta belong in the next weight.
#pragma once

#include "cpu/core/qepilogue.h"
#include "cpu/core/qnorm_types.h"
#include "cpu/core/qsums.h"

namespace mvit {
namespace {

// Of a group or a row: t = (x - mean) factor.
struct QNormal {
    float mean, factor;
};

// Of `count` groups of `size` values each.
inline void normals_of(const QNorm& n, const QSums* sums, int64_t count, int64_t size, QNormal* normals) {
    const double each = static_cast<double>(size), ratio = n.scale / n.y_scale, power = n.scale * n.scale, eps = n.eps;
    for (int64_t i = 0; i < count; ++i) {
        const double mean = static_cast<double>(sums[i].sum) / each, difference = static_cast<double>(sums[i].squares) / each - mean * mean;
        const double variance = difference > 0.0 ? difference : 0.0;
        normals[i] = {static_cast<float>(mean), static_cast<float>(ratio / __builtin_sqrt(variance * power + eps))};
    }
}

inline void normalize_row(const QNorm& n, const int16_t* x, QNormal normal, uint8_t* y) {
    const F32 mean = F32::all(normal.mean), factor = F32::all(normal.factor), low = F32::all(n.low), high = F32::all(n.high);
    const I32 zero = I32::all(n.zero_point);
    const int64_t depth = n.depth;  // a byte stored could be one of n's, for all that the compiler knows
    if (n.gain) {
        for (int64_t k = 0; k < depth; k += F32::width) {
            const int lanes = lanes_left(depth, k);
            const F32 t = (to_float(load_ints(x + k, lanes)) - mean) * factor;
            const F32 scaled = t * load(n.gain + k, lanes, 0.0f) + load(n.offset + k, lanes, 0.0f);
            store(to_byte(scaled, low, high, zero), y + k, lanes);
        }
        return;
    }
    int64_t k = 0;
    for (; k + F32::width <= depth; k += F32::width) to_byte((to_float(I32::load(x + k)) - mean) * factor, low, high, zero).store(y + k);
    if (k < depth) {
        const int left = lanes_left(depth, k);
        to_byte((to_float(I32::load_n(x + k, left)) - mean) * factor, low, high, zero).store_n(y + k, left);
    }
}

// Rows [row, row + rows) of x, the first of which goes to y.
inline void normalize_rows(const QNorm& n, int64_t row, int64_t rows, uint8_t* y, int64_t y_stride) {
    const int16_t* x = n.x + row * n.x_stride;
    if (n.sums) {
        QNormal normal{};
        int64_t group = -1;
        for (int64_t r = 0; r < rows; ++r) {
            if (const int64_t next = (row + r) / n.group_rows; next != group) {
                group = next;
                const QSums sums{n.sums[2 * group], n.sums[2 * group + 1]};
                normals_of(n, &sums, 1, n.group_rows * n.depth, &normal);
            }
            normalize_row(n, x + r * n.x_stride, normal, y + r * y_stride);
        }
        return;
    }
    // Some rows at a time, which stay in the first cache: from the loads of a row to its factor is a long chain, and many run side by side.
    constexpr int64_t some = 16;
    QSums sums[some];
    QNormal normals[some];
    for (int64_t begin = 0; begin < rows; begin += some) {
        const int64_t count = rows - begin < some ? rows - begin : some;
        const int16_t* first = x + begin * n.x_stride;
        for (int64_t r = 0; r < count; ++r) sums[r] = sums_of(first + r * n.x_stride, n.depth);
        normals_of(n, sums, count, n.depth, normals);
        for (int64_t r = 0; r < count; ++r) normalize_row(n, first + r * n.x_stride, normals[r], y + (begin + r) * y_stride);
    }
}

}  // namespace
}  // namespace mvit
