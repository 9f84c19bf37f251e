// What the kernels of inverted residuals share (ops/inverted_residual.h, ops/qinverted_residual.h): tiles of the map, and how the warps of
// a block share both products. Values are 16-bit floats or bytes; in bytes, products of both are the same (mma_f16.cuh).
#pragma once

#include <type_traits>

#include "cuda/primitives/cp_async.cuh"
#include "cuda/primitives/divisor.h"
#include "cuda/primitives/mma_f16.cuh"
#include "cuda/primitives/mma_s8.cuh"
#include "cuda/primitives/qfragments.h"

namespace mvit::cuda {

// Hidden channels of a slice: 64 bytes of a pixel.
template <class T>
inline constexpr int residual_slice = 64 / static_cast<int>(sizeof(T));
inline constexpr int residual_threads = 256, residual_warps = residual_threads / warp_size;
inline constexpr int residual_gap = 16;  // bytes behind a row of shared memory: eight rows begin in different banks

// A tile of y and the pixels of x that it sees. blocks: on a multiprocessor at once, which says how many registers a thread may have; of
// floats, and of bytes, whose curves take more.
template <int stride_, int height_, int width_, int most_columns_, int blocks_, int blocks_of_bytes_ = blocks_>
struct ResidualTile {
    static constexpr int stride = stride_, height = height_, width = width_, most_columns = most_columns_;
    static constexpr int blocks = blocks_, blocks_of_bytes = blocks_of_bytes_;
    static constexpr int pixels = height * width;
    static constexpr int seen_height = (height - 1) * stride + 3, seen_width = (width - 1) * stride + 3, seen = seen_height * seen_width;
    static constexpr int seen_blocks = (seen + 15) / 16;  // of 16 rows of a product

    // How warps share the reduction: each has two blocks of rows and every reduce_step-th tile of columns.
    static constexpr int reduce_warps = pixels / 32, reduce_step = residual_warps / reduce_warps;
    static constexpr int reduce_rounds = most_columns / tile_columns / reduce_step;

    // Seen pixels lie row by row; with stride 2, of each row first those of even columns, so that neighbours of y see neighbours.
    MVIT_BOTH static constexpr int place(int y, int x) {
        return y * seen_width + (stride == 1 ? x : x / 2 + x % 2 * ((seen_width + 1) / 2));
    }
    MVIT_BOTH static constexpr int seen_row(int place) { return static_cast<int>(static_cast<uint32_t>(place) / seen_width); }
    MVIT_BOTH static constexpr int seen_column(int place) {
        const int x = static_cast<int>(static_cast<uint32_t>(place) % seen_width), even = (seen_width + 1) / 2;
        return stride == 1 ? x : x < even ? 2 * x : 2 * (x - even) + 1;
    }
};

// The tiles that a map x is cut into, of one pixel and more. A parameter of the kernel: divisions are the host's.
template <class Tile>
struct ResidualTiles {
    Digit across, down;

    ResidualTiles(int height, int width)
        : across(static_cast<uint32_t>(((width - 1) / Tile::stride + Tile::width) / Tile::width)),
          down(static_cast<uint32_t>(((height - 1) / Tile::stride + Tile::height) / Tile::height)) {}
    int64_t count() const { return across.count() * down.count(); }  // of an image
};

// Which tile of y a block makes.
template <class Tile>
struct ResidualPlace {
    int image, out_height, out_width, y, x;

    // Of a map x of that size.
    MVIT_DEVICE ResidualPlace(const ResidualTiles<Tile>& tiles, int height, int width)
        : out_height((height - 1) / Tile::stride + 1), out_width((width - 1) / Tile::stride + 1), height_(height), width_(width) {
        auto block = static_cast<uint32_t>(block_x());
        x = static_cast<int>(tiles.across.take(block)) * Tile::width;
        y = static_cast<int>(tiles.down.take(block)) * Tile::height;
        image = static_cast<int>(block);
    }

    // Which pixel of x every pixel is that the tile sees, or -1; by all threads, and with a barrier. seen: 16 * Tile::seen_blocks words.
    MVIT_DEVICE void find_seen(int32_t* seen) const {
        MVIT_ROLLED
        for (int i = thread_index(); i < 16 * Tile::seen_blocks; i += residual_threads) {
            const int row = y * Tile::stride - 1 + Tile::seen_row(i), column = x * Tile::stride - 1 + Tile::seen_column(i);
            const bool there = i < Tile::seen && row >= 0 && row < height_ && column >= 0 && column < width_;
            seen[i] = there ? row * width_ + column : -1;
        }
        block_barrier();
    }

