// A block of tiles of a convolution by minimal filtering; formula in ops/winograd.h. Compiled once an ISA.
#include "cpu/ops/winograd.h"

#include "cpu/core/activation.h"
#include "cpu/core/isa.h"
#include "cpu/core/simd.h"

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

constexpr float zeros[panel] = {};

// A tile of an image: where its pixels (2 i, 2 j) to (2 i + 1, 2 j + 1) are.
struct Place {
    int64_t image, i, j;
};
inline Place place(const Conv2dProblem& p, int64_t tile) {
    const int64_t across = (p.width + 1) / 2, down = (p.height + 1) / 2;
    return {tile / (across * down), tile / across % down, tile % across};
}

// B^T d B of one map; element (r, s) goes to to[(4 r + s) step + c]. `interior`: all of d lies inside the map.
template <bool interior, class T>
inline void transform_input(const Conv2dProblem& p, const InputMap& map, Place at, float* to, int64_t step) {
    const int64_t top = 2 * at.i - 1, left = 2 * at.j - 1;
    const T* corner = static_cast<const T*>(map.data) + at.image * map.image + top * map.row + left * map.pixel;
    bool row_inside[4], column_inside[4];
    for (int r = 0; r < 4; ++r) {
        row_inside[r] = top + r >= 0 && top + r < p.height;
        column_inside[r] = left + r >= 0 && left + r < p.width;
    }
    for (int64_t c = 0; c < map.channels; c += F32::width) {
        const int lanes = lanes_left(map.channels, c);
        F32 half[4][4];  // B^T d
#pragma GCC unroll 4
        for (int s = 0; s < 4; ++s) {
            F32 d[4];
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r)
                d[r] = interior || (row_inside[r] && column_inside[s]) ? load(corner + r * map.row + s * map.pixel + c, lanes, 0.0f)
                                                                       : F32::all(0.0f);
            half[0][s] = d[0] - d[2];
            half[1][s] = d[1] + d[2];
            half[2][s] = d[2] - d[1];
            half[3][s] = d[1] - d[3];
        }
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            float* row = to + 4 * r * step + c;
            store(half[r][0] - half[r][2], row, lanes);
            store(half[r][1] + half[r][2], row + step, lanes);
            store(half[r][2] - half[r][1], row + 2 * step, lanes);
            store(half[r][1] - half[r][3], row + 3 * step, lanes);
        }
    }
}

template <class T>
inline void transform_inputs(const Conv2dProblem& p, Place at, float* to, int64_t step) {
    const bool interior = at.i > 0 && 2 * at.i + 2 < p.height && at.j > 0 && 2 * at.j + 2 < p.width;
    const auto transform = [&](const InputMap& map, float* into) {
        if (interior) {
            transform_input<true, T>(p, map, at, into, step);
        } else {
            transform_input<false, T>(p, map, at, into, step);
        }
    };
    transform(p.x, to);
    if (p.second.channels > 0) transform(p.second, to + p.x.channels);
}

// A^T m A, bias, activation and residual of `columns` columns from `first` on.
template <Activation activation, class T>
inline void transform_output(const Conv2dProblem& p, Place at, const float* m, int64_t step, int64_t first, int columns) {
    for (int n = 0; n < columns; n += F32::width) {
        const int lanes = lanes_left(columns, n);
        F32 half[2][4];  // A^T m
#pragma GCC unroll 4
        for (int s = 0; s < 4; ++s) {
            const float* column = m + s * step + n;
            const F32 m1 = F32::load(column + 4 * step), m2 = F32::load(column + 8 * step);
            half[0][s] = F32::load(column) + m1 + m2;
            half[1][s] = m1 - m2 - F32::load(column + 12 * step);
        }
        const F32 bias = F32::load(p.bias + first + n);
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) {
            if (2 * at.i + r >= p.height) break;
            const int64_t pixel = ((at.image * p.height + 2 * at.i + r) * p.width + 2 * at.j) * p.columns + first + n;
            const auto put = [&](F32 sum, int64_t offset) {
                F32 y = activate<activation, T>(sum + bias);
                if (p.residual) y = y + load(static_cast<const T*>(p.residual) + offset, lanes, 0.0f);
                store(y, static_cast<T*>(p.y) + offset, lanes);
            };
            put(half[r][0] + half[r][1] + half[r][2], pixel);
            if (2 * at.j + 1 < p.width) put(half[r][1] - half[r][2] - half[r][3], pixel + p.columns);
        }
    }
}

template <class T>
void block(const WinogradBlock& b) {
    const Conv2dProblem& p = b.problem;
    const int64_t channels = p.x.channels + p.second.channels, stride = scratch_stride(channels);
    const int64_t step = winograd_step(b.tiles, stride), product_step = winograd_step(b.tiles, panel);
    const int64_t matrix = panels(p.columns) * panel * channels;
    float* products = b.scratch + 16 * step;
    for (int64_t t = 0; t < b.tiles; ++t) transform_inputs<T>(p, place(p, b.first + t), b.scratch + t * stride, step);
    for (int64_t h = b.begin; h < b.end;) {
        const int64_t first = h * half_panel, wide = h % 2 == 0 && h + 1 < b.end ? 2 : 1, left = p.columns - first;
        const int columns = static_cast<int>(left < wide * half_panel ? left : wide * half_panel);
        const float* weight = static_cast<const float*>(p.weight) + first / panel * panel * channels + first % panel;
        for (int64_t e = 0; e < 16; ++e)
            MVIT_ISA_SYMBOL(tile).multiply(b.scratch + e * step, stride, b.tiles, weight + e * matrix, channels, columns, zeros, 0,
                                           products + e * product_step, panel);
        with_activation(p.activation, [&]<Activation act>() {
            for (int64_t t = 0; t < b.tiles; ++t)
                transform_output<act, T>(p, place(p, b.first + t), products + t * panel, product_step, first, columns);
        });
        h += wide;
    }
}

}  // namespace

extern const WinogradKernels MVIT_ISA_SYMBOL(winograd);
const WinogradKernels MVIT_ISA_SYMBOL(winograd) = {{block<float>, block<bf16>, block<f16>}};

}  // namespace mvit
