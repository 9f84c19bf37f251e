// What happens to a product on its way to memory: activation, residual, conversion. Internal linkage.
#pragma once

#include "cpu/core/activation.h"
#include "cpu/core/products.h"

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

// act(a w + bias) for rows of a, where y is scratch memory: whole panels fit, and each is finished while it is in the first cache.
// slopes: [a of all columns | b of all], which make the activation dynamic; or null.
inline void multiply_in_cache(const TileKernels& tiles, const float* a, int64_t a_stride, int64_t rows, int64_t depth, const float* weight,
                              const float* bias, int64_t columns, Activation activation, const float* slopes, float* y, int64_t y_stride) {
    for (int64_t first = 0; first < columns; first += panel) {
        const int width = columns - first < panel ? static_cast<int>(columns - first) : panel;
        tiles.multiply(a, a_stride, rows, weight + first * depth, depth, width, bias + first, 0, y + first, y_stride);
        if (slopes) {
            finish_dynamic(y + first, y_stride, rows, width, slopes + first, columns, y + first, y_stride);
        } else if (activation != Activation::none) {
            finish(y + first, y_stride, rows, width, activation, static_cast<const float*>(nullptr), 0, y + first, y_stride);
        }
    }
}

// act(a w + bias) + residual for rows of a and the panels [begin, end) of a packed weight of N columns. products: rows x
// product_stride(columns of these panels) floats. slopes: as above, and leave no residual.
//
// Where y is memory, its rows are written and those of the residual read in runs as long as can be: pieces of 128 bytes, a panel, come too
// late for each other, as no prefetching of the processor sees what they have in common.
template <class T>
inline void multiply_panels(const TileKernels& tiles, const float* a, int64_t a_stride, int64_t rows, int64_t depth, const float* weight,
                            const float* bias, int64_t columns, int64_t begin, int64_t end, Activation activation, const T* residual,
                            int64_t residual_stride, T* y, int64_t y_stride, float* products, const float* slopes = nullptr) {
    const bool as_it_is = sizeof(T) == sizeof(float) && activation == Activation::none && !residual && !slopes;
    const int64_t last = columns < end * panel ? columns : end * panel;
    for (int64_t first = begin * panel; first < last;) {
        const int64_t beyond = last - first < columns_at_once ? last : first + columns_at_once, stride = product_stride(beyond - first);
        int64_t waiting = first;  // the columns from here on are in `products`
        for (int64_t at = first; at < beyond; at += panel) {
            const int width = beyond - at < panel ? static_cast<int>(beyond - at) : panel;
            const auto multiply = [&](float* to, int64_t to_stride) {
                tiles.multiply(a, a_stride, rows, weight + at * depth, depth, width, bias + at, 0, to, to_stride);
            };
            if constexpr (sizeof(T) == sizeof(float)) {
                if (as_it_is && width % F32::width == 0) {  // whole vectors of float32 go straight to where they belong
                    multiply(y + at, y_stride);
                    waiting = at + width;
                    continue;
                }
            }
            multiply(products + (at - waiting), stride);
        }
        const int left = static_cast<int>(beyond - waiting);
        if (left > 0 && slopes) {
            finish_dynamic(products, stride, rows, left, slopes + waiting, columns, y + waiting, y_stride);
        } else if (left > 0) {
            finish(products, stride, rows, left, activation, residual ? residual + waiting : nullptr, residual_stride, y + waiting,
                   y_stride);
        }
        first = beyond;
    }
}

}  // namespace
}  // namespace mvit
