// A block of ops/qpatch_attention.h.
#pragma once

#include "cuda/ops/qpatch_attention.h"
#include "cuda/ops/qproduct.cuh"
#include "cuda/primitives/alignment.h"
#include "cuda/primitives/channels.cuh"
#include "cuda/primitives/divisor.h"
#include "cuda/primitives/shared.cuh"
#include "cuda/primitives/warp.cuh"

namespace mvit::cuda {

inline constexpr int phase_warps = 8;                                   // of a block, at most
inline constexpr int phase_rounds = 2, phase_tile = 16 * phase_rounds;  // queries of a warp, in blocks of 16
inline constexpr int phase_keys = 32;                                   // that are multiplied at a time
inline constexpr int phase_table_rows = 257, phase_table_bytes = phase_table_rows * warp_size * 4;

// What scores begin with, as bits of floats: 1.5 2^23 + S, |S| < 2^22, of keys that there are, and 2^23, less than any, of others.
inline constexpr uint32_t score_of_zero = 0x4B400000, score_of_none = 0x4B000000;
// What is added to a score's place in the table, in [0, 1], so that 256 of it are in the low bits; and these bits without it.
inline constexpr float place_of_zero = 0x1.8p15f;
inline constexpr uint32_t place_bits = 0x47400000;

// Pairs of 8 columns of the second product: the channels of a head and one that adds up exponentials. Of 16, the most is 5.
MVIT_BOTH constexpr int value_pairs(int depth) { return depth / 16 + 1; }
inline constexpr int deepest_head = 64;

// body<pairs>()
template <class Body>
void with_value_pairs(int pairs, const Body& body) {
    switch (pairs) {
        case 1:
            return body.template operator()<1>();
        case 2:
            return body.template operator()<2>();
        case 3:
            return body.template operator()<3>();
        case 4:
            return body.template operator()<4>();
        default:
            return body.template operator()<value_pairs(deepest_head)>();
    }
}

// What lies in shared memory of 32 keys of a head, in rows of 32 bytes: the keys, 32 rows for each 32 channels; the values, a row for each
// channel; then what scores begin with.
MVIT_BOTH constexpr int key_parts(int pairs) { return pairs > 2 ? 2 : 1; }
MVIT_BOTH constexpr int phase_step_bytes(int pairs) { return phase_keys * (32 * key_parts(pairs) + 16 * pairs + 4); }

template <int pairs>
struct PhaseStep {
    static constexpr int row = 32, parts = key_parts(pairs), part = phase_keys * row, pair = 16 * row;
    static constexpr int values = parts * part, starts = values + pairs * pair, bytes = phase_step_bytes(pairs);

    // Half a row. Eight rows fill the banks twice: the upper four have their halves swapped, so that eight first halves fill them once.
    MVIT_BOTH static constexpr int place(int r, int half) { return r * row + (half ^ r / 4 % 2) * chunk_bytes; }
};

// How a call is cut into blocks, whose shared memory has the table, and the keys of each head by 32. A warp has 32 queries of a head; a
// block the warps of some heads of a phase with all their queries, or eight of one head.
struct QPatchAttentionCut {
    int columns, length, padded, depth, pairs;  // of a phase: pixels in a row, in all, rounded up to `phase_keys`
    int tiles, heads;                           // of a block: warps of a head; heads
    int all_tiles, tile_groups, head_groups;
    int head_bytes, bytes;
    Divisor by_columns, by_padded;
    int alignment = 1;     // of heads of qkv: 16, 4 or 1
    bool aligned = false;  // whether heads of y are words

    // At least one pixel.
    MVIT_BOTH QPatchAttentionCut(int all_heads, int rows, int columns_, int depth_)
        : columns(columns_),
          length(rows * columns),
          padded((length + phase_keys - 1) / phase_keys * phase_keys),
          depth(depth_),
          pairs(value_pairs(depth)),
          all_tiles(padded / phase_tile),
          head_bytes(padded / phase_keys * phase_step_bytes(pairs)),
          by_columns(static_cast<uint32_t>(columns)),
          by_padded(static_cast<uint32_t>(padded)) {
        tiles = all_tiles < phase_warps ? all_tiles : phase_warps;
        heads = all_heads < phase_warps / tiles ? all_heads : phase_warps / tiles;
        tile_groups = (all_tiles + tiles - 1) / tiles, head_groups = (all_heads + heads - 1) / heads;
        bytes = phase_table_bytes + heads * head_bytes;
    }
    static QPatchAttentionCut of(const QPatchAttentionProblem& p) {
        const auto small = [](int64_t value) { return static_cast<int>(value); };
        QPatchAttentionCut cut(small(p.heads), small(p.height / p.patch_h), small(p.width / p.patch_w), small(p.dim / p.heads));
        cut.alignment = alignment_of(p.qkv, p.image_stride, p.row_stride, p.pixel_stride, p.dim / p.heads);
        cut.aligned = alignment_of(p.y, p.dim / p.heads) > 1;
        return cut;
    }

