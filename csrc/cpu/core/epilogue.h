// What happens to a product on its way to memory: activation, residual, conversion. Internal linkage.
#pragma once

#include "cpu/core/activation.h"
#include "cpu/core/tile.h"

namespace mvit {
namespace {

// y[r, j] = act(c[r, j]) + residual[r, j]; y may be c.
template <class T>
inline void finish(const float* c, int64_t c_stride, int64_t rows, int columns, Activation activation, const T* residual,
                   int64_t residual_stride, T* y, int64_t y_stride) {
    with_activation(activation, [&]<Activation act>() {
        for (int64_t r = 0; r < rows; ++r)
            for (int j = 0; j < columns; j += F32::width) {
                const int lanes = lanes_left(columns, j);
                F32 x = activate<act>(load(c + r * c_stride + j, lanes, 0.0f));
                if (residual) x = x + load(residual + r * residual_stride + j, lanes, 0.0f);
                store(x, y + r * y_stride + j, lanes);
            }
    });
}

// y[r, j] = max(a[j] c[r, j], b[j] c[r, j]); y may be c. slopes: a of these columns, and `channels` behind it b.
template <class T>
inline void finish_dynamic(const float* c, int64_t c_stride, int64_t rows, int columns, const float* slopes, int64_t channels, T* y,
                           int64_t y_stride) {
    for (int j = 0; j < columns; j += F32::width) {
        const int lanes = lanes_left(columns, j);
        const Slopes slope(slopes, channels, j, lanes);
        for (int64_t r = 0; r < rows; ++r) store(slope(load(c + r * c_stride + j, lanes, 0.0f)), y + r * y_stride + j, lanes);
    }
}

// act(a w + bias) + residual for rows of a and the panels [begin, end) of a packed weight of N columns. `tile`: rows x panel floats.
// slopes: [a of all columns | b of all], which make the activation dynamic and leave no residual; or null.
template <class T>
inline void multiply_panels(const TileKernels& tiles, const float* a, int64_t a_stride, int64_t rows, int64_t depth, const float* weight,
                            const float* bias, int64_t columns, int64_t begin, int64_t end, Activation activation, const T* residual,
                            int64_t residual_stride, T* y, int64_t y_stride, float* tile, const float* slopes = nullptr) {
    const auto leave = [&](const float* c, int64_t c_stride, int width, int64_t first) {
        if (slopes) return finish_dynamic(c, c_stride, rows, width, slopes + first, columns, y + first, y_stride);
        finish(c, c_stride, rows, width, activation, residual ? residual + first : nullptr, residual_stride, y + first, y_stride);
    };
    for (int64_t j = begin; j < end; ++j) {
        const int64_t first = j * panel;
        const int width = columns - first < panel ? static_cast<int>(columns - first) : panel;
        // Whole vectors of float32 go straight to where they belong.
        if constexpr (sizeof(T) == sizeof(float)) {
            if (width % F32::width == 0) {
                tiles.multiply(a, a_stride, rows, weight + first * depth, depth, width, bias + first, 0, y + first, y_stride);
                if (activation != Activation::none || residual || slopes) leave(y + first, y_stride, width, first);
                continue;
            }
        }
        tiles.multiply(a, a_stride, rows, weight + first * depth, depth, width, bias + first, 0, tile, panel);
        leave(tile, panel, width, first);
    }
}

}  // namespace
}  // namespace mvit
