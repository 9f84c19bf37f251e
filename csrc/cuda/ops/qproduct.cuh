// The integer product that qgemm and qconv2d share: a block of `block_rows` rows times `block_columns` columns of a weight, by tensor
// cores.
//
//     sum[m, n] = sum_k a[m, k] w[n, k],    y[m, n] = epilogue(sum[m, n])
//
// A warp has 32 columns of 32 rows, in low blocks of 16. Depth goes by in stages of 64 bytes of each row, through a ring in shared memory:
// while one is multiplied the next are on their way. A stage has block_rows x 64 bytes of a (swizzle.cuh) and the tiles of the weight
// (qfragments.h) of bytes: those of 6 bits go through registers, where each is unpacked by one thread, not by all warps that multiply it.
//
// Columns lie in tiles in an order of their own, `product_column`, by which the four products of 8 columns of a warp give a thread eight
// neighbouring columns of each row. It finishes these where they are (qeight.cuh): four lanes write 32 bytes of a row, or 64 of int16.
// What ends otherwise goes through shared memory once, into rows, of which a thread finishes four columns (qepilogue.cuh).
//
// Rows come from a Source, which copies 16 bytes of a row, or as many as there are: QRows (a matrix), QTaps (what pixels of a convolution
// see, qtaps.cuh) and QThinTaps (qthin.cuh). Bytes of a row that are not there meet zeros of the weight and add nothing, whatever they
// are; rows that are not there are not written.
//
// Floor: 2 M N K operations of the tensor cores; a read N / block_columns times (from the second cache), w M / block_rows times, y written
// once. With the depths of a network, a few stages, instructions count more than either: see qproduct_launch.cuh.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cuda/primitives/cp_async.cuh"
#include "cuda/primitives/int6.cuh"
#include "cuda/primitives/mma_s8.cuh"
#include "cuda/primitives/qeight.cuh"
#include "cuda/primitives/qepilogue.cuh"
#include "cuda/primitives/qfragments.h"
#include "cuda/primitives/swizzle.cuh"

namespace mvit::cuda {

// 16 bytes of a row, or as many as there are. `from` is an address also where there are none.
struct Chunk {
    const uint8_t* from;
    int bytes;
};

inline constexpr int warp_columns = 32;

// Which column of 32 lies at place n of a weight's tiles: products of 8 columns leave columns 2 t and 2 t + 1 to a thread (mma_s8.cuh, t
// its place among four), and of four such products it shall have 8 t .. 8 t + 7.
MVIT_BOTH constexpr int64_t product_column(int64_t n) {
    const int64_t product = n % warp_columns / 8, t = n % 8 / 2;
    return n / warp_columns * warp_columns + 8 * t + 2 * product + n % 2;
}

template <int block_rows, int block_columns, int bits>
struct QProductShape {
    static constexpr int depth = fragment_depth;
    static constexpr int warp_rows = block_rows < 64 ? 16 : 32, stages = block_rows < 64 ? 4 : 3;
    static constexpr int threads = block_rows / warp_rows * (block_columns / warp_columns) * warp_size;
    static_assert((threads & (threads - 1)) == 0);
    static constexpr int b_tiles = block_columns / tile_columns * (depth / tile_depth);
    static constexpr int a_bytes = block_rows * depth, b_bytes = b_tiles * tile_bytes(8);
    static constexpr int stage_bytes = a_bytes + b_bytes;
    // Rows of sums four banks further on than the last: the quads that a quarter of a warp writes at once do not meet.
    static constexpr int sums_stride = block_columns + 4;
    static constexpr int sums_bytes = block_rows * sums_stride * 4, ring_bytes = stages * stage_bytes;
    static constexpr int tables = sums_bytes > ring_bytes ? sums_bytes : ring_bytes;  // where those of load_tables lie
    static constexpr int shared_bytes = tables + SharedCurve::bytes;
    static_assert(shared_bytes <= 48 * 1024);  // what a kernel gets without asking
};

// The four words of a lane of one tile in shared memory.
MVIT_DEVICE void load_tile(const uint8_t* tile, int lane, uint32_t (&words)[4]) {
    const auto q = *reinterpret_cast<const Quad<uint32_t>*>(tile + lane * 16);
    MVIT_UNROLL
    for (int i = 0; i < 4; ++i) words[i] = q.v[i];
}

// The weight of a stage on its way to shared memory: a thread copies chunks of it.
template <class Shape, int bits>
class WeightStages {
  public:
    MVIT_DEVICE WeightStages(const QFragments& w, int64_t first_column, int stages, int thread) : thread_(thread) {
        constexpr int run_chunks = run_bytes / chunk_bytes;
        MVIT_UNROLL
        for (int i = 0; i < count; ++i) {
            const int c = i * Shape::threads + thread;
            from_[i] = w.tiles + (first_column / tile_columns + c / run_chunks) * stages * run_bytes + c % run_chunks * chunk_bytes;
        }
    }
    MVIT_DEVICE void copy(uint8_t* to) {
        MVIT_UNROLL
        for (int i = 0; i < count; ++i) {
            const int c = i * Shape::threads + thread_;
            if (chunks % Shape::threads == 0 || c < chunks) cp_async16(to + c * chunk_bytes, from_[i], chunk_bytes);
            from_[i] += run_bytes;
        }
    }