    MVIT_BOTH int threads() const { return tiles * heads * warp_size; }
    MVIT_BOTH int64_t blocks(const QPatchAttentionProblem& p) const { return p.batch * p.patch_h * p.patch_w * head_groups * tile_groups; }
};

// Where the first pixel of a phase is and how far the others are from it, in bytes.
struct PhasePixels {
    int64_t first, row, column;

    MVIT_DEVICE PhasePixels(const QPatchAttentionProblem& p, int64_t image, int phase, int64_t image_stride, int64_t row_stride,
                            int64_t pixel_stride)
        : row(p.patch_h * row_stride), column(p.patch_w * pixel_stride) {
        const int across = static_cast<int>(p.patch_w);
        first = image * image_stride + phase / across * row_stride + phase % across * pixel_stride;
    }
    MVIT_DEVICE int64_t operator()(const QPatchAttentionCut& cut, int n) const {
        const auto y = static_cast<int>(cut.by_columns(static_cast<uint32_t>(n)));
        return y * row + (n - y * cut.columns) * column;
    }
};

// Which queries a block has, and its warp; found anew wherever it is asked for, rather than kept in registers.
struct PhaseBlock {
    int64_t image;
    int phase, head, heads, tile;  // from these on
    int own_head, own_tile;        // of this warp; the head counted from that of the block
    bool has;                      // whether it has queries

