// A block of ops/inverted_residual.h.
#pragma once

#include "cuda/ops/inverted_residual.h"
#include "cuda/primitives/activation.cuh"
#include "cuda/primitives/cp_async.cuh"
#include "cuda/primitives/floats.cuh"
#include "cuda/primitives/mma_f16.cuh"
#include "cuda/primitives/mma_s8.cuh"
#include "cuda/primitives/qfragments.h"

namespace mvit::cuda {

inline constexpr int residual_threads = 256, residual_warps = residual_threads / warp_size;
inline constexpr int residual_gap = 16;  // bytes behind a row of shared memory
inline constexpr int slice_row_bytes = 2 * residual_slice + residual_gap;
inline constexpr int slice_floats = 11 * residual_slice;
inline constexpr int tile_values = 16;  // columns, and depth, of a tile of 16-bit weights

MVIT_BOTH constexpr int value_tiles(int count) { return (count + tile_values - 1) / tile_values; }

// A tile of y and the pixels of x that it sees. blocks: on a multiprocessor at once, which says how many registers a thread may have.
template <int stride_, int height_, int width_, int most_columns_, int blocks_>
struct ResidualTile {
    static constexpr int stride = stride_, height = height_, width = width_, most_columns = most_columns_, blocks = blocks_;
    static constexpr int pixels = height * width;
    static constexpr int seen_height = (height - 1) * stride + 3, seen_width = (width - 1) * stride + 3, seen = seen_height * seen_width;
    static constexpr int seen_blocks = (seen + 15) / 16;  // of 16 rows of a product

    // How warps share a product: of the expansion each has one or both tiles of columns and every expand_warps-th block of rows, of the
    // reduction two blocks of rows and every reduce_step-th tile of columns. Both tiles: rows are read once, but fewer blocks are to share.
    static constexpr int expand_tiles = stride, expand_step = residual_slice / tile_values / expand_tiles;
    static constexpr int expand_warps = residual_warps / expand_step, expand_rounds = (seen_blocks + expand_warps - 1) / expand_warps;
    static constexpr bool expand_evenly = seen_blocks % expand_warps == 0;
    static constexpr int reduce_warps = pixels / 32, reduce_step = residual_warps / reduce_warps;
    static constexpr int reduce_rounds = most_columns / tile_values / reduce_step;

    // Of the filter, a thread has two channels and `strip` pixels of a column.
    static constexpr int strips = residual_threads / (residual_slice / 2), strip = pixels / strips;

    // Seen pixels lie row by row; with stride 2, of each row first those of even columns, so that neighbours of y see neighbours.
    MVIT_BOTH static constexpr int place(int y, int x) {
        return y * seen_width + (stride == 1 ? x : x / 2 + x % 2 * ((seen_width + 1) / 2));
    }
    MVIT_BOTH static constexpr int seen_row(int place) { return place / seen_width; }
    MVIT_BOTH static constexpr int seen_column(int place) {
        const int x = place % seen_width, even = (seen_width + 1) / 2;
        return stride == 1 ? x : x < even ? 2 * x : 2 * (x - even) + 1;
    }
};

// Where things lie in shared memory, and how large they are, in bytes.
template <class Tile>
struct ResidualShared {
    int depth, columns;  // tiles of the expansion's depth and of the reduction's columns
    int row, expand, reduce, slice;
    int hidden, filtered, stages;
    int out_row, bytes;

    MVIT_BOTH ResidualShared(int channels, int out_columns)
        : depth(value_tiles(channels)),
          columns(value_tiles(out_columns)),
          row(depth * tile_depth + residual_gap),
          expand(residual_slice / tile_values * depth * tile_bytes(8)),
          reduce(columns * (residual_slice / tile_values) * tile_bytes(8)),
          slice(expand + reduce + slice_floats * 4),
          hidden(Tile::seen_blocks * 16 * row),
          filtered(hidden + Tile::seen_blocks * 16 * slice_row_bytes),
          stages(filtered + Tile::pixels * slice_row_bytes),
          out_row(columns * tile_values * 2 + residual_gap),
          bytes(stages + 2 * slice) {
        // y on its way out lies where the slices were.
        if (bytes < hidden + Tile::pixels * out_row) bytes = hidden + Tile::pixels * out_row;
    }
};

// Which tile of y a block makes.
template <class Tile>
struct ResidualPlace {
    int64_t image;
    int out_height, out_width, y, x;

