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
// Where what filters, what expands and its tiles begin in a slice: first comes the bias of the filter.
inline constexpr int slice_taps = 4 * float_slice, slice_expand = slice_taps + slice_taps_bytes,
                     slice_products = slice_expand + 4 * float_slice;
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
          slice(slice_products + expand + reduce),
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
MVIT_DEVICE void inverted_residual_tile(const InvertedResidualProblem& p, const ResidualTiles<Tile>& tiles, const ResidualShared<Tile>& at,
                                        uint8_t* shared) {
    const ResidualPlace<Tile> place(tiles, p.height, p.width);
    constexpr int most_expand = depth > 0 ? slice_products - slice_expand + float_slice / tile_values * depth * tile_bytes(8) : 0;
    constexpr int most_reduce = Tile::most_columns / tile_values * (float_slice / tile_values) * tile_bytes(8);
    const ResidualSlices<most_expand, most_reduce> slices{.from = p.slices,
                                                          .stages = shared + at.stages,
                                                          .bytes = at.slice,
                                                          .count = at.slices,
                                                          .expand = slice_expand,
                                                          .reduce = slice_products + at.expand,
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
    const int map_row = depth > 0 ? depth * tile_depth + residual_gap : at.row;
    const auto chunks = static_cast<uint32_t>(p.channels) / 8;
    const auto copy = [&](uint32_t row, uint32_t chunk, const uint8_t* chunks_of_image) {
        const int pixel = chunk < chunks ? seen[row] : -1;
        const uint8_t* from = chunks_of_image + uint64_t{static_cast<uint32_t>(pixel > 0 ? pixel : 0)} * (16 * chunks);
        cp_async16(map + row * map_row + 16 * chunk, from, pixel >= 0 ? 16 : 0);
    };
    constexpr uint32_t rows = 16 * Tile::seen_blocks;
    if constexpr (depth > 0) {  // a thread has the same chunk of all rows
        constexpr uint32_t rows_at_once = residual_threads / (2 * depth);
        static_assert(residual_threads % (2 * depth) == 0);
        const uint32_t first = thread / (2 * depth), chunk = thread % (2 * depth);
        MVIT_UNROLL
        for (uint32_t i = 0; i < rows; i += rows_at_once)
            if (i + rows_at_once <= rows || first + i < rows) copy(first + i, chunk, image + 16 * chunk);
    } else {
        MVIT_ROLLED
        for (ChunkWalk walk(2 * at.depth); walk.row < rows; walk.next()) copy(walk.row, walk.chunk, image + 16 * walk.chunk);
    }
    cp_async_commit();

    auto* of_map = reinterpret_cast<uint32_t*>(shared) + thread;
    *of_map = Warp(thread).of_map(seen);
    const auto expand = [&](const uint8_t* weights, int slot, int) {
        const Warp warp(anew(thread));
        const auto* bias = reinterpret_cast<const float*>(weights + slice_expand) + warp.expand_tile * tile_values;
        float start[warp.parts][2], sums[warp.rounds][warp.parts][4];
        MVIT_UNROLL
        for (int j = 0; j < warp.parts; ++j) {
            MVIT_UNROLL
            for (int k = 0; k < 2; ++k) start[j][k] = bias[8 * j + c_column(warp.lane, k)];
        }
        warp.template expand<depth>(map, map_row, weights + slice_products, at.depth, start, sums);
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
        const Two bias = *reinterpret_cast<const Two*>(weights + 4 * warp.channel());
        warp.template each<ResidualShared<Tile>::slice_row>(
            hidden(slot), weights + slice_taps, bias.v, [&](int block, const float (&sums)[4]) {
                MVIT_UNROLL
                for (int half = 0; half < 2; ++half) {
                    const float low = silu_of_double(sums[2 * half]), high = silu_of_double(sums[2 * half + 1]);
                    uint8_t* const to = filtered(slot) + warp.pixel(block, half) * at.slice_row + 2 * warp.channel();
                    *reinterpret_cast<uint32_t*>(to) = from_floats(low, high, T{});
                }
            });
    };

    typename Warp::Reduced sums;
    Warp(thread).begin(sums, at.columns, [&](int column) { return *reinterpret_cast<const Quad<float>*>(p.bias + column); });
    slices.each(thread, expand, filter, [&](const uint8_t* weights, int slot, int) {
        Warp(anew(thread)).reduce(filtered(slot), weights + slice_products + at.expand, at.columns, sums);
    });

    // Four columns of a pixel, of each tile of columns; those of four lanes are a sector of y.
    struct alignas(8) Eight {
        uint32_t words[2];
    };
    const auto kept = *reinterpret_cast<const ResidualPlace<Tile>*>(shared + at.place);
    const int rows_left = kept.out_height - kept.y, columns_left = kept.out_width - kept.x;
    const auto pixel_bytes = static_cast<uint32_t>(2 * p.columns);
    uint8_t* const tile =
        static_cast<uint8_t*>(p.y) + ((int64_t{kept.image} * kept.out_height + kept.y) * kept.out_width + kept.x) * pixel_bytes;
    Warp(anew(thread)).each_pixel(sums, [&](int pixel, const auto& each_four) {
        const int y = pixel / Tile::width, x = pixel % Tile::width;
        if (y >= rows_left || x >= columns_left) return;
        uint8_t* const to = tile + uint64_t{static_cast<uint32_t>(y * kept.out_width + x)} * pixel_bytes;
        const uint8_t* const from = map + Tile::place(y + 1, x + 1) * map_row;
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