  private:
    int height_, width_;
};

// The threads of a block, side by side, on rows of `chunks` chunks: a division in the beginning, and none on the way. Not negative, so
// that divisions of rows by powers of two are shifts.
struct ChunkWalk {
    uint32_t chunks, row, chunk;

    MVIT_DEVICE explicit ChunkWalk(int chunks_)
        : chunks(static_cast<uint32_t>(chunks_)),
          row(static_cast<uint32_t>(thread_index()) / chunks),
          chunk(static_cast<uint32_t>(thread_index()) % chunks),
          rows_on_(residual_threads / chunks),
          chunks_on_(residual_threads % chunks) {}
    MVIT_DEVICE void next() {
        row += rows_on_, chunk += chunks_on_;
        if (chunk >= chunks) chunk -= chunks, ++row;
    }

  private:
    uint32_t rows_on_, chunks_on_;
};

// A warp's part of the products. T: uint8_t, f16 or bf16.
template <class T, class Tile>
struct ResidualWarp {
    using Sum = std::conditional_t<sizeof(T) == 1, int32_t, float>;
    // How warps share the expansion: each has one or two tiles of columns and every expand_warps-th block of rows. Two tiles: rows are read
    // half as often, but fewer blocks are to share, and registers must hold twice as many sums beside those of the reduction. More than
    // three blocks come in turns.
    static constexpr bool has_room = Tile::blocks_of_bytes == 1 || Tile::reduce_rounds <= 2;
    static constexpr int expand_tiles = sizeof(T) == 1 ? (has_room ? 2 : 1) : Tile::stride,
                         parts = 2 * expand_tiles;  // parts: of 8 columns
    static constexpr int expand_step = residual_slice<T> / tile_columns / expand_tiles, expand_warps = residual_warps / expand_step;
    static constexpr int all_rounds = (Tile::seen_blocks + expand_warps - 1) / expand_warps;
    static constexpr int rounds = all_rounds < 3 ? all_rounds : 3, turns = (all_rounds + rounds - 1) / rounds;
    static constexpr int least = Tile::seen_blocks / expand_warps - (turns - 1) * rounds;  // rounds that each warp has in the last turn
    static_assert(Tile::seen_blocks % expand_warps == 0 || least + 2 >= rounds);           // `expand` tries rounds, rounds - 1 and least
    static constexpr int slice_tiles = residual_slice<T> * static_cast<int>(sizeof(T)) / tile_depth;
    static constexpr int slice_row = slice_tiles * tile_depth + residual_gap;  // bytes of a pixel of a slice

    int lane, expand_block, expand_tile, reduce_row, reduce_tile;

    MVIT_DEVICE explicit ResidualWarp(uint32_t thread)
        : lane(static_cast<int>(thread % warp_size)),
          expand_block(static_cast<int>(thread / warp_size / expand_step)),
          expand_tile(static_cast<int>(thread / warp_size % expand_step) * expand_tiles),
          reduce_row(static_cast<int>(thread / warp_size % Tile::reduce_warps * 32)),
          reduce_tile(static_cast<int>(thread / warp_size / Tile::reduce_warps)) {}

    // The first row of a round of the expansion, of all_rounds, and whether there is one.
    MVIT_DEVICE int first(int round) const { return 16 * (expand_block + round * expand_warps); }
    MVIT_DEVICE bool has(int round) const {
        return (round + 1) * expand_warps <= Tile::seen_blocks || first(round) < 16 * Tile::seen_blocks;
    }
    // Whether a turn has a round.
    MVIT_DEVICE bool has(int turn, int round) const { return round < least || has(turn * rounds + round); }
    MVIT_DEVICE int expanded(int round, int half) const { return first(round) + c_row(lane, 2 * half); }

