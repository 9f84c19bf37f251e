// A block of ops/qinverted_residual.h.
#pragma once

#include "cuda/ops/qdepthwise_conv2d.cuh"
#include "cuda/ops/qinverted_residual.h"
#include "cuda/ops/qproduct.cuh"
#include "cuda/ops/residual_tile.cuh"

namespace mvit::cuda {

// Rows of the numbers of a slice.
enum QSliceRow { slice_init = 0, slice_scale = 1, slice_taps = 2, slice_border = 5, slice_filter_scale = 21, slice_rows = 22 };
inline constexpr int slice_bytes = slice_rows * residual_slice * 4;

// Where things lie in shared memory, and how large they are, in bytes. A parameter of the kernel, as constants take no registers.
template <class Tile>
struct QResidualShared {
    int lag, slices;     // what ResidualSlices calls so; of the hidden channels
    int depth, columns;  // tiles of the expansion's depth and of the reduction's columns
    int row, expand, reduce, slice;
    int hidden, filtered, stages, curves, own;
    int hidden_bytes, filtered_bytes;  // of a slice; with a lag there are two of each
    int sums_stride, bytes;            // the stride in words: the pairs that a quarter of a warp writes at once do not meet

    static constexpr int slice_row = ResidualWarp<uint8_t, Tile>::slice_row;

    MVIT_BOTH int sums_bytes() const { return Tile::pixels * sums_stride * 4; }

