// A block of ops/inverted_residual.h.
#pragma once

#include "cuda/ops/inverted_residual.h"
#include "cuda/ops/residual_tile.cuh"
#include "cuda/primitives/activation.cuh"
#include "cuda/primitives/cp_async.cuh"
#include "cuda/primitives/floats.cuh"

namespace mvit::cuda {

inline constexpr int float_slice = residual_slice<f16>, slice_floats = 11 * float_slice;
inline constexpr int tile_values = 16;  // columns, and depth, of a tile of 16-bit weights

MVIT_BOTH constexpr int value_tiles(int count) { return (count + tile_values - 1) / tile_values; }

// Where things lie in shared memory, and how large they are, in bytes. A parameter of the kernel, as constants take no registers.
template <class Tile>
struct ResidualShared {
    int lag, slices;     // what ResidualSlices calls so; of the hidden channels
    int depth, columns;  // tiles of the expansion's depth and of the reduction's columns
    int row, expand, reduce, slice;
    int hidden, filtered, stages;
    int hidden_bytes, filtered_bytes;  // of a slice; with a lag there are two of each
    int out_row, bytes;

    static constexpr int slice_row = ResidualWarp<f16, Tile>::slice_row;
    // In the beginning lies what would take registers in vain while slices go by: a word of every thread, and the place. Then the pixels of
    // x.
    static constexpr int place = residual_threads * 4, map = place + 32;
    static_assert(sizeof(ResidualPlace<Tile>) <= 32);

