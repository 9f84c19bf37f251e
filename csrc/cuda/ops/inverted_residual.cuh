// A block of ops/inverted_residual.h.
#pragma once

#include "cuda/ops/inverted_residual.h"
#include "cuda/ops/residual_filter.cuh"
#include "cuda/ops/residual_tile.cuh"
#include "cuda/primitives/activation.cuh"
#include "cuda/primitives/cp_async.cuh"
#include "cuda/primitives/floats.cuh"

namespace mvit::cuda {

inline constexpr int float_slice = residual_slice<f16>;
// Where the bias of the filter, its taps and the tiles of a slice begin; first comes the bias of the expansion.
inline constexpr int slice_filter_bias = 4 * float_slice, slice_filter_taps = 2 * slice_filter_bias,
                     slice_tiles = slice_filter_taps + slice_taps_bytes;
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
    int bytes;

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
          slice(slice_tiles + expand + reduce),
          hidden(map + Tile::seen_blocks * 16 * row),
          filtered(hidden + (1 + lag) * Tile::seen_blocks * 16 * slice_row),
          stages(filtered + (1 + lag) * Tile::pixels * slice_row),
          hidden_bytes(Tile::seen_blocks * 16 * slice_row),
          filtered_bytes(Tile::pixels * slice_row),
          bytes(stages + 2 * slice) {}
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
                                .filter_begin = slice_filter_bias,
                                .filter_end = slice_tiles,
                                .reduce_at = slice_tiles + at.expand,
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
        warp.template expand<depth>(map, at.row, weights + slice_tiles, at.depth, start, sums);
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

    const auto filter = [&](const uint8_t* weights, int slot, int) {
        const ResidualFilter<T, Tile> warp(anew(thread));
        struct alignas(8) Two {
            float v[2];
        };
        const Two bias = *reinterpret_cast<const Two*>(weights + slice_filter_bias + 4 * warp.channel());
        warp.template each<ResidualShared<Tile>::slice_row>(
            hidden(slot), weights + slice_filter_taps, bias.v, [&](int block, const float (&sums)[4]) {
                MVIT_UNROLL
                for (int half = 0; half < 2; ++half) {
                    const float low = silu_of_double(sums[2 * half]), high = silu_of_double(sums[2 * half + 1]);
                    uint8_t* const to = filtered(slot) + warp.pixel(block, half) * at.slice_row + 2 * warp.channel();
                    *reinterpret_cast<uint32_t*>(to) = from_floats(low, high, T{});
                }
            });
    };

    typename Warp::Reduced sums;
    Warp(thread).begin(sums, at.columns, [&](int column) { return p.bias[column]; });
    slices.each(thread, expand, filter, [&](const uint8_t* weights, int slot, int) {
        Warp(anew(thread)).reduce(filtered(slot), weights + slice_tiles + at.expand, at.columns, sums);
    });

    // Four columns of a pixel, of each tile of columns; those of four lanes are a sector of y.
    struct alignas(8) Eight {
        uint32_t words[2];
    };
    const auto kept = *reinterpret_cast<const ResidualPlace<Tile>*>(shared + at.place);
    uint8_t* const tile =
        static_cast<uint8_t*>(p.y) + ((int64_t{kept.image} * kept.out_height + kept.y) * kept.out_width + kept.x) * p.columns * 2;
    Warp(anew(thread)).each_pixel(sums, at.columns, [&](int pixel, const auto& each_four) {
        const int y = pixel / Tile::width, x = pixel % Tile::width;
        if (y >= kept.out_height - kept.y || x >= kept.out_width - kept.x) return;
        uint8_t* const to = tile + int64_t{y * kept.out_width + x} * (2 * p.columns);
        const uint8_t* const from = map + Tile::place(y + 1, x + 1) * at.row;
        each_four([&](int column, float (&v)[4]) {
            if (column >= p.columns) return;
            if (p.residual) {
                const Eight seen = *reinterpret_cast<const Eight*>(from + 2 * column);
                MVIT_UNROLL
                for (int k = 0; k < 4; k += 2) {
                    const Unpacked<T> two(seen.words[k / 2]);
                    v[k] += two.low, v[k + 1] += two.high;
                }
            }
            *reinterpret_cast<Eight*>(to + 2 * column) = {{from_floats(v[0], v[1], T{}), from_floats(v[2], v[3], T{})}};
        });
    });
}

}  // namespace mvit::cuda
