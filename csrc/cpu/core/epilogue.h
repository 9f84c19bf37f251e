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

inline void multiply(const TileKernels& tiles, const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, int columns,
                     const float* init, int64_t init_stride, float* c, int64_t c_stride) {
    tiles.multiply(a, a_stride, rows, b, depth, columns, init, init_stride, c, c_stride);
}
inline void multiply(const TileKernels& tiles, const bf16* a, int64_t a_stride, int64_t rows, const bf16* b, int64_t depth, int columns,
                     const float* init, int64_t init_stride, float* c, int64_t c_stride) {
    tiles.multiply_bf16(a, a_stride, rows, b, depth, columns, init, init_stride, c, c_stride);
}

// body(first, width) for the columns [begin, end) in pieces that are multiplied at once.
template <class O, class Body>
inline void each_piece(int64_t begin, int64_t end, const Body& body) {
    for (int64_t first = begin; first < end; first += multiplied_columns<O>)
        body(first, end - first < multiplied_columns<O> ? static_cast<int>(end - first) : multiplied_columns<O>);
}

// act(a w + bias) for rows of a, where y is scratch memory: whole panels fit, and each is finished while it is in the first cache. What has
// been bfloat16 becomes it again, by way of `products`: rows x multiplied_columns. slopes: [a of all columns | b of all], which make the
// activation dynamic; or null.
template <class O>
inline void multiply_in_cache(const TileKernels& tiles, const O* a, int64_t a_stride, int64_t rows, int64_t depth, const O* weight,
                              const float* bias, int64_t columns, Activation activation, const float* slopes, O* y, int64_t y_stride,
                              float* products) {
    each_piece<O>(0, columns, [&](int64_t first, int width) {
        constexpr bool in_place = sizeof(O) == sizeof(float);
        float* const c = in_place ? reinterpret_cast<float*>(y + first) : products;
        const int64_t c_stride = in_place ? y_stride : multiplied_columns<O>;
        multiply(tiles, a, a_stride, rows, weight + first * packed_depth<O>(depth), depth, width, bias + first, 0, c, c_stride);
        const int written = static_cast<int>(packed_depth<O>(width));  // where the next product may read: zeros beyond the last column
        if (slopes) {
            finish_dynamic(c, c_stride, rows, width, slopes + first, columns, y + first, y_stride);
            for (int64_t r = 0; written > width && r < rows; ++r) y[r * y_stride + first + width] = O{};
        } else if (!in_place || activation != Activation::none) {
            finish(c, c_stride, rows, written, activation, static_cast<const O*>(nullptr), 0, y + first, y_stride);
        }
    });
}

// act(a w + bias) + residual for rows of a and the panels [begin, end) of a packed weight of N columns. products: rows x
// product_stride(columns of these panels) floats. slopes: as above, and leave no residual.
//
// Where y is memory, its rows are written and those of the residual read in runs as long as can be: pieces of 128 bytes, a panel, come too
// late for each other, as no prefetching of the processor sees what they have in common.
template <class T>
inline void multiply_panels(const TileKernels& tiles, const Operand<T>* a, int64_t a_stride, int64_t rows, int64_t depth,
                            const Operand<T>* weight, const float* bias, int64_t columns, int64_t begin, int64_t end, Activation activation,
                            const T* residual, int64_t residual_stride, T* y, int64_t y_stride, float* products,
                            const float* slopes = nullptr) {
    using O = Operand<T>;
    const bool as_it_is = sizeof(T) == sizeof(float) && activation == Activation::none && !residual && !slopes;
    const int64_t last = columns < end * panel ? columns : end * panel;
    for (int64_t first = begin * panel; first < last;) {
        const int64_t beyond = last - first < columns_at_once ? last : first + columns_at_once, stride = product_stride(beyond - first);
        int64_t waiting = first;  // the columns from here on are in `products`
        each_piece<O>(first, beyond, [&](int64_t at, int width) {
            const auto multiplied = [&](float* to, int64_t to_stride) {
                multiply(tiles, a, a_stride, rows, weight + at * packed_depth<O>(depth), depth, width, bias + at, 0, to, to_stride);
            };
            if constexpr (sizeof(T) == sizeof(float)) {
                if (as_it_is && width % F32::width == 0) {  // whole vectors of float32 go straight to where they belong
                    multiplied(y + at, y_stride);
                    waiting = at + width;
                    return;
                }
            }
            multiplied(products + (at - waiting), stride);
        });
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