    // Which rows of this thread's results of the expansion are pixels of the map: bit 2 round + half.
    MVIT_DEVICE uint32_t of_map(const int32_t* seen) const {
        uint32_t bits = 0;
        MVIT_UNROLL
        for (int i = 0; i < 2 * all_rounds; ++i)
            if (has(i / 2) && seen[expanded(i / 2, i % 2)] >= 0) bits |= uint32_t{1} << i;
        return bits;
    }

    // sums = what they begin with, of every row, plus pixels of x, `row` bytes apart, times the tiles of a slice, of each column `depth`;
    // of the rounds of a turn. known: the depth, if it is; then nothing is a loop, around which the compiler would move half of the sums.
    template <int known = 0>
    MVIT_DEVICE void expand(const uint8_t* x, int row, const uint8_t* tiles, int depth, const Sum (&start)[parts][2],
                            Sum (&sums)[rounds][parts][4], int turn = 0) const {
        tiles += expand_tile * depth * tile_bytes(8) + 16 * lane;
        x += (first(turn * rounds) + ldmatrix_row(lane)) * row + 16 * ldmatrix_chunk(lane);
        Sum first_sums[parts][4];
        MVIT_UNROLL
        for (int j = 0; j < parts; ++j) {
            MVIT_UNROLL
            for (int k = 0; k < 4; ++k) first_sums[j][k] = start[j][k % 2];
        }
        // Apart, so that there is no branch on the way.
        if (has(turn, rounds - 1)) {
            expand_rounds<rounds, known>(x, row, tiles, depth, first_sums, sums);
        } else if (has(turn, rounds - 2)) {
            expand_rounds<rounds - 1, known>(x, row, tiles, depth, first_sums, sums);
        } else {
            expand_rounds<least, known>(x, row, tiles, depth, first_sums, sums);
        }
    }

    // sums += pixels of a filtered slice times its tiles of `columns` times 16 columns.
    using Reduced = Sum[2][Tile::reduce_rounds][2][4];
    MVIT_DEVICE void reduce(const uint8_t* filtered, const uint8_t* tiles, int columns, Reduced& sums) const {
        MVIT_UNROLL
        for (int k = 0; k < slice_tiles; ++k) {
            uint32_t a[2][4];
            MVIT_UNROLL
            for (int i = 0; i < 2; ++i)
                ldmatrix_x4(a[i],
                            filtered + (reduce_row + 16 * i + ldmatrix_row(lane)) * slice_row + k * tile_depth + 16 * ldmatrix_chunk(lane));
            MVIT_UNROLL
            for (int j = 0; j < Tile::reduce_rounds; ++j) {
                const int tile = reduce_tile + j * Tile::reduce_step;
                if (tile >= columns) continue;
                const Sixteen b = *reinterpret_cast<const Sixteen*>(tiles + (slice_tiles * tile + k) * tile_bytes(8) + 16 * lane);
                MVIT_UNROLL
                for (int i = 0; i < 2; ++i) {
                    mma(sums[i][j][0], a[i], b.words[0], b.words[1], T{});
                    mma(sums[i][j][1], a[i], b.words[2], b.words[3], T{});
                }
            }
        }
    }

    // The first of the four columns that this lane has of a tile of the reduction, of its rounds.
    MVIT_DEVICE int column(int round) const { return tile_columns * (reduce_tile + round * Tile::reduce_step) + 4 * (lane % 4); }

    // What the sums begin with: `first(column)`, of four columns, in every row.
    template <class First>
    MVIT_DEVICE void begin(Reduced& sums, int columns, const First& first) const {
        MVIT_UNROLL
        for (int j = 0; j < Tile::reduce_rounds; ++j) {
            const Quad<Sum> start = reduce_tile + j * Tile::reduce_step < columns ? first(column(j)) : Quad<Sum>{};
            MVIT_UNROLL
            for (int k = 0; k < 4; ++k) {
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i) sums[i / 2][j][k / 2][i % 2 * 2 + k % 2] = start.v[k];
            }
        }
    }

