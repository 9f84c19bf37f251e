// What happens to a product on its way to memory: activation, residual, conversion. Internal linkage.
#pragma once

#include "cpu/core/activation.h"
#include "cpu/core/products.h"
#include "cpu/core/tiles_amx.h"

namespace mvit {
namespace {

// y[r, j] = act(c[r, j]) + residual[r, j], act as exact as results of T need it; y may be c.
template <class T, class Y>
inline void finish(const float* c, int64_t c_stride, int64_t rows, int columns, Activation activation, const T* residual,
                   int64_t residual_stride, Y* y, int64_t y_stride) {
    with_activation(activation, [&]<Activation act>() {
        for (int64_t r = 0; r < rows; ++r) {
            const float* const from = c + r * c_stride;
            const T* const beside = residual ? residual + r * residual_stride : nullptr;
            Y* const to = y + r * y_stride;
            const auto some = [&](int j, int lanes) {
                F32 x = activate<act, T>(load(from + j, lanes, 0.0f));
                if (beside) x = x + load(beside + j, lanes, 0.0f);
                store_normal(x, to + j, lanes);
            };
            int j = 0;
            for (; j + F32::width <= columns; j += F32::width) some(j, F32::width);
            if (j < columns) some(j, columns - j);
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
        for (int64_t r = 0; r < rows; ++r) store_normal(slope(load(c + r * c_stride + j, lanes, 0.0f)), y + r * y_stride + j, lanes);
    }
}

// body(first, width) for the columns [begin, end) in pieces of `piece`.
template <class Body>
inline void each_piece(int64_t begin, int64_t end, int piece, const Body& body) {
    for (int64_t first = begin; first < end; first += piece) body(first, end - first < piece ? static_cast<int>(end - first) : piece);
}

// a w + bias for rows of a and the columns [begin, end) of a packed weight, part by part: done(c, c_stride, row, rows, column, width) for
// some rows from `row` and columns from `column` on. products: rows x piece_stride floats.
template <class Done>
inline void multiply_in_parts(const TileKernels& tiles, const bf16* a, int64_t a_stride, int64_t rows, const bf16* weight, int64_t depth,
                              const float* bias, int64_t begin, int64_t end, float* products, const Done& done) {
    const int64_t pairs = packed_depth<bf16>(depth);
#if defined(MVIT_ISA_AMX)
    if (depth > 0) {
        constexpr int64_t bytes = sizeof(bf16);
        HeldTiles held;
        SumsInTurn<OfBf16> sums;
        const auto finish = [&](const float* c, const TilePlace& at) { done(c, at.stride, at.row, at.rows, at.column, at.width); };
        each_piece(begin, end, most_tile_panels * tile_columns, [&](int64_t first, int width) {
            const int count = (width + tile_columns - 1) / tile_columns;
            const TileOperands<OfBf16> operands{
                a, a_stride * bytes, pairs * bytes, weight + first * pairs, tile_columns * pairs * bytes, count, bias + first, 0};
            TileProduct product(operands, held);
            product.each_band(
                0, rows, [&](int64_t row, int64_t some) { sums.make(product, {row, some, first, width, count * tile_columns}, finish); });
        });
        sums.end(finish);
        return;
    }
#endif
    each_piece(begin, end, piece_stride, [&](int64_t first, int width) {
        tiles.multiply_bf16(a, a_stride, rows, weight + first * pairs, depth, width, bias + first, 0, products, piece_stride);
        done(products, piece_stride, 0, rows, first, width);
    });
}

// act(a w + bias) for rows of a, where y is scratch memory: whole panels fit, and each is finished while it is in the first cache.
// slopes: [a of all columns | b of all], which make the activation dynamic; or null. Products need no room of their own.
inline void multiply_in_cache(const TileKernels& tiles, const float* a, int64_t a_stride, int64_t rows, int64_t depth, const float* weight,
                              const float* bias, int64_t columns, Activation activation, const float* slopes, float* y, int64_t y_stride,
                              float*) {
    each_piece(0, columns, panel, [&](int64_t first, int width) {
        tiles.multiply(a, a_stride, rows, weight + first * depth, depth, width, bias + first, 0, y + first, y_stride);
        if (slopes) {
            finish_dynamic(y + first, y_stride, rows, width, slopes + first, columns, y + first, y_stride);
        } else if (activation != Activation::none) {
            finish(y + first, y_stride, rows, width, activation, static_cast<const float*>(nullptr), 0, y + first, y_stride);
        }
    });
}

// The same of bfloat16. Where y is bfloat16, too, with a zero behind an odd last column: the next product reads it.
// products: rows x piece_stride floats.
template <class Y>
inline void multiply_in_cache(const TileKernels& tiles, const bf16* a, int64_t a_stride, int64_t rows, int64_t depth, const bf16* weight,
                              const float* bias, int64_t columns, Activation activation, const float* slopes, Y* y, int64_t y_stride,
                              float* products) {
    multiply_in_parts(tiles, a, a_stride, rows, weight, depth, bias, 0, columns, products,
                      [&](const float* c, int64_t c_stride, int64_t row, int64_t some, int64_t first, int width) {
                          Y* const to = y + row * y_stride + first;
                          if (slopes) {
                              finish_dynamic(c, c_stride, some, width, slopes + first, columns, to, y_stride);
                          } else {
                              finish(c, c_stride, some, width, activation, static_cast<const bf16*>(nullptr), 0, to, y_stride);
                          }
                      });
    if constexpr (is_bf16<Y>) {
        for (int64_t r = 0; columns % 2 != 0 && r < rows; ++r) y[r * y_stride + columns] = Y{};
    }
}

// act(a w + bias) + residual for rows of a and the panels [begin, end) of a packed weight of N columns. products: rows x
// product_floats(columns of these panels) floats. slopes: as above, and leave no residual.
//
// Where y is memory, its rows are written and those of the residual read in runs as long as can be: pieces of 128 bytes, a panel, come too
// late for each other, as no prefetching of the processor sees what they have in common. Of bfloat16 a piece is finished before the next
// one is there, or what tiles give would leave the first cache.
template <class T>
inline void multiply_panels(const TileKernels& tiles, const Operand<T>* a, int64_t a_stride, int64_t rows, int64_t depth,
                            const Operand<T>* weight, const float* bias, int64_t columns, int64_t begin, int64_t end, Activation activation,
                            const T* residual, int64_t residual_stride, T* y, int64_t y_stride, float* products,
                            const float* slopes = nullptr) {
    const int64_t last = columns < end * panel ? columns : end * panel;
    const auto finished = [&](const float* c, int64_t c_stride, int64_t row, int64_t some, int64_t first, int width) {
        T* const to = y + row * y_stride + first;
        if (slopes) {
            finish_dynamic(c, c_stride, some, width, slopes + first, columns, to, y_stride);
        } else {
            finish(c, c_stride, some, width, activation, residual ? residual + row * residual_stride + first : nullptr, residual_stride, to,
                   y_stride);
        }
    };
    if constexpr (is_bf16<T>) {
        multiply_in_parts(tiles, a, a_stride, rows, weight, depth, bias, begin * panel, last, products, finished);
    } else {
        const bool as_it_is = sizeof(T) == sizeof(float) && activation == Activation::none && !residual && !slopes;
        for (int64_t first = begin * panel; first < last;) {
            const int64_t beyond = last - first < columns_at_once ? last : first + columns_at_once, stride = product_stride(beyond - first);
            int64_t waiting = first;  // the columns from here on are in `products`
            each_piece(first, beyond, panel, [&](int64_t at, int width) {
                const auto multiply = [&](float* to, int64_t to_stride) {
                    tiles.multiply(a, a_stride, rows, weight + at * depth, depth, width, bias + at, 0, to, to_stride);
                };
                if constexpr (sizeof(T) == sizeof(float)) {
                    if (as_it_is && width % F32::width == 0) {  // whole vectors of float32 go straight to where they belong
                        multiply(y + at, y_stride);
                        waiting = at + width;
                        return;
                    }
                }
                multiply(products + (at - waiting), stride);
            });
            if (beyond > waiting) finished(products, stride, 0, rows, waiting, static_cast<int>(beyond - waiting));
            first = beyond;
        }
    }
}

}  // namespace
}  // namespace mvit