    MVIT_DEVICE PhaseBlock(const QPatchAttentionProblem& p, const QPatchAttentionCut& cut) {
        auto block = anew(static_cast<uint32_t>(block_x()));
        const auto next = [&](int count) {
            const uint32_t all = block, size = static_cast<uint32_t>(count);
            block = all / size;
            return static_cast<int>(all - block * size);
        };
        tile = next(cut.tile_groups) * cut.tiles;
        head = next(cut.head_groups) * cut.heads;
        phase = next(static_cast<int>(p.patch_h * p.patch_w));
        image = block;
        const int left = static_cast<int>(p.heads) - head;
        heads = left < cut.heads ? left : cut.heads;
        const int warp = static_cast<int>(anew(static_cast<uint32_t>(thread_index())) / warp_size);
        own_head = warp / cut.tiles, own_tile = tile + warp % cut.tiles;
        has = own_head < heads && own_tile < cut.all_tiles;
    }
};

// Bytes 0 .. 3 of four words to words of one byte of each.
MVIT_DEVICE void turn(const uint32_t (&rows)[4], uint32_t (&columns)[4]) {
    MVIT_UNROLL
    for (int half = 0; half < 2; ++half) {
        const uint32_t bytes = half ? 0x7362 : 0x5140;
        const uint32_t low = permute(rows[0], rows[1], bytes), high = permute(rows[2], rows[3], bytes);
        columns[2 * half] = permute(low, high, 0x5410), columns[2 * half + 1] = permute(low, high, 0x7632);
    }
}

// Keys of `heads` heads, rows of their channels with zeros behind, and behind the last one.
template <int pairs>
MVIT_DEVICE void load_phase_keys(const QPatchAttentionProblem& p, const QPatchAttentionCut& cut, const uint8_t* k,
                                 const PhasePixels& pixels, int heads, uint8_t* shared) {
    using Step = PhaseStep<pairs>;
    constexpr int chunks = Step::parts * Step::row / chunk_bytes;
    MVIT_ROLLED
    for (int i = thread_index(); i < heads * cut.padded * chunks; i += cut.threads()) {
        const int row = i / chunks, chunk = i % chunks, c = chunk * chunk_bytes, left = cut.depth - c;
        const auto head = static_cast<int>(cut.by_padded(static_cast<uint32_t>(row)));
        const int key = row - head * cut.padded;
        Chunk from{p.qkv, 0};
        if (key < cut.length && left > 0) from = {k + pixels(cut, key) + head * cut.depth + c, left < chunk_bytes ? left : chunk_bytes};
        uint8_t* const step = shared + head * cut.head_bytes + key / phase_keys * Step::bytes;
        load_chunk(step + chunk / 2 * Step::part + Step::place(key % phase_keys, chunk % 2), from, cut.alignment);
    }
    cp_async_commit();
}

// Values of `heads` heads, rows of a channel; zeros behind the last key and the last channel, and at last a row of ones. Keys and channels
// are in the orders of ops/qpatch_attention.h.
template <int pairs>
MVIT_DEVICE void load_phase_values(const QPatchAttentionCut& cut, const uint8_t* v, const PhasePixels& pixels, int heads, uint8_t* shared) {
    using Step = PhaseStep<pairs>;
    MVIT_ROLLED
    for (int i = thread_index(); i < heads * cut.padded; i += cut.threads()) {
        const auto head = static_cast<int>(cut.by_padded(static_cast<uint32_t>(i)));
        const int quad = i % 4, place = (i - head * cut.padded) / 4, of_step = place / 8, half = place / 4 % 2;  // of channels; of keys
        const int key = of_step * phase_keys + half * 16 + place % 4 * 2;
        const uint8_t* from[4];
        bool there[4];
        uint32_t ones = 0;
        MVIT_UNROLL
        for (int j = 0; j < 4; ++j) {
            const int n = key + j / 2 * 8 + j % 2;
            there[j] = n < cut.length;
            from[j] = v + head * cut.depth + 4 * quad + (there[j] ? pixels(cut, n) : 0);
            ones |= (there[j] ? 1u : 0u) << (8 * j);
        }
        uint8_t* const to = shared + head * cut.head_bytes + of_step * Step::bytes + Step::values + place % 4 * 4;
        MVIT_UNROLL
        for (int pair = 0; pair < pairs; ++pair) {
            const int left = cut.depth - 16 * pair - 4 * quad;
            uint32_t keys[4], channels[4];
            MVIT_UNROLL
            for (int j = 0; j < 4; ++j) keys[j] = there[j] && left > 0 ? load_channels(from[j] + 16 * pair, left, cut.alignment > 1) : 0;
            turn(keys, channels);
            if (pair == pairs - 1 && quad == 3) channels[3] = ones;
            MVIT_UNROLL
            for (int j = 0; j < 4; ++j)
                *reinterpret_cast<uint32_t*>(to + pair * Step::pair + Step::place(j / 2 * 8 + 2 * quad + j % 2, half)) = channels[j];
        }
    }
}

// A column of words for each lane, the entry in the highest byte.
MVIT_DEVICE void load_phase_table(const uint8_t* table, int threads, uint8_t* shared) {
    constexpr int chunks = warp_size * 4 / chunk_bytes;
    MVIT_ROLLED
    for (int row = thread_index(); row < phase_table_rows; row += threads) {
        const uint32_t word = uint32_t{table[row < 255 ? row : 255]} << 24;
        MVIT_UNROLL
        for (int i = 0; i < chunks; ++i)  // neighbours write to different banks
            *reinterpret_cast<Sixteen*>(shared + (row * chunks + (i + row) % chunks) * chunk_bytes) = {{word, word, word, word}};
    }
}

// What scores of each key begin with, of keys in shared memory.
template <int pairs>
MVIT_DEVICE void sum_phase_keys(const QPatchAttentionCut& cut, int32_t q_zero_point, int heads, uint8_t* shared) {
    using Step = PhaseStep<pairs>;
    MVIT_ROLLED
    for (int i = thread_index(); i < heads * cut.padded; i += cut.threads()) {
        const auto head = static_cast<int>(cut.by_padded(static_cast<uint32_t>(i)));
        const int key = i - head * cut.padded;
        uint8_t* const keys = shared + head * cut.head_bytes + key / phase_keys * Step::bytes;
        int32_t sum = 0;
        MVIT_UNROLL
        for (int c = 0; c < 2 * Step::parts; ++c) {
            const auto chunk = *reinterpret_cast<const Sixteen*>(keys + c / 2 * Step::part + Step::place(key % phase_keys, c % 2));
            MVIT_UNROLL
            for (int j = 0; j < 4; ++j) sum = dot4(chunk.words[j], 0x01010101, sum);
        }
        const uint32_t start = key < cut.length ? score_of_zero - static_cast<uint32_t>(q_zero_point * sum) : score_of_none;
        *reinterpret_cast<uint32_t*>(keys + Step::starts + key % phase_keys * 4) = start;
    }
}

// The queries of a warp, as the first product takes them, and what becomes of them.
template <int pairs>
class PhaseQueries {
  public:
    using Step = PhaseStep<pairs>;
    static constexpr int parts = Step::parts;