    // body(pixel, each_four) of this lane's pixels; each_four(body) calls body(column, sums of it and the next three), of columns that are
    // not there, too.
    template <class Body>
    MVIT_DEVICE void each_pixel(const Reduced& sums, const Body& body) const {
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            MVIT_UNROLL
            for (int half = 0; half < 4; half += 2) {
                body(reduce_row + 16 * i + c_row(lane, half), [&](const auto& each) {
                    MVIT_UNROLL
                    for (int j = 0; j < Tile::reduce_rounds; ++j) {
                        Sum four_sums[4];
                        MVIT_UNROLL
                        for (int k = 0; k < 4; ++k) four_sums[k] = sums[i][j][k / 2][half + k % 2];
                        each(column(j), four_sums);
                    }
                });
            }
        }
    }

  private:
    // x, tiles: of this lane. start: of all rows.
    template <int count, int known>
    MVIT_DEVICE void expand_rounds(const uint8_t* x, int row, const uint8_t* tiles, int depth, const Sum (&start)[parts][4],
                                   Sum (&sums)[rounds][parts][4]) const {
        const auto step = [&](int k, bool is_first = false) {
            Sixteen b[expand_tiles];
            MVIT_UNROLL
            for (int j = 0; j < expand_tiles; ++j) b[j] = *reinterpret_cast<const Sixteen*>(tiles + (j * depth + k) * tile_bytes(8));
            MVIT_UNROLL
            for (int i = 0; i < count; ++i) {
                uint32_t a[4];
                ldmatrix_x4(a, x + i * 16 * expand_warps * row + k * tile_depth);
                MVIT_UNROLL
                for (int j = 0; j < parts; ++j) {
                    const uint32_t low = b[j / 2].words[j % 2 * 2], high = b[j / 2].words[j % 2 * 2 + 1];
                    if (is_first) {
                        mma(sums[i][j], a, low, high, start[j], T{});
                    } else {
                        mma(sums[i][j], a, low, high, T{});
                    }
                }
            }
        };
        // Two at a time, but where curves leave no registers.
        step(0, true);
        int k = 1;
        if constexpr (known > 0) {
            MVIT_UNROLL
            for (int i = 1; i < known; ++i) step(i);
        } else if constexpr (sizeof(T) == 1 && parts > 2) {
            MVIT_ROLLED
            for (; k < depth; ++k) step(k);
        } else {
            MVIT_ROLLED
            for (; k + 1 < depth; k += 2) step(k), step(k + 1);
            if (k < depth) step(k);
        }
    }
};

// The weights of a block on their way, and the order of its work. What filters a slice comes first, then what expands it, then what reduces
// it. Slices go through their parts in steps, which a barrier begins; `lag` says how far parts are apart:
//
//     lag 1    step s: expand(s) | filter(s - 1) | reduce(s - 2)                  none needs what another one writes in this step
//     lag 0    step s: expand(s) | reduce(s - 1), a barrier, filter(s)            for what has no room for two of each slice
//
// With lag 1 there are two places for what expand and filter write, of even and of odd slices. Half of the warps of each scheduler (the
// hardware has warp w % 4) filter first: so one multiplies on tensor cores while another one multiplies and adds.
//
// Why these barriers are enough, for every place and both lags; slot(s) is the place of slice s, the same one of all slices with lag 0.
//
//   hidden      lag 1: expand(s) writes slot(s) in step s, filter(s) reads it in step s + 1, expand(s + 2) writes it in step s + 2.
//               lag 0: expand(s) writes it, filter(s) reads it behind the barrier within step s, expand(s + 1) writes in step s + 1.
//   filtered    lag 1: filter(s) writes slot(s) in step s + 1, reduce(s) reads it in step s + 2, filter(s + 2) writes it in step s + 3.
//               lag 0: filter(s) writes it in step s, reduce(s) reads it in step s + 1, filter(s + 1) writes behind its inner barrier.
//   stages      step s loads what step s + 1 needs, into the stage that step s - 1 read. Each thread waits for its own copies before the
//               barrier that begins step s + 1, and so all see those of all.
//   one stage   with lag 0 alone. In the beginning of step s come numbers of the filter, which filter(s - 1) has read in step s - 1 and
//               filter(s) reads behind the inner barrier, before which each thread waits for them. Behind it comes the rest of what step
//               s + 1 needs: expand(s) and reduce(s - 1) have read theirs.
//
// Between any two of these, in this order, lies a barrier. A last one is for those who write where the slices were.
//
// most_expand, most_reduce: how many bytes there are at most, if that is known; then copies are no loops.
template <int most_expand = 0, int most_reduce = 0>
struct ResidualSlices {
    const uint8_t* from;
    uint8_t* stages;
    int bytes, count;    // of a slice; slices: all of them within 2^31 bytes
    int expand, reduce;  // where what expands and what reduces begins in a slice
    int lag, stage_count;

