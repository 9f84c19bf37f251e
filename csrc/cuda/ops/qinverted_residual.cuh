// A block of ops/qinverted_residual.h.
#pragma once

#include "cuda/ops/qdepthwise_conv2d.cuh"
#include "cuda/ops/qinverted_residual.h"
#include "cuda/ops/qproduct.cuh"
#include "cuda/ops/residual_tile.cuh"
#include "cuda/primitives/shared.cuh"

namespace mvit::cuda {

inline constexpr int byte_slice = residual_slice<uint8_t>;

// Rows of the numbers of a slice.
enum QSliceRow { qslice_taps = 0, slice_filter_init = 3, slice_filter_scale = 4, slice_init = 5, slice_scale = 6, slice_rows = 7 };
inline constexpr int slice_bytes = slice_rows * byte_slice * 4;

// Where things lie in shared memory, and how large they are, in bytes. A parameter of the kernel, as constants take no registers.
template <class Tile>
struct QResidualShared {
    int lag, stage_count, slices;  // what ResidualSlices calls so; of the hidden channels
    int depth, columns;            // tiles of the expansion's depth and of the reduction's columns
    int row, expand, reduce, slice;
    int hidden, filtered, stages, curves, own;
    int hidden_bytes, filtered_bytes;  // of a slice; with a lag there are two of each
    int sums_stride, bytes;            // the stride in words: two rows that a quarter of a warp writes at once do not meet

    static constexpr int slice_row = ResidualWarp<uint8_t, Tile>::slice_row;
    // Behind a word of every thread; both would take registers in vain while slices go by.
    static constexpr int place = residual_threads * 4, own_bytes = place + 32;
    static_assert(sizeof(ResidualPlace<Tile>) <= 32);

    MVIT_BOTH int sums_bytes() const { return Tile::pixels * sums_stride * 4; }