    // head: of the block; tile: of all; q: of its channels. Without queries, all is 0.
    MVIT_DEVICE PhaseQueries(const QPatchAttentionCut& cut, const uint8_t* q, const PhasePixels& pixels, int tile, bool there)
        : lane_(thread_index() % warp_size) {
        MVIT_UNROLL
        for (int r = 0; r < phase_rounds; ++r) {
            MVIT_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int n = tile * phase_tile + 16 * r + a_row(lane_, half);
                const bool has = there && n < cut.length;
                const uint8_t* from = q + (has ? pixels(cut, n) : 0);
                MVIT_UNROLL
                for (int k = 0; k < 2 * parts; ++k) {
                    const int c = 16 * k + a_k(lane_, 0), left = cut.depth - c;
                    queries_[r][k / 2][half + k % 2 * 2] = has && left > 0 ? load_channels(from + c, left, cut.alignment > 1) : 0;
                }
            }
        }
    }

    // The largest score of each of this thread's queries.
    MVIT_DEVICE void find_largest(const QPatchAttentionCut& cut, const uint8_t* shared) {
        int32_t most[phase_rounds][2] = {};
        MVIT_ROLLED
        for (const uint8_t* end = shared + cut.head_bytes; shared < end; shared += Step::bytes) {
            MVIT_UNROLL
            for (int half = 0; half < 2; ++half) {
                int32_t scores[phase_rounds][2][4];
                multiply(shared, half, scores);
                MVIT_UNROLL
                for (int i = 0; i < phase_rounds * 8; ++i) {
                    int32_t& so_far = most[i / 8][i % 4 / 2];
                    so_far = Largest()(scores[i / 8][i / 4 % 2][i % 4], so_far);
                }
            }
        }
        MVIT_UNROLL
        for (int i = 0; i < 2 * phase_rounds; ++i)
            largest_[i / 2][i % 2] = of_quad(float_of_bits(static_cast<uint32_t>(most[i / 2][i % 2])), Largest());
    }

    MVIT_DEVICE void attend(const QPatchAttentionCut& cut, float score_steps, const uint8_t* table, const uint8_t* shared) {
        const float places = score_steps * 0x1p-8f;
        const SharedAddress entries(table, anew(static_cast<uint32_t>(lane_) * 4 - (place_bits << 7)));
        MVIT_ROLLED
        for (const uint8_t* end = shared + cut.head_bytes; shared < end; shared += Step::bytes) {
            uint32_t weights[phase_rounds][4];
            MVIT_UNROLL
            for (int half = 0; half < 2; ++half) {
                int32_t scores[phase_rounds][2][4];
                warp_barrier();  // so that no more scores are under way than there are registers for
                multiply(shared, half, scores);
                MVIT_UNROLL
                for (int r = 0; r < phase_rounds; ++r) {
                    MVIT_UNROLL
                    for (int low = 0; low < 2; ++low) {
                        const auto place = [&](int i) {
                            const float score = float_of_bits(static_cast<uint32_t>(scores[r][i / 2][2 * low + i % 2]));
                            return float_bits(multiply_saturated(largest_[r][low] - score, places) + place_of_zero) << 7;
                        };
                        // An entry is the highest byte of a word: that byte, that half and that word have it in their own highest bytes.
                        const uint32_t first = entries.load_u8<3>(place(0)), third = entries.load_u8<3>(place(2));
                        const uint32_t second = entries.load_u16<2>(place(1)), fourth = entries.load_u32(place(3));
                        weights[r][2 * half + low] = (first + (third << 16)) | second | fourth;
                    }
                }
            }
            MVIT_UNROLL
            for (int pair = 0; pair < pairs; ++pair) {
                uint32_t fragment[4];
                ldmatrix_x4(fragment, shared + own_place() + Step::values + pair * Step::pair);
                MVIT_UNROLL
                for (int r = 0; r < phase_rounds; ++r) {
                    mma_u8u8(sums_[r][2 * pair], weights[r], fragment[0], fragment[1], sums_[r][2 * pair]);
                    mma_u8u8(sums_[r][2 * pair + 1], weights[r], fragment[2], fragment[3], sums_[r][2 * pair + 1]);
                }
            }
        }
    }