  private:
    // A run: of a stage, of 16 columns, side by side in memory.
    static constexpr int run_bytes = Shape::depth / tile_depth * tile_bytes(bits), chunks = Shape::b_bytes / chunk_bytes;
    static constexpr int count = (chunks + Shape::threads - 1) / Shape::threads;
    const uint8_t* from_[count];
    int thread_;
};

// Of 6 bits it takes what a lane has of a tile, in registers between `fetch` and `put`, which are a stage's products apart.
template <class Shape>
class WeightStages<Shape, 6> {
  public:
    static constexpr int count = Shape::b_tiles * warp_size / Shape::threads;
    static_assert(count * Shape::threads == Shape::b_tiles * warp_size);
    struct Planes {
        uint32_t words[count][3];
    };

    MVIT_DEVICE WeightStages(const QFragments& w, int64_t first_column, int stages, int thread) : thread_(thread) {
        constexpr int run_tiles = Shape::depth / tile_depth;
        MVIT_UNROLL
        for (int i = 0; i < count; ++i) {
            const int c = (i * Shape::threads + thread) / warp_size;
            const int64_t tile = (first_column / tile_columns + c / run_tiles) * stages * run_tiles + c % run_tiles;
            from_[i] = w.tiles + tile * tile_bytes(6) + thread % warp_size * 4;
        }
    }
    MVIT_DEVICE Planes fetch() {
        Planes planes;
        MVIT_UNROLL
        for (int i = 0; i < count; ++i) {
            MVIT_UNROLL
            for (int p = 0; p < 3; ++p) planes.words[i][p] = *reinterpret_cast<const uint32_t*>(from_[i] + p * warp_size * 4);
            from_[i] += Shape::depth / tile_depth * tile_bytes(6);
        }
        return planes;
    }
    MVIT_DEVICE void put(uint8_t* to, const Planes& planes) const {
        MVIT_UNROLL
        for (int i = 0; i < count; ++i) {
            Quad<uint32_t> words;
            unpack_int6(planes.words[i], words.v);
            *reinterpret_cast<Quad<uint32_t>*>(to + (i * Shape::threads + thread_) * chunk_bytes) = words;
        }
    }

  private:
    const uint8_t* from_[count];
    int thread_;
};

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

// Rows of a matrix.
struct QRows {
    const uint8_t* a;
    int64_t rows, stride, depth;  // in bytes
    int alignment;                // of the chunks: 16, 4 or 1

