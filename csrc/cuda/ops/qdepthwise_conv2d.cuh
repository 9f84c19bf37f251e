// One thread of ops/qdepthwise_conv2d.h.
#pragma once

#include "cuda/ops/qdepthwise_conv2d.h"
#include "cuda/primitives/dot4.cuh"
#include "cuda/primitives/qepilogue.cuh"

namespace mvit::cuda {

inline constexpr int depthwise_threads = 128, depthwise_run = 8;  // pixels of y, at most

MVIT_BOTH constexpr int64_t whole_panels(int64_t channels) { return ceil_divide(channels, 16) * 16; }

// How a call is cut into threads: neighbours have neighbouring channels, then runs of a row of y, then rows, then images.
struct QDepthwiseCut {
    int64_t quads, runs, rows, images;

    MVIT_BOTH static QDepthwiseCut of(const QDepthwiseConv2dProblem& p) {
        const int64_t width = (p.width - 1) / p.stride + 1, height = (p.height - 1) / p.stride + 1;
        return {ceil_divide(p.channels, four), ceil_divide(width, depthwise_run), height, p.batch};
    }
    MVIT_BOTH int64_t threads() const { return quads * runs * rows * images; }
};

// Four channels of a pixel. Those past the last are 0.
MVIT_DEVICE uint32_t load_channels(const uint8_t* from, int lanes, bool aligned) {
    if (aligned) return *reinterpret_cast<const uint32_t*>(from);
    uint32_t word = 0;
    MVIT_UNROLL
    for (int i = 0; i < four; ++i)
        if (i < lanes) word |= uint32_t{from[i]} << (8 * i);
    return word;
}

// Rows 0, 1, 2 of four channels to the three taps of each channel.
MVIT_DEVICE void turn(const uint32_t (&rows)[3], uint32_t (&taps)[four]) {
    const uint32_t low = permute(rows[0], rows[1], 0x5140), high = permute(rows[0], rows[1], 0x7362);  // 0: r0 r1, 1: r0 r1; 2, 3 likewise
    // The fourth byte meets a weight of 0.
    taps[0] = permute(low, rows[2], 0x4410), taps[1] = permute(low, rows[2], 0x5532);
    taps[2] = permute(high, rows[2], 0x6610), taps[3] = permute(high, rows[2], 0x7732);
}

// shared: SharedCurve::bytes, aligned to 8.
template <int stride>
MVIT_DEVICE void qdepthwise(const QDepthwiseConv2dProblem& p, const QDepthwiseCut& cut, uint8_t* shared) {
    if (p.epilogue.curve) {
        SharedCurve::load(p.epilogue.curve, shared, depthwise_threads);
        block_barrier();
    }
    int64_t at = block_x() * depthwise_threads + thread_index();
    const int64_t quad = at % cut.quads;
    at /= cut.quads;
    const int64_t run = at % cut.runs;
    at /= cut.runs;
    const int64_t y = at % cut.rows, image = at / cut.rows;
    if (image >= cut.images) return;

    const int64_t channel = quad * four, panels = whole_panels(p.channels);
    const int lanes = static_cast<int>(p.channels - channel < four ? p.channels - channel : four);
    const bool aligned = lanes == four && reinterpret_cast<uintptr_t>(p.x) % four == 0 && p.image_stride % four == 0 &&
                         p.row_stride % four == 0 && p.pixel_stride % four == 0;
    const int64_t width = (p.width - 1) / stride + 1, first = run * depthwise_run;
    const int count = static_cast<int>(width - first < depthwise_run ? width - first : depthwise_run);

    Quad<uint32_t> weights[3];
    MVIT_UNROLL
    for (int kx = 0; kx < 3; ++kx) weights[kx] = load_quad(p.taps + kx * panels + channel, four, true);
    const int64_t top = y * stride - 1;
    const int row_class = (top < 0 ? 1 : 0) + (top + 2 >= p.height ? 2 : 0);
    const uint8_t* from = p.x + image * p.image_stride + channel;
    const Finish finish(p.epilogue, p.channels, channel, shared);

    const auto load_column = [&](int64_t x, uint32_t (&taps)[four]) {
        uint32_t rows[3] = {};
        if (x >= 0 && x < p.width) {
            MVIT_UNROLL
            for (int ky = 0; ky < 3; ++ky) {
                const int64_t row = top + ky;
                if (row >= 0 && row < p.height) rows[ky] = load_channels(from + row * p.row_stride + x * p.pixel_stride, lanes, aligned);
            }
        }
        turn(rows, taps);
    };

    uint32_t columns[3][four];
    const int64_t left = first * stride - 1;
    MVIT_UNROLL
    for (int kx = 0; kx < 3 - stride; ++kx) load_column(left + kx, columns[kx]);
    for (int i = 0; i < count; ++i) {
        const int64_t x = left + i * stride;
        MVIT_UNROLL
        for (int kx = 3 - stride; kx < 3; ++kx) load_column(x + kx, columns[kx]);
        Quad<int32_t> sums{};
        MVIT_UNROLL
        for (int kx = 0; kx < 3; ++kx) {
            MVIT_UNROLL
            for (int c = 0; c < four; ++c) sums.v[c] = dot4(columns[kx][c], weights[kx].v[c], sums.v[c]);
        }
        const int column_class = (x < 0 ? 1 : 0) + (x + 2 >= p.width ? 2 : 0);
        finish(sums, p.border + (4 * row_class + column_class) * panels, (image * cut.rows + y) * width + first + i);
        MVIT_UNROLL
        for (int kx = 0; kx < 3 - stride; ++kx) {
            MVIT_UNROLL
            for (int c = 0; c < four; ++c) columns[kx][c] = columns[kx + stride][c];
        }
    }
}

}  // namespace mvit::cuda