    ResidualShared(int channels, int hidden_channels, int out_columns, int lag_)
        : lag(lag_),
          slices((hidden_channels + float_slice - 1) / float_slice),
          depth(value_tiles(channels)),
          columns(value_tiles(out_columns)),
          row(depth * tile_depth + residual_gap),
          expand(float_slice / tile_values * depth * tile_bytes(8)),
          reduce(columns * (float_slice / tile_values) * tile_bytes(8)),
          slice(4 * slice_floats + expand + reduce),
          hidden(map + Tile::seen_blocks * 16 * row),
          filtered(hidden + (1 + lag) * Tile::seen_blocks * 16 * slice_row),
          stages(filtered + (1 + lag) * Tile::pixels * slice_row),
          hidden_bytes(Tile::seen_blocks * 16 * slice_row),
          filtered_bytes(Tile::pixels * slice_row),
          out_row(columns * tile_values * 2 + residual_gap),
          bytes(stages + 2 * slice) {
        // y on its way out lies where the slices were.
        if (bytes < hidden + Tile::pixels * out_row) bytes = hidden + Tile::pixels * out_row;
    }
};

// body<depth>() of those that kernels know, the widths of networks' first stages, whose maps are the largest: a tenth of all instructions
// less. Of others, and of tiles of which a multiprocessor has one, body<0>().
template <class Tile, class Body>
auto with_known_depth(int depth, const Body& body) {
    if constexpr (Tile::blocks > 1) {
        switch (depth) {
            case 2:
                return body.template operator()<2>();
            case 4:
                return body.template operator()<4>();
            case 8:
                return body.template operator()<8>();
        }
    }
    return body.template operator()<0>();
}

// shared: ResidualShared::bytes, aligned to 16. depth: tiles of the expansion's, if it is known.
template <class T, class Tile, int depth>
MVIT_DEVICE void inverted_residual_tile(const InvertedResidualProblem& p, const ResidualShared<Tile>& at, uint8_t* shared) {
    const ResidualPlace<Tile> place(p.height, p.width);
    const ResidualSlices slices{.from = p.slices,
                                .stages = shared + at.stages,
                                .bytes = at.slice,
                                .count = at.slices,
                                .filter_begin = 4 * float_slice,
                                .filter_end = 4 * slice_floats,
                                .reduce_at = 4 * slice_floats + at.expand,
                                .lag = at.lag,
                                .stage_count = 2};
    const uint32_t thread = anew(static_cast<uint32_t>(thread_index()));
    using Warp = ResidualWarp<T, Tile>;
    uint8_t* const map = shared + at.map;
    const auto hidden = [&](int slot) { return shared + at.hidden + slot * at.hidden_bytes; };
    const auto filtered = [&](int slot) { return shared + at.filtered + slot * at.filtered_bytes; };

    // Zeros beyond the map and the channels.
    slices.load(0);
    if (thread == 0) *reinterpret_cast<ResidualPlace<Tile>*>(shared + at.place) = place;
    auto* seen = reinterpret_cast<int32_t*>(hidden(0));
    place.find_seen(seen);
    const auto* image = static_cast<const uint8_t*>(p.x) + int64_t{place.image} * p.height * p.width * p.channels * 2;
    const auto chunks = static_cast<uint32_t>(p.channels) / 8;
    MVIT_ROLLED
    for (ChunkWalk walk(2 * at.depth); walk.row < 16 * Tile::seen_blocks; walk.next()) {
        const int pixel = walk.chunk < chunks ? seen[walk.row] : -1;
        const uint8_t* from = image + int64_t{pixel > 0 ? pixel : 0} * (2 * p.channels) + 16 * walk.chunk;
        cp_async16(map + walk.row * at.row + 16 * walk.chunk, from, pixel >= 0 ? 16 : 0);
    }
    cp_async_commit();

    auto* of_map = reinterpret_cast<uint32_t*>(shared) + thread;
    *of_map = Warp(thread).of_map(seen);
    const auto expand = [&](const uint8_t* weights, int slot, int) {
        const Warp warp(anew(thread));
        const auto* bias = reinterpret_cast<const float*>(weights) + warp.expand_tile * tile_values;
        float start[warp.parts][2], sums[warp.rounds][warp.parts][4];
        MVIT_UNROLL
        for (int j = 0; j < warp.parts; ++j) {
            MVIT_UNROLL
            for (int k = 0; k < 2; ++k) start[j][k] = bias[8 * j + c_column(warp.lane, k)];
        }
        warp.template expand<depth>(map, at.row, weights + 4 * slice_floats, at.depth, start, sums);
        const uint32_t exist = *of_map;
        MVIT_UNROLL
        for (int i = 0; i < warp.rounds; ++i) {
            if (!warp.has(i)) continue;
            MVIT_UNROLL
            for (int half = 0; half < 2; ++half) {
                const bool there = exist >> (2 * i + half) & 1;
                uint8_t* row = hidden(slot) + warp.expanded(i, half) * at.slice_row + 2 * warp.expand_tile * tile_values;
                MVIT_UNROLL
                for (int j = 0; j < warp.parts; ++j) {
                    const float low = silu_of_double(sums[i][j][2 * half]), high = silu_of_double(sums[i][j][2 * half + 1]);
                    *reinterpret_cast<uint32_t*>(row + 2 * (8 * j + c_column(warp.lane, 0))) = there ? from_floats(low, high, T{}) : 0;
                }
            }
        }
    };

    // A thread has two channels of two columns of `length` pixels: with stride 1 that reads and converts 24 pixels for 8 results, and one
    // column of 8 would 30. Columns of the two strips of a warp are four apart: so they lie in different banks.
    constexpr int length = Tile::pixels / (residual_threads / (float_slice / 2)) / 2;
    const auto filter = [&](const uint8_t* weights, int slot, int) {
        const uint32_t own = anew(thread), pair = own % (float_slice / 2), strip = own / (float_slice / 2);
        const uint32_t strip_x = strip % 2 * 4 + strip / 2 % 2 * 2 + strip / 4 * 8 % Tile::width;
        const uint32_t strip_y = strip / (Tile::width / 2) * length;
        struct alignas(8) Two {
            float v[2];
        };
        const auto* floats = reinterpret_cast<const float*>(weights) + float_slice + 2 * pair;
        const auto both = [&](int row) { return *reinterpret_cast<const Two*>(floats + row * float_slice); };
        Two taps[9];
        MVIT_UNROLL
        for (int i = 0; i < 9; ++i) taps[i] = both(i);
        const Two bias = both(9);
        const uint8_t* from = hidden(slot) + (strip_y * Tile::stride * Tile::seen_width + strip_x) * at.slice_row + 4 * pair;
        Two sums[length][2];
        MVIT_UNROLL
        for (int i = 0; i < length; ++i) sums[i][0] = sums[i][1] = bias;
        MVIT_UNROLL
        for (int row = 0; row < (length - 1) * Tile::stride + 3; ++row) {
            MVIT_UNROLL
            for (int column = 0; column < Tile::stride + 3; ++column) {
                // With stride 2, columns 2 x, 2 x + 1, .. of a row.
                const Unpacked<T> seen(*reinterpret_cast<const uint32_t*>(from + Tile::place(row, column) * at.slice_row));
                MVIT_UNROLL
                for (int ky = 0; ky < 3; ++ky) {
                    const int y = (row - ky) / Tile::stride;
                    if (row < ky || (row - ky) % Tile::stride != 0 || y >= length) continue;
                    MVIT_UNROLL
                    for (int x = 0; x < 2; ++x) {
                        const int kx = column - x * Tile::stride;
                        if (kx < 0 || kx >= 3) continue;
                        sums[y][x].v[0] = fmaf(seen.low, taps[3 * ky + kx].v[0], sums[y][x].v[0]);
                        sums[y][x].v[1] = fmaf(seen.high, taps[3 * ky + kx].v[1], sums[y][x].v[1]);
                    }
                }
            }
        }
        uint8_t* const to = filtered(slot) + (strip_y * Tile::width + strip_x) * at.slice_row + 4 * pair;
        MVIT_UNROLL
        for (int y = 0; y < length; ++y) {
            MVIT_UNROLL
            for (int x = 0; x < 2; ++x)
                *reinterpret_cast<uint32_t*>(to + (y * Tile::width + x) * at.slice_row) =
                    from_floats(silu_of_double(sums[y][x].v[0]), silu_of_double(sums[y][x].v[1]), T{});
        }
    };

    typename Warp::Reduced sums;
    Warp(thread).begin(sums, at.columns, [&](int column) { return p.bias[column]; });
    slices.each(thread, expand, filter, [&](const uint8_t* weights, int slot, int) {
        Warp(anew(thread)).reduce(filtered(slot), weights + 4 * slice_floats + at.expand, at.columns, sums);
    });

    // Out of the order of tensor cores, into rows.
    uint8_t* const out = hidden(0);
    Warp(anew(thread)).each_reduced(sums, at.columns, [&](int pixel, int column, float low, float high) {
        if (p.residual) {
            const int seen = Tile::place(pixel / Tile::width + 1, pixel % Tile::width + 1);
            const Unpacked<T> x(*reinterpret_cast<const uint32_t*>(map + seen * at.row + 2 * column));
            low += x.low, high += x.high;
        }
        *reinterpret_cast<uint32_t*>(out + pixel * at.out_row + 2 * column) = from_floats(low, high, T{});
    });
    block_barrier();
    const auto kept = *reinterpret_cast<const ResidualPlace<Tile>*>(shared + at.place);
    const int rows_left = kept.out_height - kept.y, columns_left = kept.out_width - kept.x;
    uint8_t* const tile =
        static_cast<uint8_t*>(p.y) + ((int64_t{kept.image} * kept.out_height + kept.y) * kept.out_width + kept.x) * p.columns * 2;
    MVIT_ROLLED
    for (ChunkWalk walk(p.columns / 8); walk.row < Tile::pixels; walk.next()) {
        const int y = static_cast<int>(walk.row / Tile::width), x = static_cast<int>(walk.row % Tile::width);
        if (y >= rows_left || x >= columns_left) continue;
        uint8_t* to = tile + int64_t{y * kept.out_width + x} * (2 * p.columns) + 16 * walk.chunk;
        *reinterpret_cast<Sixteen*>(to) = *reinterpret_cast<const Sixteen*>(out + walk.row * at.out_row + 16 * walk.chunk);
    }
}

}  // namespace mvit::cuda