    QResidualShared(int channels, int hidden_channels, int out_columns, int lag_)
        : lag(lag_),
          slices((hidden_channels + residual_slice - 1) / residual_slice),
          depth((channels + tile_depth - 1) / tile_depth),
          columns((out_columns + tile_columns - 1) / tile_columns),
          row(depth * tile_depth + residual_gap),
          expand(residual_slice / tile_columns * depth * tile_bytes(8)),
          reduce(columns * tile_bytes(8)),
          slice(slice_bytes + expand + reduce),
          hidden(Tile::seen_blocks * 16 * row),
          filtered(hidden + (1 + lag) * Tile::seen_blocks * 16 * slice_row),
          stages(filtered + (1 + lag) * Tile::pixels * slice_row),
          curves(stages + 2 * slice),
          own(curves + 2 * SharedCurve::bytes),
          hidden_bytes(Tile::seen_blocks * 16 * slice_row),
          filtered_bytes(Tile::pixels * slice_row),
          sums_stride(columns * tile_columns + 8),
          bytes(own + residual_threads * 4) {
        // In the end there is nothing else but the curve of the last layer.
        if (bytes < sums_bytes() + SharedCurve::bytes) bytes = sums_bytes() + SharedCurve::bytes;
    }
};

// shared: QResidualShared::bytes, aligned to 16. alignment: of the pixels of x.
template <class Tile>
MVIT_DEVICE void qinverted_residual_tile(const QInvertedResidualProblem& p, const QResidualShared<Tile>& at, int alignment,
                                         uint8_t* shared) {
    const ResidualPlace<Tile> place(p.height, p.width);
    const ResidualSlices slices{.from = p.slices,
                                .stages = shared + at.stages,
                                .bytes = at.slice,
                                .count = at.slices,
                                .filter_begin = slice_taps * residual_slice * 4,
                                .filter_end = slice_bytes,
                                .reduce_at = slice_bytes + at.expand,
                                .lag = at.lag};
    const uint32_t thread = anew(static_cast<uint32_t>(thread_index()));
    using Warp = ResidualWarp<uint8_t, Tile>;
    const auto hidden = [&](int slot) { return shared + at.hidden + slot * at.hidden_bytes; };
    const auto filtered = [&](int slot) { return shared + at.filtered + slot * at.filtered_bytes; };
    const auto numbers = [](const uint8_t* weights, int row) { return reinterpret_cast<const int32_t*>(weights) + row * residual_slice; };
    const auto scales = [&](const uint8_t* weights, int row) { return reinterpret_cast<const float*>(numbers(weights, row)); };

    // Zeros beyond the map and the channels.
    slices.load(0);
    auto* seen = reinterpret_cast<int32_t*>(hidden(0));
    place.find_seen(seen);
    const uint8_t* image = p.x + int64_t{place.image} * p.height * p.width * p.channels;
    MVIT_ROLLED
    for (ChunkWalk walk(2 * at.depth); walk.row < 16 * Tile::seen_blocks; walk.next()) {
        const int c = static_cast<int>(walk.chunk) * chunk_bytes, left = p.channels - c, pixel = left > 0 ? seen[walk.row] : -1;
        Chunk chunk{p.x, 0};
        if (pixel >= 0) chunk = {image + int64_t{pixel} * p.channels + c, left < chunk_bytes ? left : chunk_bytes};
        load_chunk(shared + walk.row * at.row + c, chunk, alignment);
    }
    cp_async_commit();
    SharedCurve::load(p.expand_curve, shared + at.curves, residual_threads);
    SharedCurve::load(p.filter_curve, shared + at.curves + SharedCurve::bytes, residual_threads);

    // In shared memory, as there are no registers left for them: which results of the expansion are of the map, in the high half of a word,
    // and in the low one, four bits a pixel, classes of the border (cpu/ops/qconv2d.h) of this thread's results of the filter.
    auto* own = reinterpret_cast<uint32_t*>(shared + at.own) + thread;
    *own = Warp(thread).of_map(seen) << 16;
    const auto expand = [&](const uint8_t* weights, int slot) {
        const Warp warp(anew(thread));
        const int32_t* init = numbers(weights, slice_init) + warp.expand_tile * tile_columns;
        const float* scale = scales(weights, slice_scale) + warp.expand_tile * tile_columns;
        const CurveSteps curve(shared + at.curves);
        const uint32_t of_map = *own;
        int32_t start[warp.parts][2], sums[warp.rounds][warp.parts][4];
        MVIT_UNROLL
        for (int j = 0; j < warp.parts; ++j) {
            MVIT_UNROLL
            for (int k = 0; k < 2; ++k) start[j][k] = init[8 * j + c_column(warp.lane, k)];
        }
        warp.expand(shared, at.row, weights + slice_bytes, at.depth, start, sums);
        MVIT_UNROLL
        for (int j = 0; j < warp.parts; ++j) {
            const int column = 8 * j + c_column(warp.lane, 0);
            const float low = scale[column], high = scale[column + 1];
            MVIT_UNROLL
            for (int i = 0; i < warp.rounds; ++i) {
                if (!warp.has(i)) continue;
                MVIT_UNROLL
                for (int half = 0; half < 2; ++half) {
                    const int32_t (&pair)[4] = sums[i][j];
                    const float x[2] = {static_cast<float>(pair[2 * half]) * low, static_cast<float>(pair[2 * half + 1]) * high};
                    const uint32_t both = curve(x);
                    const bool there = of_map >> (16 + 2 * i + half) & 1;
                    uint8_t* to = hidden(slot) + warp.expanded(i, half) * at.slice_row + warp.expand_tile * tile_columns + column;
                    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(there ? both : 0);
                }
            }
        }
    };

    // A thread has four channels of a run of a row. The four runs of a warp lie in different banks: side by side, or with stride 1 two by
    // two.
    constexpr int length = Tile::width / 4;
    struct Run {
        int quad, x, y;

        MVIT_DEVICE explicit Run(uint32_t own) : quad(static_cast<int>(own % (residual_slice / four))) {
            const int group = static_cast<int>(own / (residual_slice / four));
            x = (Tile::stride == 1 ? group % 2 + group / 4 % 2 * 2 : group % 4) * length;
            y = Tile::stride == 1 ? group / 2 % 2 + group / 8 * 2 : group / 4;
        }
    };
    const Run first_run(thread);
    const int top = (place.y + first_run.y) * Tile::stride - 1, left = (place.x + first_run.x) * Tile::stride - 1;
    MVIT_UNROLL
    for (int i = 0; i < length; ++i) {
        const int x = left + i * Tile::stride;
        const int rows = (top < 0 ? 1 : 0) + (top + 2 >= p.height ? 2 : 0), columns = (x < 0 ? 1 : 0) + (x + 2 >= p.width ? 2 : 0);
        *own |= static_cast<uint32_t>(4 * rows + columns) << (4 * i);
    }
    const auto filter = [&](const uint8_t* weights, int slot) {
        const Run run(anew(thread));
        const uint8_t* from = hidden(slot) + (Tile::place(run.y * Tile::stride, 0) + run.x) * at.slice_row + four * run.quad;
        uint32_t columns[(length - 1) * Tile::stride + 3][four];
        MVIT_UNROLL
        for (int x = 0; x < (length - 1) * Tile::stride + 3; ++x) {
            uint32_t rows[3];
            MVIT_UNROLL
            for (int ky = 0; ky < 3; ++ky) rows[ky] = *reinterpret_cast<const uint32_t*>(from + Tile::place(ky, x) * at.slice_row);
            turn(rows, columns[x]);
        }
        const auto quad_of = [&]<class T>(int row, T) {
            return *reinterpret_cast<const Quad<T>*>(numbers(weights, row) + four * run.quad);
        };
        Quad<uint32_t> taps[3];
        MVIT_UNROLL
        for (int kx = 0; kx < 3; ++kx) taps[kx] = quad_of(slice_taps + kx, uint32_t{});
        const Quad<float> scale = quad_of(slice_filter_scale, float{});
        const CurveSteps curve(shared + at.curves + SharedCurve::bytes);
        const uint32_t classes = *own;
        MVIT_UNROLL
        for (int i = 0; i < length; ++i) {
            Quad<int32_t> sums = quad_of(slice_border + static_cast<int>(classes >> (4 * i) & 15), int32_t{});
            float x[four];
            MVIT_UNROLL
            for (int c = 0; c < four; ++c) {
                MVIT_UNROLL
                for (int kx = 0; kx < 3; ++kx) sums.v[c] = dot4(columns[i * Tile::stride + kx][c], taps[kx].v[c], sums.v[c]);
                x[c] = static_cast<float>(sums.v[c]) * scale.v[c];
            }
            *reinterpret_cast<uint32_t*>(filtered(slot) + (run.y * Tile::width + run.x + i) * at.slice_row + four * run.quad) = curve(x);
        }
    };

    typename Warp::Reduced sums = {};
    slices.each(thread, expand, filter, [&](const uint8_t* weights, int slot) {
        Warp(anew(thread)).reduce(filtered(slot), weights + slice_bytes + at.expand, at.columns, sums);
    });

    // Out of the order of tensor cores, into rows.
    auto* staged = reinterpret_cast<int32_t*>(shared);
    uint8_t* const curve = shared + at.sums_bytes();
    if (p.reduce.curve) SharedCurve::load(p.reduce.curve, curve, residual_threads);
    struct alignas(8) Pair {
        int32_t v[2];
    };
    Warp(anew(thread)).each_reduced(sums, at.columns, [&](int pixel, int column, int32_t low, int32_t high) {
        *reinterpret_cast<Pair*>(staged + pixel * at.sums_stride + column) = {low, high};
    });
    block_barrier();
    const int quads = (p.columns + four - 1) / four, rows_at_once = residual_threads / quads, first = thread_index() / quads;
    if (first >= rows_at_once) return;
    const int column = thread_index() % quads * four;
    const int64_t image_row = int64_t{place.image} * place.out_height * place.out_width;
    const auto finish_pixels = [&](const auto& finish) {
        MVIT_ROLLED
        for (int pixel = first; pixel < Tile::pixels; pixel += rows_at_once) {
            const int y = place.y + pixel / Tile::width, x = place.x + pixel % Tile::width;
            if (y >= place.out_height || x >= place.out_width) continue;
            finish(*reinterpret_cast<const Quad<int32_t>*>(staged + pixel * at.sums_stride + column), y * place.out_width + x);
        }
    };
    with_finish(finish_pixels, p.reduce, p.columns, column, curve, image_row);
}

}  // namespace mvit::cuda
