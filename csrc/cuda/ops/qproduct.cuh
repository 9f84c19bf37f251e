// The integer product that qgemm and qconv2d share: a block of `block_rows` rows times 64 columns of a weight, by tensor cores.
//
//     sum[m, n] = sum_k a[m, k] w[n, k],    y[m, n] = epilogue(sum[m, n])
//
// Four warps, two by two, each of half the rows and 32 columns. Depth goes by in stages of 64 bytes of each row, through a ring of four in
// shared memory: while one is multiplied the next three are on their way. A stage has block_rows x 64 bytes of a (swizzle.cuh) and the
// tiles of the weight (qfragments.h) as they lie in memory. In the end sums go through shared memory once, from the order of tensor cores
// into rows, so that a thread finishes four neighbouring columns and 16 threads write a run of a row.
//
// Rows come from a Source, which says where 16 bytes of a row lie and how many of them there are: QRows (a matrix) and QTaps (what pixels
// of a convolution see, qconv2d.cuh). Bytes that are not there are zeros in shared memory, and add nothing.
//
// Floor: 2 M N K operations of the tensor cores; a read N / 64 times (from the second cache), w M / block_rows times, y written once.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cuda/primitives/cp_async.cuh"
#include "cuda/primitives/int6.cuh"
#include "cuda/primitives/mma_s8.cuh"
#include "cuda/primitives/qepilogue.cuh"
#include "cuda/primitives/qfragments.h"
#include "cuda/primitives/swizzle.cuh"

namespace mvit::cuda {

// 16 bytes of a row, or as many as there are. `from` is an address also where there are none.
struct Chunk {
    const uint8_t* from;
    int bytes;
};

// Rows of a matrix.
struct QRows {
    const uint8_t* a;
    int64_t rows, stride, depth;  // in bytes
    int alignment;                // of the chunks: 16, 4 or 1

    struct Row {
        const uint8_t* from;
        bool exists;
    };
    MVIT_DEVICE Row row(int64_t m) const { return {m < rows ? a + m * stride : a, m < rows}; }
    MVIT_DEVICE Chunk chunk(const Row& row, int c) const {
        const int64_t k = int64_t{chunk_bytes} * c, left = row.exists ? depth - k : 0;
        if (left <= 0) return {a, 0};
        return {row.from + k, static_cast<int>(left < chunk_bytes ? left : chunk_bytes)};
    }
    // What the sums of a row begin with; null: what the channels say.
    MVIT_DEVICE const int32_t* init(int64_t) const { return nullptr; }
};

inline constexpr int product_threads = 128, product_stages = 4;

template <int block_rows, int bits>
struct QProductShape {
    static constexpr int columns = fragment_columns, depth = fragment_depth;
    static constexpr int a_bytes = block_rows * depth, b_bytes = columns / tile_columns * (depth / tile_depth) * tile_bytes(bits);
    static constexpr int stage_bytes = a_bytes + b_bytes;
    // Rows of sums 8 banks further on than the last: the pairs that a quarter of a warp writes at once do not meet.
    static constexpr int sums_stride = columns + 8;
    static constexpr int sums_bytes = block_rows * sums_stride * 4, ring_bytes = product_stages * stage_bytes;
    static constexpr int last_bytes = sums_bytes + SharedCurve::bytes;
    static constexpr int shared_bytes = last_bytes > ring_bytes ? last_bytes : ring_bytes;
    static_assert(shared_bytes <= 48 * 1024);  // what a kernel gets without asking
};

// The four words of a lane of one tile in shared memory.
template <int bits>
MVIT_DEVICE void load_tile(const uint8_t* tile, int lane, uint32_t (&words)[4]) {
    if constexpr (bits == 8) {
        const auto q = *reinterpret_cast<const Quad<uint32_t>*>(tile + lane * 16);
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i) words[i] = q.v[i];
    } else {
        uint32_t planes[3];
        MVIT_UNROLL
        for (int i = 0; i < 3; ++i) planes[i] = *reinterpret_cast<const uint32_t*>(tile + (i * warp_size + lane) * 4);
        unpack_int6(planes, words);
    }
}

// 16 bytes in shared memory, with zeros behind those that there are.
MVIT_DEVICE void load_chunk(uint8_t* to, const Chunk& chunk, int alignment) {
    if (alignment == 16) {
        cp_async16(to, chunk.from, chunk.bytes);
        return;
    }
    if (alignment == 4) {
        MVIT_UNROLL
        for (int i = 0; i < 16; i += 4) {
            const int left = chunk.bytes - i, bytes = left < 0 ? 0 : left < 4 ? left : 4;
            cp_async4(to + i, chunk.from + (bytes > 0 ? i : 0), bytes);
        }
        return;
    }
    Quad<uint32_t> words{};
    MVIT_UNROLL
    for (int i = 0; i < 16; ++i)
        if (i < chunk.bytes) words.v[i / 4] |= uint32_t{chunk.from[i]} << (8 * (i % 4));
    *reinterpret_cast<Quad<uint32_t>*>(to) = words;
}