    MVIT_DEVICE void finish(const QPatchAttentionProblem& p, const QPatchAttentionCut& cut) const {
        const PhaseBlock block(p, cut);
        const int lane = static_cast<int>(anew(static_cast<uint32_t>(thread_index())) % warp_size);
        const PhasePixels pixels(p, block.image, block.phase, p.height * p.width * p.dim, p.width * p.dim, p.dim);
        uint8_t* const y = p.y + pixels.first + (block.head + block.own_head) * cut.depth;
        MVIT_UNROLL
        for (int i = 0; i < 2 * phase_rounds; ++i) {
            const int r = i / 2, half = i % 2;
            // The column of ones is the last one; all sums of exponentials are exact.
            const float total = of_quad(lane % 4 == 3 ? static_cast<float>(sums_[r][2 * pairs - 1][2 * half + 1]) : 0.0f);
            const int n = block.own_tile * phase_tile + 16 * r + a_row(lane, half);
            if (n >= cut.length) continue;
            const float times = p.ratio / total;
            uint8_t* const to = y + pixels(cut, n);
            MVIT_UNROLL
            for (int pair = 0; pair < pairs; ++pair) {
                const int c = 16 * pair + 4 * (lane % 4), left = cut.depth - c;
                if (left <= 0) continue;
                Quad<uint8_t> bytes;
                MVIT_UNROLL
                for (int j = 0; j < 4; ++j) {
                    const int32_t sum =
                        subtract_product(sums_[r][2 * pair + j / 2][2 * half + j % 2], p.v_zero_point, static_cast<int32_t>(total));
                    const float x = static_cast<float>(sum) * times;
                    bytes.v[j] = static_cast<uint8_t>(to_byte(x, p.byte.low, p.byte.high, p.byte.zero_point));
                }
                store_quad(bytes, to + c, left, cut.aligned);
            }
        }
    }

  private:
    // Of what this lane addresses of 16 rows, so that ldmatrix.x4 gives two fragments of b, one after the other.
    MVIT_DEVICE int own_place() const { return Step::place(lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2); }

    // Scores of 16 of 32 keys, as bits of floats.
    MVIT_DEVICE void multiply(const uint8_t* shared, int half, int32_t (&scores)[phase_rounds][2][4]) const {
        struct alignas(8) Two {
            int32_t v[2];
        };
        int32_t starts[2][4];
        MVIT_UNROLL
        for (int j = 0; j < 2; ++j) {
            const auto two = *reinterpret_cast<const Two*>(shared + Step::starts + 4 * (16 * half + 8 * j + c_column(lane_, 0)));
            MVIT_UNROLL
            for (int i = 0; i < 4; ++i) starts[j][i] = two.v[i % 2];
        }
        MVIT_UNROLL
        for (int k = 0; k < parts; ++k) {
            uint32_t fragment[4];
            ldmatrix_x4(fragment, shared + own_place() + k * Step::part + 16 * half * Step::row);
            MVIT_UNROLL
            for (int r = 0; r < phase_rounds; ++r) {
                MVIT_UNROLL
                for (int j = 0; j < 2; ++j)
                    mma_u8u8(scores[r][j], queries_[r][k], fragment[2 * j], fragment[2 * j + 1], k == 0 ? starts[j] : scores[r][j]);
            }
        }
    }

    int lane_;
    uint32_t queries_[phase_rounds][parts][4];
    float largest_[phase_rounds][2];
    int32_t sums_[phase_rounds][2 * pairs][4] = {};
};

// shared: QPatchAttentionCut::bytes, aligned to 16.
template <int pairs>
MVIT_DEVICE void qpatch_attention_block(const QPatchAttentionProblem& p, const QPatchAttentionCut& cut, uint8_t* shared) {
    const PhaseBlock block(p, cut);
    const PhasePixels pixels(p, block.image, block.phase, p.image_stride, p.row_stride, p.pixel_stride);
    const uint8_t* q = p.qkv + pixels.first + block.head * cut.depth;
    uint8_t* const heads = shared + phase_table_bytes;
    load_phase_keys<pairs>(p, cut, q + p.dim, pixels, block.heads, heads);
    load_phase_values<pairs>(cut, q + 2 * p.dim, pixels, block.heads, heads);

    PhaseQueries<pairs> queries(cut, q + block.own_head * cut.depth, pixels, block.own_tile, block.has);
    load_phase_table(p.table, cut.threads(), shared);
    cp_async_wait<0>();
    block_barrier();
    sum_phase_keys<pairs>(cut, p.q_zero_point, block.heads, heads);
    block_barrier();
    if (!block.has) return;
    const uint8_t* of_head = heads + block.own_head * cut.head_bytes;
    queries.find_largest(cut, of_head);
    queries.attend(cut, p.score_steps, shared, of_head);
    queries.finish(p, cut);
}

}  // namespace mvit::cuda