    QResidualShared(int channels, int hidden_channels, int out_columns, int lag_, int stage_count_)
        : lag(lag_),
          stage_count(stage_count_),
          slices((hidden_channels + byte_slice - 1) / byte_slice),
          depth((channels + tile_depth - 1) / tile_depth),
          columns((out_columns + tile_columns - 1) / tile_columns),
          row(depth * tile_depth + residual_gap),
          expand(byte_slice / tile_columns * depth * tile_bytes(8)),
          reduce(columns * (byte_slice / tile_depth) * tile_bytes(8)),
          slice(slice_bytes + expand + reduce),
          hidden(Tile::seen_blocks * 16 * row),
          filtered(hidden + (1 + lag) * Tile::seen_blocks * 16 * slice_row),
          stages(filtered + (1 + lag) * Tile::pixels * slice_row),
          curves(stages + stage_count * slice),
          own(curves + 2 * SharedCurve::bytes),
          hidden_bytes(Tile::seen_blocks * 16 * slice_row),
          filtered_bytes(Tile::pixels * slice_row),
          sums_stride((columns | 1) * tile_columns),
          bytes(own + own_bytes) {
        // In the end there is nothing else but the curve of the last layer, in front of the place.
        const int end = sums_bytes() + SharedCurve::bytes;
        if (own + place < end) own = end - place, bytes = own + own_bytes;
    }
};

// Four rows of four channels to the four rows of each channel.
MVIT_DEVICE void turn_four(const uint32_t (&rows)[4], uint32_t (&columns)[four]) {
    uint32_t low[2], high[2];  // of channels 0 and 1, of 2 and 3: two rows of the one, two of the other
    MVIT_UNROLL
    for (int i = 0; i < 2; ++i)
        low[i] = permute(rows[2 * i], rows[2 * i + 1], 0x5140), high[i] = permute(rows[2 * i], rows[2 * i + 1], 0x7362);
    columns[0] = permute(low[0], low[1], 0x5410), columns[1] = permute(low[0], low[1], 0x7632);
    columns[2] = permute(high[0], high[1], 0x5410), columns[3] = permute(high[0], high[1], 0x7632);
}

// shared: QResidualShared::bytes, aligned to 16. alignment: of the pixels of x.
template <class Tile>
MVIT_DEVICE void qinverted_residual_tile(const QInvertedResidualProblem& p, const ResidualTiles<Tile>& tiles,
                                         const QResidualShared<Tile>& at, int alignment, uint8_t* shared) {
    const ResidualPlace<Tile> place(tiles, p.height, p.width);
    constexpr int most_reduce = Tile::most_columns / tile_columns * (byte_slice / tile_depth) * tile_bytes(8);
    const ResidualSlices<0, most_reduce> slices{.from = p.slices,
                                                .stages = shared + at.stages,
                                                .bytes = at.slice,
                                                .count = at.slices,
                                                .expand = slice_init * byte_slice * 4,
                                                .reduce = slice_bytes + at.expand,
                                                .lag = at.lag,
                                                .stage_count = at.stage_count};
    const uint32_t thread = anew(static_cast<uint32_t>(thread_index()));
    using Warp = ResidualWarp<uint8_t, Tile>;
    const auto hidden = [&](int slot) { return shared + at.hidden + slot * at.hidden_bytes; };
    const auto filtered = [&](int slot) { return shared + at.filtered + slot * at.filtered_bytes; };
    const auto quad_of = []<class T>(const uint8_t* weights, int row, int channel, T) {
        return *reinterpret_cast<const Quad<T>*>(weights + (row * byte_slice + channel) * 4);
    };

    // Zeros beyond the map and the channels.
    slices.load(0);
    auto* seen = reinterpret_cast<int32_t*>(filtered(0));
    static_assert(Tile::seen_blocks * 16 * 4 <= Tile::pixels * Warp::slice_row);
    if (thread == 0) *reinterpret_cast<ResidualPlace<Tile>*>(shared + at.own + at.place) = place;
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

    // Which results of the expansion are of the map: in shared memory, as there are no registers left for them. The others are the
    // zero-point of the hidden map in every slice, and are written here, once.
    auto* of_map = reinterpret_cast<uint32_t*>(shared + at.own) + thread;
    *of_map = Warp(thread).of_map(seen);
    {
        const Warp warp(thread);
        MVIT_UNROLL
        for (int i = 0; i < 2 * warp.all_rounds; ++i) {
            if (!warp.has(i / 2) || *of_map >> i & 1) continue;
            MVIT_UNROLL
            for (int j = 0; j < warp.expand_tiles; ++j) {
                const int at_row =
                    warp.expanded(i / 2, i % 2) * at.slice_row + (warp.expand_tile + j) * tile_columns + four * (warp.lane % 4);
                MVIT_ROLLED
                for (int slot = 0; slot <= at.lag; ++slot) *reinterpret_cast<uint32_t*>(hidden(slot) + at_row) = p.padding;
            }
        }
    }

    // A lane has, of each tile of 16 columns, channels 4 t .. 4 t + 3: its columns 2 t, 2 t + 1 of both products of eight
    // (ops/qinverted_residual.h).
    const auto expand = [&](const uint8_t* weights, int slot, int slice) {
        const Warp warp(anew(thread));
        if (slice * byte_slice + warp.expand_tile * tile_columns >= p.hidden) return;
        const int channel = warp.expand_tile * tile_columns + four * (warp.lane % 4);
        MVIT_ROLLED
        for (int turn = 0; turn < warp.turns; ++turn) {
            int32_t start[warp.parts][2], sums[warp.rounds][warp.parts][4];
            MVIT_UNROLL
            for (int j = 0; j < warp.expand_tiles; ++j) {
                const Quad<int32_t> init = quad_of(weights, slice_init, channel + j * tile_columns, int32_t{});
                MVIT_UNROLL
                for (int k = 0; k < four; ++k) start[2 * j + k / 2][k % 2] = init.v[k];
            }
            const int begin = turn * warp.rounds;
            warp.expand(shared, at.row, weights + slice_bytes, at.depth, start, sums, turn);
            const CurveSteps curve(shared + at.curves);
            const uint32_t there = *of_map >> (2 * begin);
            uint8_t* const to = hidden(slot) + warp.expanded(begin, 0) * at.slice_row + channel;
            MVIT_UNROLL
            for (int j = 0; j < warp.expand_tiles; ++j) {
                const Quad<float> scale = quad_of(weights, slice_scale, channel + j * tile_columns, float{});
                MVIT_UNROLL
                for (int i = 0; i < 2 * warp.rounds; ++i) {
                    if (!warp.has(turn, i / 2)) continue;
                    float x[four];
                    MVIT_UNROLL
                    for (int k = 0; k < four; ++k) x[k] = static_cast<float>(sums[i / 2][2 * j + k / 2][i % 2 * 2 + k % 2]) * scale.v[k];
                    store_shared(curve(x), to + (i / 2 * 16 * warp.expand_warps + i % 2 * 8) * at.slice_row + j * tile_columns,
                                 there & uint32_t{1} << i);
                }
            }
        }
    };

    // A thread has four channels of four pixels of a row, with stride 1 of two rows: so four rows of the hidden map, turned, are both. Runs
    // of the two halves of a warp are four pixels apart: so they lie in different banks.
    constexpr int length = 4, lines = Tile::pixels / (residual_threads / (byte_slice / four)) / length;
    static_assert(lines == (Tile::stride == 1 ? 2 : 1));
    const auto filter = [&](const uint8_t* weights, int slot, int slice) {
        const uint32_t own = anew(thread), runs = Tile::width / length;
        const int channel = static_cast<int>(own % (byte_slice / four)) * four, group = static_cast<int>(own / (byte_slice / four));
        if (slice * byte_slice + channel >= p.hidden) return;
        const int y = group / runs * lines, x = group % runs * length;
        const uint8_t* from = hidden(slot) + (Tile::place(y * Tile::stride, 0) + x) * at.slice_row + channel;
        uint32_t columns[(length - 1) * Tile::stride + 3][four];
        MVIT_UNROLL
        for (int i = 0; i < (length - 1) * Tile::stride + 3; ++i) {
            uint32_t rows[lines + 2];
            MVIT_UNROLL
            for (int ky = 0; ky < lines + 2; ++ky) rows[ky] = *reinterpret_cast<const uint32_t*>(from + Tile::place(ky, i) * at.slice_row);
            if constexpr (lines == 2) {
                turn_four(rows, columns[i]);
            } else {
                turn(rows, columns[i]);
            }
        }
        Quad<uint32_t> taps[3];
        MVIT_UNROLL
        for (int kx = 0; kx < 3; ++kx) taps[kx] = quad_of(weights, qslice_taps + kx, channel, uint32_t{});
        const Quad<int32_t> init = quad_of(weights, slice_filter_init, channel, int32_t{});
        const Quad<float> scale = quad_of(weights, slice_filter_scale, channel, float{});
        const CurveSteps curve(shared + at.curves + SharedCurve::bytes);
        uint8_t* const to = filtered(slot) + (y * Tile::width + x) * at.slice_row + channel;
        MVIT_UNROLL
        for (int line = 0; line < lines; ++line) {
            if (line > 0) {  // a row further down
                MVIT_UNROLL
                for (int i = 0; i < 3 * four; ++i) taps[i / four].v[i % four] <<= 8;
            }
            MVIT_UNROLL
            for (int i = 0; i < length; ++i) {
                Quad<int32_t> sums = init;
                float scaled[four];
                MVIT_UNROLL
                for (int c = 0; c < four; ++c) {
                    MVIT_UNROLL
                    for (int kx = 0; kx < 3; ++kx) sums.v[c] = dot4(columns[i * Tile::stride + kx][c], taps[kx].v[c], sums.v[c]);
                    scaled[c] = static_cast<float>(sums.v[c]) * scale.v[c];
                }
                *reinterpret_cast<uint32_t*>(to + (line * Tile::width + i) * at.slice_row) = curve(scaled);
            }
        }
    };

    typename Warp::Reduced sums = {};
    slices.each(thread, expand, filter, [&](const uint8_t* weights, int slot, int) {
        Warp(anew(thread)).reduce(filtered(slot), weights + slice_bytes + at.expand, at.columns, sums);
    });

    // Out of the order of tensor cores, into rows.
    auto* staged = reinterpret_cast<int32_t*>(shared);
    uint8_t* const curve = shared + at.sums_bytes();
    if (p.reduce.curve) SharedCurve::load(p.reduce.curve, curve, residual_threads);
    Warp(anew(thread)).each_pixel(sums, [&](int pixel, const auto& each_four) {
        each_four([&](int column, const int32_t (&v)[4]) {
            if (column >= at.columns * tile_columns) return;
            *reinterpret_cast<Quad<int32_t>*>(staged + pixel * at.sums_stride + column) = {{v[0], v[1], v[2], v[3]}};
        });
    });
    block_barrier();
    const int quads = (p.columns + four - 1) / four, rows_at_once = residual_threads / quads, first = thread_index() / quads;
    if (first >= rows_at_once) return;
    const int column = thread_index() % quads * four;
    const auto kept = *reinterpret_cast<const ResidualPlace<Tile>*>(shared + at.own + at.place);
    const int64_t image_row = int64_t{kept.image} * kept.out_height * kept.out_width;
    const auto finish_pixels = [&](const auto& finish) {
        MVIT_ROLLED
        for (int pixel = first; pixel < Tile::pixels; pixel += rows_at_once) {
            const int y = kept.y + pixel / Tile::width, x = kept.x + pixel % Tile::width;
            if (y >= kept.out_height || x >= kept.out_width) continue;
            finish(*reinterpret_cast<const Quad<int32_t>*>(staged + pixel * at.sums_stride + column), y * kept.out_width + x);
        }
    };
    with_finish(finish_pixels, p.reduce, p.columns, column, curve, image_row);
}

}  // namespace mvit::cuda