    // At a chunk, and the next one that the same thread copies is that of the next stage.
    struct Row {
        const uint8_t* from;
        int left;
    };
    MVIT_DEVICE Row row(int64_t m, int chunk) const {
        if (m >= rows) return {a, 0};
        return {a + m * stride + chunk * chunk_bytes, static_cast<int>(depth) - chunk * chunk_bytes};
    }
    MVIT_DEVICE void copy(uint8_t* to, Row& row, int) const {
        load_chunk(to, row.left > 0 ? Chunk{row.from, row.left < chunk_bytes ? row.left : chunk_bytes} : Chunk{a, 0}, alignment);
        row.from += row_bytes, row.left -= row_bytes;
    }
    // Whether sums of rows may begin with something of their own, and with what; null: what the channels say. Whether all depth is a stage.
    static constexpr bool has_init = false, one_stage = false;
    MVIT_DEVICE const int32_t* init(int64_t) const { return nullptr; }
};

// Those of which all chunks are whole and aligned. Chunks that are not there are left as they are.
struct QWholeRows : QRows {
    static bool are(const QRows& rows) { return rows.alignment == chunk_bytes && rows.depth % chunk_bytes == 0; }
    MVIT_DEVICE void copy(uint8_t* to, Row& row, int) const {
        if (row.left > 0) cp_async16(to, row.from, chunk_bytes);
        row.from += row_bytes, row.left -= row_bytes;
    }
};

// `shared`: QProductShape::shared_bytes, aligned to 16.
template <int block_rows, int block_columns, int bits, class Source>
MVIT_DEVICE void qproduct(const Source& source, const QFragments& w, const QEpilogue& e, int64_t rows, uint8_t* shared) {
    using Shape = QProductShape<block_rows, block_columns, bits>;
    constexpr int thread_rows = block_rows * row_chunks / Shape::threads;  // chunks of a stage that a thread copies, one of a row
    constexpr int row_step = Shape::threads / row_chunks;
    constexpr int rounds = Shape::warp_rows / 16, warp_tiles = warp_columns / tile_columns, column_warps = block_columns / warp_columns;
    // By a mask, that it is not negative: divisions are shifts.
    const int thread = thread_index() & (Shape::threads - 1), lane = thread % warp_size, warp = thread / warp_size;
    const int64_t first_row = block_x() * block_rows, first_column = int64_t{block_y()} * block_columns;
    const int stages = static_cast<int>((static_cast<uint32_t>(w.depth) + Shape::depth - 1) / Shape::depth);

    const int own_chunk = thread % row_chunks, own_row = thread / row_chunks;
    typename Source::Row own[thread_rows];
    MVIT_UNROLL
    for (int i = 0; i < thread_rows; ++i) own[i] = source.row(first_row + own_row + i * row_step, own_chunk);

    WeightStages<Shape, bits> weight(w, first_column, stages, thread);

    // The next stage, and its place in the ring.
    int loaded = 0, load_place = 0;
    const auto load_stage = [&] {
        uint8_t* to = shared + load_place;
        MVIT_UNROLL
        for (int i = 0; i < thread_rows; ++i)
            source.copy(to + swizzled(own_row, own_chunk) + i * row_step * row_bytes, own[i], loaded * row_chunks + own_chunk);
        if constexpr (bits == 8) weight.copy(to + Shape::a_bytes);
        ++loaded;
        load_place = load_place + Shape::stage_bytes == Shape::ring_bytes ? 0 : load_place + Shape::stage_bytes;
    };
    static_assert(row_step % 8 == 0);  // rows of the same place in the order of swizzle.cuh
    constexpr int ahead = Source::one_stage ? 1 : Shape::stages - 1;
    if constexpr (bits == 6) {
        // All that comes first is asked for before the first of it is needed.
        typename WeightStages<Shape, 6>::Planes planes[ahead];
        MVIT_UNROLL
        for (int stage = 0; stage < ahead; ++stage)
            if (stage < stages) planes[stage] = weight.fetch();
        MVIT_UNROLL
        for (int stage = 0; stage < ahead; ++stage)
            if (stage < stages) weight.put(shared + stage * Shape::stage_bytes + Shape::a_bytes, planes[stage]);
    }
    // A group is committed in every turn, an empty one past the end, so that the same number is always under way.
    MVIT_ROLLED
    for (int stage = 0; stage < ahead; ++stage) {
        if (Source::one_stage || loaded < stages) load_stage();
        cp_async_commit();
    }
    uint8_t* const tables = shared + Shape::tables;
    load_tables(e, tables, Shape::threads);

    const int warp_row = warp / column_warps * Shape::warp_rows, warp_column = warp % column_warps * warp_columns;
    // What this thread has of sums: columns `column` .. `column` + 7 of rows `row` + 16 i + 8 half of the block.
    const int columns = static_cast<int>(w.columns), column = static_cast<int>(first_column) + warp_column + eight * (lane % 4);
    const int row = warp_row + lane / 4;
    const bool in_eight = ends_in_eight(e);
    int32_t sums[rounds][2 * warp_tiles][4] = {};
    // shift: of sums that are too large by it.
    const auto add_init = [&]<int shift>() {
        const Quad<int32_t> channels[2] = {load_quad(e.channels.init + column, four, true),
                                           load_quad(e.channels.init + column + four, four, true)};
        MVIT_UNROLL
        for (int i = 0; i < 2 * rounds; ++i) {
            Quad<int32_t> init[2] = {channels[0], channels[1]};
            if constexpr (Source::has_init) {
                if (const int32_t* of_row = source.init(first_row + row + 8 * i))
                    init[0] = load_quad(of_row + column, four, true), init[1] = load_quad(of_row + column + four, four, true);
            }
            MVIT_UNROLL
            for (int c = 0; c < eight; ++c) {
                int32_t& sum = sums[i / 2][c / 2][i % 2 * 2 + c % 2];
                sum = add(sum >> shift, init[c / four].v[c % four]);
            }
        }
    };
    const bool inits = in_eight && column < columns;
    if (bits == 8 && inits) add_init.template operator()<0>();

    // The two halves of a stage's depth are two chunks apart, which the swizzle keeps; rows 16 further on lie as these do.
    const int a_place = swizzled(warp_row + ldmatrix_row(lane), ldmatrix_chunk(lane));
    const bool warp_has = static_cast<int>(first_column) + warp_column < columns;
    const auto multiply_stage = [&](const uint8_t* a) {
        constexpr int run_bytes = Shape::depth / tile_depth * tile_bytes(8);
        const uint8_t* b = a + Shape::a_bytes + warp_column / tile_columns * run_bytes;
        MVIT_UNROLL
        for (int k = 0; k < Shape::depth / tile_depth; ++k) {
            uint32_t words[warp_tiles][4];
            MVIT_UNROLL
            for (int j = 0; j < warp_tiles; ++j) load_tile(b + j * run_bytes + k * tile_bytes(8), lane, words[j]);
            MVIT_UNROLL
            for (int i = 0; i < rounds; ++i) {
                uint32_t fragment[4];
                ldmatrix_x4(fragment, a + (a_place ^ 2 * k * chunk_bytes) + 16 * i * row_bytes);
                MVIT_UNROLL
                for (int j = 0; j < warp_tiles; ++j) {
                    mma_u8s8(sums[i][2 * j], fragment, words[j][0], words[j][1]);
                    mma_u8s8(sums[i][2 * j + 1], fragment, words[j][2], words[j][3]);
                }
            }
        }
    };
    int place = 0;
    MVIT_ROLLED
    for (int stage = 0; stage < stages; ++stage) {
        cp_async_wait<Source::one_stage ? 0 : Shape::stages - 2>();
        block_barrier();  // all have what all copied; and nobody reads the stage before any more, whose place the next copies take
        if constexpr (Source::one_stage) {
            if (warp_has) multiply_stage(shared + place);
        } else if constexpr (bits == 8) {
            if (loaded < stages) load_stage();
            cp_async_commit();
            if (warp_has) multiply_stage(shared + place);
        } else {
            const bool more = loaded < stages;
            uint8_t* const to = shared + load_place + Shape::a_bytes;
            typename WeightStages<Shape, 6>::Planes planes;
            if (more) planes = weight.fetch(), load_stage();
            cp_async_commit();
            if (warp_has) multiply_stage(shared + place);
            if (more) weight.put(to, planes);
        }
        place = place + Shape::stage_bytes == Shape::ring_bytes ? 0 : place + Shape::stage_bytes;
    }
    if (in_eight) {
        if (stages == 0) block_barrier();  // before the tables are read
        if (column >= columns) return;
        if constexpr (bits == 6) add_init.template operator()<int6_shift>();
        finish_eight(sums, e, columns, column, first_row + row, rows, tables);
        return;
    }
    if constexpr (bits == 6) {
        MVIT_UNROLL
        for (int i = 0; i < rounds * 2 * warp_tiles * 4; ++i) {
            int32_t& sum = sums[i / (2 * warp_tiles * 4)][i / 4 % (2 * warp_tiles)][i % 4];
            sum >>= int6_shift;
        }
    }

    block_barrier();
    auto* staged = reinterpret_cast<int32_t*>(shared);
    MVIT_UNROLL
    for (int i = 0; i < 2 * rounds; ++i) {
        MVIT_UNROLL
        for (int quad = 0; quad < 2; ++quad) {
            const auto sum = [&](int c) { return sums[i / 2][2 * quad + c / 2][i % 2 * 2 + c % 2]; };
            int32_t* to = staged + (row + 8 * i) * Shape::sums_stride + warp_column + eight * (lane % 4) + four * quad;
            *reinterpret_cast<Quad<int32_t>*>(to) = {{sum(0), sum(1), sum(2), sum(3)}};
        }
    }
    block_barrier();
    constexpr int row_threads = block_columns / four;
    const int quad = thread % row_threads * four;
    if (first_column + quad >= w.columns) return;
    const Finish finish(e, w.columns, first_column + quad, tables);
    MVIT_ROLLED
    for (int i = thread / row_threads; i < block_rows && first_row + i < rows; i += Shape::threads / row_threads) {
        const auto sum = *reinterpret_cast<const Quad<int32_t>*>(staged + i * Shape::sums_stride + quad);
        const int32_t* init = source.init(first_row + i);
        if (init) {
            finish(sum, init, first_row + i);
        } else {
            finish(sum, first_row + i);
        }
    }
}

}  // namespace mvit::cuda