// `shared`: QProductShape::shared_bytes, aligned to 16.
template <int block_rows, int bits, class Source>
MVIT_DEVICE void qproduct(const Source& source, const QFragments& w, const QEpilogue& e, int64_t rows, uint8_t* shared) {
    using Shape = QProductShape<block_rows, bits>;
    constexpr int thread_rows = block_rows * row_chunks / product_threads;  // chunks of a stage that a thread copies, one of a row
    constexpr int row_step = product_threads / row_chunks;
    constexpr int warp_rows = block_rows / 2 / 16, warp_tiles = Shape::columns / 2 / tile_columns;
    const int thread = thread_index(), lane = thread % warp_size, warp = thread / warp_size;
    const int64_t first_row = block_x() * block_rows, first_column = int64_t{block_y()} * Shape::columns;
    const int stages = static_cast<int>(ceil_divide(w.depth, Shape::depth));

    const int own_chunk = thread % row_chunks, own_row = thread / row_chunks;
    typename Source::Row own[thread_rows];
    MVIT_UNROLL
    for (int i = 0; i < thread_rows; ++i) own[i] = source.row(first_row + own_row + i * row_step);

    constexpr int run_bytes = Shape::depth / tile_depth * tile_bytes(bits);  // of a stage, of 16 columns: side by side in memory
    constexpr int run_chunks = run_bytes / chunk_bytes, b_chunks = Shape::b_bytes / chunk_bytes;
    const uint8_t* tiles = w.tiles + first_column / tile_columns * stages * run_bytes;

    const auto load_stage = [&](int stage) {
        uint8_t* to = shared + stage % product_stages * Shape::stage_bytes;
        MVIT_UNROLL
        for (int i = 0; i < thread_rows; ++i)
            load_chunk(to + swizzled(own_row + i * row_step, own_chunk), source.chunk(own[i], stage * row_chunks + own_chunk),
                       source.alignment);
        MVIT_UNROLL
        for (int i = 0; i < b_chunks; i += product_threads) {
            const int c = i + thread;
            if (c >= b_chunks) break;
            const uint8_t* run = tiles + (int64_t{c / run_chunks} * stages + stage) * run_bytes;
            cp_async16(to + Shape::a_bytes + c * chunk_bytes, run + c % run_chunks * chunk_bytes, chunk_bytes);
        }
    };

    int32_t sums[warp_rows][2 * warp_tiles][4] = {};
    const int warp_row = warp / 2 * (block_rows / 2), warp_tile = warp % 2 * warp_tiles;

    const auto multiply_stage = [&](int stage) {
        const uint8_t* a = shared + stage % product_stages * Shape::stage_bytes;
        const uint8_t* b = a + Shape::a_bytes;
        MVIT_UNROLL
        for (int k = 0; k < Shape::depth / tile_depth; ++k) {
            uint32_t words[warp_tiles][4];
            MVIT_UNROLL
            for (int j = 0; j < warp_tiles; ++j) load_tile<bits>(b + (warp_tile + j) * run_bytes + k * tile_bytes(bits), lane, words[j]);
            MVIT_UNROLL
            for (int i = 0; i < warp_rows; ++i) {
                uint32_t fragment[4];
                ldmatrix_x4(fragment, a + swizzled(warp_row + 16 * i + ldmatrix_row(lane), 2 * k + ldmatrix_chunk(lane)));
                MVIT_UNROLL
                for (int j = 0; j < warp_tiles; ++j) {
                    mma_u8s8(sums[i][2 * j], fragment, words[j][0], words[j][1]);
                    mma_u8s8(sums[i][2 * j + 1], fragment, words[j][2], words[j][3]);
                }
            }
        }
    };

    // A group is committed in every turn, an empty one past the end, so that the same number is always under way.
    MVIT_UNROLL
    for (int stage = 0; stage < product_stages - 1; ++stage) {
        if (stage < stages) load_stage(stage);
        cp_async_commit();
    }
    for (int stage = 0; stage < stages; ++stage) {
        cp_async_wait<product_stages - 2>();
        block_barrier();  // all have what all copied; and nobody reads the stage before any more, whose place the next copies take
        if (stage + product_stages - 1 < stages) load_stage(stage + product_stages - 1);
        cp_async_commit();
        multiply_stage(stage);
    }
    cp_async_wait<0>();
    block_barrier();

    auto* staged = reinterpret_cast<int32_t*>(shared);
    uint8_t* const curve = shared + Shape::sums_bytes;
    if (e.curve) SharedCurve::load(e.curve, curve, product_threads);
    struct alignas(8) Pair {
        int32_t v[2];
    };
    MVIT_UNROLL
    for (int i = 0; i < warp_rows; ++i) {
        MVIT_UNROLL
        for (int j = 0; j < 2 * warp_tiles; ++j) {
            MVIT_UNROLL
            for (int half = 0; half < 4; half += 2) {
                const int row = warp_row + 16 * i + c_row(lane, half), column = warp_tile * tile_columns + 8 * j + c_column(lane, half);
                constexpr int shift = bits == 6 ? int6_shift : 0;
                *reinterpret_cast<Pair*>(staged + row * Shape::sums_stride + column) = {sums[i][j][half] >> shift,
                                                                                        sums[i][j][half + 1] >> shift};
            }
        }
    }
    block_barrier();

    constexpr int row_threads = Shape::columns / four;
    const int column = thread % row_threads * four;
    if (first_column + column >= w.columns) return;
    const Finish finish(e, w.columns, first_column + column, curve);
    for (int row = thread / row_threads; row < block_rows && first_row + row < rows; row += product_threads / row_threads) {
        const auto sum = *reinterpret_cast<const Quad<int32_t>*>(staged + row * Shape::sums_stride + column);
        const int32_t* init = source.init(first_row + row);
        if (init) {
            finish(sum, init, first_row + row);
        } else {
            finish(sum, first_row + row);
        }
    }
}

}  // namespace mvit::cuda