    MVIT_BOTH static int tiles_down(const InvertedResidualProblem& p) { return ((p.height - 1) / p.stride + Tile::height) / Tile::height; }
    MVIT_BOTH static int tiles_across(const InvertedResidualProblem& p) { return ((p.width - 1) / p.stride + Tile::width) / Tile::width; }

    MVIT_DEVICE explicit ResidualPlace(const InvertedResidualProblem& p)
        : out_height((p.height - 1) / Tile::stride + 1), out_width((p.width - 1) / Tile::stride + 1) {
        const int across = tiles_across(p), tiles = tiles_down(p) * across, tile = static_cast<int>(block_x() % tiles);
        image = block_x() / tiles, y = tile / across * Tile::height, x = tile % across * Tile::width;
    }
};

struct alignas(16) Sixteen {
    uint32_t words[4];
};

// shared: ResidualShared::bytes, aligned to 16.
template <class T, class Tile>
MVIT_DEVICE void inverted_residual_tile(const InvertedResidualProblem& p, uint8_t* shared) {
    const ResidualPlace<Tile> place(p);
    const ResidualShared<Tile> at(p.channels, p.columns);
    const int thread = thread_index(), lane = thread % warp_size, warp = thread / warp_size;
    const int top = place.y * Tile::stride - 1, left = place.x * Tile::stride - 1;
    const int slices = (p.hidden + residual_slice - 1) / residual_slice;
    uint8_t* const hidden = shared + at.hidden;
    uint8_t* const filtered = shared + at.filtered;
    const auto stage = [&](int slice) { return shared + at.stages + slice % 2 * at.slice; };

    const auto exists = [&](int seen) {
        const int y = top + Tile::seen_row(seen), x = left + Tile::seen_column(seen);
        return seen < Tile::seen && y >= 0 && y < p.height && x >= 0 && x < p.width;
    };
    const auto load_slice = [&](int slice) {
        const uint8_t* from = p.slices + int64_t{slice} * at.slice;
        MVIT_ROLLED
        for (int i = 16 * thread; i < at.slice; i += 16 * residual_threads) cp_async16(stage(slice) + i, from + i, 16);
    };

    // Zeros beyond the map and the channels.
    const int row_chunks_used = 2 * at.depth;
    for (int i = thread; i < Tile::seen_blocks * 16 * row_chunks_used; i += residual_threads) {
        const int seen = i / row_chunks_used, chunk = i % row_chunks_used;
        const bool there = 8 * chunk < p.channels && exists(seen);
        const int64_t pixel = (place.image * p.height + top + Tile::seen_row(seen)) * p.width + left + Tile::seen_column(seen);
        const T* from = static_cast<const T*>(p.x) + (there ? pixel * p.channels + 8 * chunk : 0);
        cp_async16(shared + seen * at.row + 16 * chunk, from, there ? 16 : 0);
    }
    load_slice(0);
    cp_async_commit();

    // Which rows of this thread's results of the expansion are pixels of the map: bit 2 round + half.
    const int expand_block = warp / Tile::expand_step, expand_tile = warp % Tile::expand_step;
    uint32_t of_map = 0;
    MVIT_UNROLL
    for (int i = 0; i < 2 * Tile::expand_rounds; ++i) {
        const int seen = 16 * (expand_block + i / 2 * Tile::expand_warps) + c_row(lane, i % 2 * 2);
        if (exists(seen)) of_map |= uint32_t{1} << i;
    }

    const auto expand = [&](const uint8_t* weights) {
        constexpr int rounds = Tile::expand_rounds, parts = 2 * Tile::expand_tiles;  // of 8 columns
        const uint8_t* tiles = weights + expand_tile * at.depth * tile_bytes(8) + 16 * lane;
        const auto* bias = reinterpret_cast<const float*>(weights + at.expand + at.reduce) + expand_tile * tile_values;
        const auto block = [&](int i) { return expand_block + i * Tile::expand_warps; };
        const auto has = [&](int i) { return Tile::expand_evenly || block(i) < Tile::seen_blocks; };
        float sums[rounds][parts][4];
        MVIT_UNROLL
        for (int i = 0; i < rounds; ++i) {
            MVIT_UNROLL
            for (int j = 0; j < parts; ++j) {
                MVIT_UNROLL
                for (int k = 0; k < 4; ++k) sums[i][j][k] = bias[8 * j + c_column(lane, k)];
            }
        }
        MVIT_ROLLED
        for (int k = 0; k < at.depth; ++k) {
            Sixteen b[Tile::expand_tiles];
            MVIT_UNROLL
            for (int j = 0; j < Tile::expand_tiles; ++j)
                b[j] = *reinterpret_cast<const Sixteen*>(tiles + (j * at.depth + k) * tile_bytes(8));
            MVIT_UNROLL
            for (int i = 0; i < rounds; ++i) {
                if (!has(i)) continue;
                uint32_t a[4];
                ldmatrix_x4(a, shared + (16 * block(i) + ldmatrix_row(lane)) * at.row + k * tile_depth + 16 * ldmatrix_chunk(lane));
                MVIT_UNROLL
                for (int j = 0; j < parts; ++j) mma(sums[i][j], a, b[j / 2].words[j % 2 * 2], b[j / 2].words[j % 2 * 2 + 1], T{});
            }
        }
        MVIT_UNROLL
        for (int i = 0; i < rounds; ++i) {
            if (!has(i)) continue;
            MVIT_UNROLL
            for (int half = 0; half < 2; ++half) {
                const bool there = of_map >> (2 * i + half) & 1;
                uint8_t* row = hidden + (16 * block(i) + c_row(lane, 2 * half)) * slice_row_bytes + expand_tile * tile_depth;
                MVIT_UNROLL
                for (int j = 0; j < parts; ++j) {
                    const float low = silu_of_double(sums[i][j][2 * half]), high = silu_of_double(sums[i][j][2 * half + 1]);
                    *reinterpret_cast<uint32_t*>(row + 2 * (8 * j + c_column(lane, 0))) = there ? from_floats(low, high, T{}) : 0;
                }
            }
        }
    };

    // Columns of the two strips of a warp are four apart: so they lie in different banks.
    const int pair = thread % (residual_slice / 2), strip = thread / (residual_slice / 2);
    const int strip_x = strip % 2 * 4 + strip / 2 % 4 + strip / 8 * 8 % Tile::width;
    const int strip_y = strip / Tile::width * Tile::strip;
    const auto filter = [&](const uint8_t* weights) {
        struct alignas(8) Two {
            float v[2];
        };
        const auto* floats = reinterpret_cast<const float*>(weights + at.expand + at.reduce) + residual_slice + 2 * pair;
        const auto both = [&](int row) { return *reinterpret_cast<const Two*>(floats + row * residual_slice); };
        Two taps[9];
        MVIT_UNROLL
        for (int i = 0; i < 9; ++i) taps[i] = both(i);
        const Two bias = both(9);
        const uint8_t* from = hidden + Tile::place(strip_y * Tile::stride, 0) * slice_row_bytes + 4 * pair;
        Two sums[Tile::strip];
        MVIT_UNROLL
        for (int i = 0; i < Tile::strip; ++i) sums[i] = bias;
        MVIT_UNROLL
        for (int row = 0; row < (Tile::strip - 1) * Tile::stride + 3; ++row) {
            MVIT_UNROLL
            for (int kx = 0; kx < 3; ++kx) {
                // With stride 2, columns 2 x, 2 x + 1 and 2 x + 2 of a row.
                const int column = Tile::place(row, kx) + strip_x;
                const Unpacked<T> seen(*reinterpret_cast<const uint32_t*>(from + column * slice_row_bytes));
                MVIT_UNROLL
                for (int ky = 0; ky < 3; ++ky) {
                    const int y = (row - ky) / Tile::stride;
                    if (row < ky || (row - ky) % Tile::stride != 0 || y >= Tile::strip) continue;
                    sums[y].v[0] = fmaf(seen.low, taps[3 * ky + kx].v[0], sums[y].v[0]);
                    sums[y].v[1] = fmaf(seen.high, taps[3 * ky + kx].v[1], sums[y].v[1]);
                }
            }
        }
        MVIT_UNROLL
        for (int i = 0; i < Tile::strip; ++i) {
            const int pixel = (strip_y + i) * Tile::width + strip_x;
            *reinterpret_cast<uint32_t*>(filtered + pixel * slice_row_bytes + 4 * pair) =
                from_floats(silu_of_double(sums[i].v[0]), silu_of_double(sums[i].v[1]), T{});
        }
    };

    float sums[2][Tile::reduce_rounds][2][4] = {};
    const int reduce_row = warp % Tile::reduce_warps * 32, reduce_tile = warp / Tile::reduce_warps;
    const auto reduce = [&](const uint8_t* weights) {
        const uint8_t* tiles = weights + at.expand + 16 * lane;
        MVIT_UNROLL
        for (int k = 0; k < residual_slice / tile_values; ++k) {
            uint32_t a[2][4];
            MVIT_UNROLL
            for (int i = 0; i < 2; ++i)
                ldmatrix_x4(a[i], filtered + (reduce_row + 16 * i + ldmatrix_row(lane)) * slice_row_bytes + k * tile_depth +
                                      16 * ldmatrix_chunk(lane));
            MVIT_UNROLL
            for (int j = 0; j < Tile::reduce_rounds; ++j) {
                const int tile = reduce_tile + j * Tile::reduce_step;
                if (tile >= at.columns) continue;
                const Sixteen b = *reinterpret_cast<const Sixteen*>(tiles + (2 * tile + k) * tile_bytes(8));
                MVIT_UNROLL
                for (int i = 0; i < 2; ++i) {
                    mma(sums[i][j][0], a[i], b.words[0], b.words[1], T{});
                    mma(sums[i][j][1], a[i], b.words[2], b.words[3], T{});
                }
            }
        }
    };

    for (int slice = 0; slice < slices; ++slice) {
        cp_async_wait<0>();
        block_barrier();  // all have the weights of this slice; and nobody reads those before any more, whose place the next ones take
        if (slice + 1 < slices) load_slice(slice + 1);
        cp_async_commit();
        expand(stage(slice));
        block_barrier();
        filter(stage(slice));
        block_barrier();
        reduce(stage(slice));
    }
    cp_async_wait<0>();
    block_barrier();

    // Out of the order of tensor cores, into rows.
    uint8_t* const out = hidden;
    MVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
        MVIT_UNROLL
        for (int j = 0; j < Tile::reduce_rounds; ++j) {
            const int tile = reduce_tile + j * Tile::reduce_step;
            if (tile >= at.columns) continue;
            MVIT_UNROLL
            for (int half = 0; half < 4; half += 2) {
                const int pixel = reduce_row + 16 * i + c_row(lane, half);
                MVIT_UNROLL
                for (int k = 0; k < 2; ++k) {
                    const int column = tile_values * tile + 8 * k + c_column(lane, half);
                    float low = sums[i][j][k][half] + p.bias[column], high = sums[i][j][k][half + 1] + p.bias[column + 1];
                    if (p.residual) {
                        const int seen = Tile::place(pixel / Tile::width + 1, pixel % Tile::width + 1);
                        const Unpacked<T> x(*reinterpret_cast<const uint32_t*>(shared + seen * at.row + 2 * column));
                        low += x.low, high += x.high;
                    }
                    *reinterpret_cast<uint32_t*>(out + pixel * at.out_row + 2 * column) = from_floats(low, high, T{});
                }
            }
        }
    }
    block_barrier();
    const int chunks = p.columns / 8;
    for (int i = thread; i < Tile::pixels * chunks; i += residual_threads) {
        const int pixel = i / chunks, chunk = i % chunks;
        const int y = place.y + pixel / Tile::width, x = place.x + pixel % Tile::width;
        if (y >= place.out_height || x >= place.out_width) continue;
        const int64_t to = ((place.image * place.out_height + y) * place.out_width + x) * p.columns + 8 * chunk;
        *reinterpret_cast<Sixteen*>(static_cast<T*>(p.y) + to) = *reinterpret_cast<const Sixteen*>(out + pixel * at.out_row + 16 * chunk);
    }
}

using ResidualTile1 = ResidualTile<1, 8, 16, 64, 2>;
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