    // What a step needs: of each part those of its slice; where there is none, of the nearest one, as that is less than a branch each time.
    MVIT_DEVICE void load(int step) const { load_filter(step), load_products(step); }

    // With the weights, the slot and the number of each slice: expand, filter and reduce. What the first step needs is on its way.
    template <class Expand, class Filter, class Reduce>
    MVIT_DEVICE void each(uint32_t thread, const Expand& expand, const Filter& filter, const Reduce& reduce) const {
        int step = 0;
        do {
            cp_async_wait<0>();
            block_barrier();
            if (step < count + lag) stage_count == 2 ? load(step + 1) : load_filter(step);
            cp_async_commit();
            MVIT_ROLLED
            for (int part = 0; part < 2; ++part) {
                const bool filters_first = lag > 0 && anew(thread) >= residual_threads / 2;
                if (part == (filters_first ? 0 : 1)) {
                    const int slice = step - lag;
                    if (slice >= 0 && slice < count) filter(stage(step), slot(slice), slice);
                } else {
                    if (step < count) expand(stage(step), slot(step), step);
                    if (step > lag) reduce(stage(step), slot(step - lag - 1), step - lag - 1);
                    if (lag > 0) continue;
                    if (stage_count == 1) cp_async_wait<0>();
                    block_barrier();
                    if (stage_count == 1 && step < count) {
                        load_products(step + 1);
                        cp_async_commit();
                    }
                }
            }
        } while (++step <= count + lag);
        cp_async_wait<0>();
        block_barrier();
    }

  private:
    MVIT_DEVICE void load_filter(int step) const { copy<at_once>(step, step - lag, 0, expand); }
    MVIT_DEVICE void load_products(int step) const {
        copy<most_expand>(step, step, expand, reduce);
        copy<most_reduce>(step, step - lag - 1, reduce, bytes);
    }
    // Bytes begin .. end - 1 of a slice to where a step looks for them.
    template <int most>
    MVIT_DEVICE void copy(int step, int slice, int begin, int end) const {
        int at = begin + 16 * thread_index();
        uint8_t* to = stage(step) + at;
        const uint8_t* source = from + static_cast<uint32_t>(offset(slice) + at);
        if constexpr (most > 0) {
            copy_known<0, most>(to, source, end - at);
        } else {
            MVIT_ROLLED
            for (; at < end; at += at_once, to += at_once, source += at_once) cp_async16(to, source, 16);
        }
    }
    static constexpr int at_once = 16 * residual_threads;
    template <int at, int most>
    MVIT_DEVICE void copy_known(uint8_t* to, const uint8_t* source, int left) const {
        cp_async16_where<at>(to, source, at < left);
        if constexpr (at + at_once < most) copy_known<at + at_once, most>(to, source, left);
    }
    MVIT_DEVICE int offset(int slice) const {
        slice = slice < count ? slice : count - 1;
        return (slice < 0 ? 0 : slice) * bytes;
    }
    MVIT_DEVICE uint8_t* stage(int step) const { return stages + (step & (stage_count - 1)) * bytes; }
    MVIT_DEVICE int slot(int slice) const { return slice & lag; }
};

using ResidualTile1 = ResidualTile<1, 8, 16, 64, 3, 2>;
using ResidualTile1Wide = ResidualTile<1, 8, 16, 128, 2>;
using ResidualTile2 = ResidualTile<2, 8, 8, 128, 2>;
using ResidualTile2Wide = ResidualTile<2, 8, 8, 256, 1>;

// body<Tile>(): the least tile that has so many columns; not at all where none has.
template <class Body>
void with_residual_tile(int columns, int stride, const Body& body) {
    const auto first = [&]<class Tile, class Wide>() {
        if (columns <= Tile::most_columns) {
            body.template operator()<Tile>();
        } else if (columns <= Wide::most_columns) {
            body.template operator()<Wide>();
        }
    };
    stride == 1 ? first.template operator()<ResidualTile1, ResidualTile1Wide>()
                : first.template operator()<ResidualTile2, ResidualTile2Wide>();
}

}  // namespace mvit::cuda
