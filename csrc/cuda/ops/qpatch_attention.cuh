// A block of ops/qpatch_attention.h.
#pragma once

#include "cuda/ops/qpatch_attention.h"
#include "cuda/primitives/alignment.h"
#include "cuda/primitives/channels.cuh"
#include "cuda/primitives/divisor.h"
#include "cuda/primitives/mma_s8.cuh"
#include "cuda/primitives/qeight.cuh"
#include "cuda/primitives/shared.cuh"
#include "cuda/primitives/swizzle.cuh"
#include "cuda/primitives/warp.cuh"

namespace mvit::cuda {

inline constexpr uint32_t phase_warps = 8;  // of a block, at most
inline constexpr int phase_rounds = 2;      // 16 queries each, of a warp
inline constexpr uint32_t phase_tile = 16 * phase_rounds;
inline constexpr uint32_t phase_keys = 32;  // that are multiplied at a time
inline constexpr int deepest_head = 64;
inline constexpr int64_t most_phase_pixels = 1 << 14;  // whose exponentials add up to less than 2^22
inline constexpr uint32_t phase_table_rows = 257, phase_table_bytes = phase_table_rows * warp_size * 4;

// What scores begin with, as bits of floats: 1.5 2^23 + S, |S| < 2^22, of keys that there are, and 2^23, less than any, of others.
inline constexpr uint32_t score_of_zero = 0x4B400000, score_of_none = 0x4B000000;
// What is added to a score's place in the table, in [0, 1], so that 256 of it are in the low bits; and these bits without it.
inline constexpr float place_of_zero = 0x1.8p15f;
inline constexpr uint32_t place_bits = 0x47400000;

// Pairs of 8 columns of the second product: the channels of a head and, last, one that adds up exponentials.
MVIT_BOTH constexpr int value_pairs(int depth) { return depth / 16 + 1; }

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
// channel; then what scores begin with. Channels past those of the head are left as they are: keys meet zeros of the queries, and sums of
// values are nobody's.
MVIT_BOTH constexpr int key_parts(int pairs) { return pairs > 2 ? 2 : 1; }
MVIT_BOTH constexpr uint32_t phase_step_bytes(int pairs) {
    return phase_keys * static_cast<uint32_t>(32 * key_parts(pairs) + 16 * pairs + 4);
}

template <int pairs>
struct PhaseStep {
    static constexpr int parts = key_parts(pairs);
    static constexpr uint32_t row = 32, part = phase_keys * row, pair = 16 * row;
    static constexpr uint32_t values = parts * part, starts = values + pairs * pair, bytes = phase_step_bytes(pairs);

    // Half a row. Eight rows fill the banks twice: the upper four have their halves swapped, so that eight first halves fill them once.
    MVIT_BOTH static constexpr uint32_t place(uint32_t r, uint32_t half) { return r * row + (half ^ r / 4 % 2) * chunk_bytes; }
};

// A warp has 32 queries of a head; a block the warps of some heads of a phase with all their queries, or eight of one head. Its shared
// memory has the table, and of each head all keys.
struct PhaseShape {
    int depth, pairs;                  // channels of a head
    uint32_t length, padded;           // pixels of a phase, and rounded up
    uint32_t all_tiles, tiles, heads;  // warps of a head, in all and in a block; heads of a block
    uint32_t head_bytes, bytes;

    // At least one pixel.
    MVIT_BOTH PhaseShape(int64_t all_heads, int64_t pixels, int64_t depth_)
        : depth(static_cast<int>(depth_)),
          pairs(value_pairs(depth)),
          length(static_cast<uint32_t>(pixels)),
          padded((length + phase_keys - 1) / phase_keys * phase_keys),
          all_tiles(padded / phase_tile),
          tiles(all_tiles < phase_warps ? all_tiles : phase_warps),
          heads(all_heads < phase_warps / tiles ? static_cast<uint32_t>(all_heads) : phase_warps / tiles),
          head_bytes(padded / phase_keys * phase_step_bytes(pairs)),
          bytes(phase_table_bytes + heads * head_bytes) {}
    MVIT_BOTH uint32_t threads() const { return tiles * heads * warp_size; }
};

// A map that phases are pixels of: bytes from image to image, row to row and pixel to pixel, of the map and of a phase. An image is of
// fewer than 2^31 bytes.
struct PhaseMap {
    int64_t image_stride, row_stride, pixel_stride;
    uint32_t rows_on, pixels_on;
    bool aligned;  // channels of a head are words
};

struct QPatchAttentionCut : PhaseShape {
    uint32_t columns, all_heads;
    Divisor by_columns, by_padded, by_tiles;
    Digit of_tiles, of_heads, of_across, of_down;  // from the last to the first that a block's number counts; then images
    PhaseMap qkv, y;
    uint32_t ones[deepest_head / 4] = {};  // of the channels

    explicit QPatchAttentionCut(const QPatchAttentionProblem& p)
        : PhaseShape(p.heads, p.height / p.patch_h * (p.width / p.patch_w), p.dim / p.heads),
          columns(small(p.width / p.patch_w)),
          all_heads(small(p.heads)),
          by_columns(columns),
          by_padded(padded),
          by_tiles(tiles),
          of_tiles((all_tiles + tiles - 1) / tiles),
          of_heads((all_heads + heads - 1) / heads),
          of_across(small(p.patch_w)),
          of_down(small(p.patch_h)),
          qkv(map(p, p.qkv, p.image_stride, p.row_stride, p.pixel_stride)),
          y(map(p, p.y, p.height * p.width * p.dim, p.width * p.dim, p.dim)) {
        for (int c = 0; c < depth; ++c) ones[c / 4] |= 1u << (8 * (c % 4));
    }
    int64_t blocks(const QPatchAttentionProblem& p) const { return p.batch * p.patch_h * p.patch_w * of_tiles.count() * of_heads.count(); }

    // Pixel n of a phase, from its first one.
    MVIT_DEVICE uint32_t pixel(const PhaseMap& map, uint32_t n) const {
        const uint32_t row = by_columns(n);
        return row * map.rows_on + (n - row * columns) * map.pixels_on;
    }

  private:
    static uint32_t small(int64_t value) { return static_cast<uint32_t>(value); }
    static PhaseMap map(const QPatchAttentionProblem& p, const uint8_t* data, int64_t image_stride, int64_t row_stride,
                        int64_t pixel_stride) {
        return {image_stride,
                row_stride,
                pixel_stride,
                small(p.patch_h * row_stride),
                small(p.patch_w * pixel_stride),
                alignment_of(data, image_stride, row_stride, pixel_stride, p.dim / p.heads) > 1};
    }
};

// Which queries a block and this warp of it have; found anew wherever it is asked for, rather than kept in registers.
struct PhaseBlock {
    uint32_t image, down, across;  // the phase
    uint32_t head, heads, tile;    // the first head, how many; the first tile
    uint32_t own_head, own_tile;   // of this warp; the head counted from that of the block
    bool has;                      // whether it has queries

    MVIT_DEVICE explicit PhaseBlock(const QPatchAttentionCut& cut) {
        image = anew(static_cast<uint32_t>(block_x()));
        tile = cut.of_tiles.take(image) * cut.tiles;
        head = cut.of_heads.take(image) * cut.heads;
        across = cut.of_across.take(image), down = cut.of_down.take(image);
        heads = cut.all_heads - head < cut.heads ? cut.all_heads - head : cut.heads;
        const uint32_t warp = anew(static_cast<uint32_t>(thread_index())) / warp_size;
        own_head = cut.by_tiles(warp), own_tile = tile + warp - own_head * cut.tiles;
        has = own_head < heads && own_tile < cut.all_tiles;
    }
    // Of the first pixel of the phase.
    MVIT_DEVICE int64_t first(const PhaseMap& map) const {
        return image * map.image_stride + down * map.row_stride + across * map.pixel_stride;
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

// Keys and values of `heads` heads, in the orders of ops/qpatch_attention.h, zeros of keys that are not there; and a last row of values
// that is 1 for those that are. k: of the phase and the first head; v: `to_values` bytes behind.
//
// A thread has four channels of each 16, of four keys.
template <int pairs, bool aligned>
MVIT_DEVICE void load_phase(const QPatchAttentionCut& cut, const uint8_t* k, int64_t to_values, uint32_t heads, uint8_t* shared) {
    using Step = PhaseStep<pairs>;
    const auto row_of = [](uint32_t j) { return j / 2 * 8 + j % 2; };  // also of channels
    MVIT_ROLLED
    for (auto i = static_cast<uint32_t>(thread_index()); i < heads * cut.padded; i += cut.threads()) {
        const uint32_t head = cut.by_padded(i), quad = i % 4, four_keys = (i - head * cut.padded) / 4, half = four_keys / 4 % 2;
        const uint32_t in_half = four_keys % 4, key = four_keys / 8 * phase_keys + half * 16 + in_half * 2;
        const int first = static_cast<int>(4 * quad);
        uint32_t keys[pairs][4], values[pairs][4], ones = 0;
        MVIT_UNROLL
        for (uint32_t j = 0; j < 4; ++j) {
            const uint32_t n = key + row_of(j);
            const bool there = n < cut.length;
            const uint8_t* from = k + (cut.pixel(cut.qkv, there ? n : 0) + head * static_cast<uint32_t>(cut.depth) + 4 * quad);
            MVIT_UNROLL
            for (int pair = 0; pair < pairs; ++pair) {
                const int left = there ? cut.depth - 16 * pair - first : 0;
                keys[pair][j] = left > 0 ? load_channels(from + 16 * pair, left, aligned) : 0;
                values[pair][j] = left > 0 ? load_channels(from + to_values + 16 * pair, left, aligned) : 0;
            }
            ones |= (there ? 1u : 0u) << (8 * j);
        }
        uint8_t* const step = shared + (head * cut.head_bytes + four_keys / 8 * Step::bytes);
        const auto store = [&](uint32_t at, uint32_t word) { *reinterpret_cast<uint32_t*>(step + at) = word; };
        const uint32_t of_keys = Step::place(16 * half + 2 * in_half, 0) + 4 * quad, of_values = Step::place(2 * quad, half) + 4 * in_half;
        MVIT_UNROLL
        for (int pair = 0; pair < pairs; ++pair) {
            if (16 * pair + first >= cut.depth) continue;
            uint32_t channels[4];
            turn(values[pair], channels);
            MVIT_UNROLL
            for (uint32_t j = 0; j < 4; ++j) {
                store(pair / 2 * Step::part + row_of(j) * Step::row + (of_keys ^ pair % 2 * chunk_bytes), keys[pair][j]);
                store(Step::values + pair * Step::pair + row_of(j) * Step::row + of_values, channels[j]);
            }
        }
        if (quad == 3) store(Step::values + (pairs - 1) * Step::pair + Step::place(15, half) + 4 * in_half, ones);
    }
}

// A column of words for each lane, the entry in the highest byte.
MVIT_DEVICE void load_phase_table(const uint8_t* table, uint32_t threads, uint8_t* shared) {
    constexpr uint32_t chunks = warp_size * 4 / chunk_bytes;
    MVIT_ROLLED
    for (auto row = static_cast<uint32_t>(thread_index()); row < phase_table_rows; row += threads) {
        const uint32_t word = uint32_t{table[row < 255 ? row : 255]} << 24;
        MVIT_UNROLL
        for (uint32_t i = 0; i < chunks; ++i)  // neighbours write to different banks
            *reinterpret_cast<Sixteen*>(shared + (row * chunks + (i ^ row % chunks)) * chunk_bytes) = {{word, word, word, word}};
    }
}

// What scores of each key begin with, of keys in shared memory.
template <int pairs>
MVIT_DEVICE void sum_phase_keys(const QPatchAttentionCut& cut, int32_t q_zero_point, uint32_t heads, uint8_t* shared) {
    using Step = PhaseStep<pairs>;
    MVIT_ROLLED
    for (auto i = static_cast<uint32_t>(thread_index()); i < heads * cut.padded; i += cut.threads()) {
        const uint32_t head = cut.by_padded(i), key = i - head * cut.padded;
        uint8_t* const step = shared + (head * cut.head_bytes + key / phase_keys * Step::bytes);
        int32_t sum = 0;
        MVIT_UNROLL
        for (uint32_t c = 0; c < 2 * Step::parts && c < pairs; ++c) {
            const auto chunk = *reinterpret_cast<const Sixteen*>(step + c / 2 * Step::part + Step::place(key % phase_keys, c % 2));
            MVIT_UNROLL
            for (int j = 0; j < 4; ++j) sum = dot4(chunk.words[j], cut.ones[4 * c + j], sum);
        }
        const uint32_t start = key < cut.length ? score_of_zero - static_cast<uint32_t>(q_zero_point * sum) : score_of_none;
        *reinterpret_cast<uint32_t*>(step + Step::starts + key % phase_keys * 4) = start;
    }
}

// The queries of a warp, as the first product takes them, and what becomes of them.
template <int pairs>
class PhaseQueries {
  public:
    using Step = PhaseStep<pairs>;
    static constexpr int parts = Step::parts;

    MVIT_DEVICE PhaseQueries() : lane_(lane()) {}

    // q: of the phase and the head of this warp; 0 past its channels, and where there are no queries.
    template <bool aligned>
    MVIT_DEVICE void load(const QPatchAttentionCut& cut, const uint8_t* q, const PhaseBlock& block) {
        MVIT_UNROLL
        for (uint32_t i = 0; i < 2 * phase_rounds; ++i) {
            const uint32_t n = block.own_tile * phase_tile + 8 * i + lane_ / 4;
            const bool there = block.has && n < cut.length;
            const uint8_t* from = q + cut.pixel(cut.qkv, there ? n : 0);
            MVIT_UNROLL
            for (int k = 0; k < 2 * parts; ++k) {
                const int c = 16 * k + static_cast<int>(lane_ % 4 * 4), left = there ? cut.depth - c : 0;
                queries_[i / 2][k / 2][i % 2 + k % 2 * 2] = left > 0 ? load_channels(from + c, left, aligned) : 0;
            }
        }
    }

    // The largest score of each of this thread's queries.
    MVIT_DEVICE void find_largest(const QPatchAttentionCut& cut, const uint8_t* shared) {
        int32_t most[phase_rounds][2] = {};
        MVIT_ROLLED
        for (const uint8_t* end = shared + cut.head_bytes; shared < end; shared += Step::bytes) {
            MVIT_UNROLL
            for (uint32_t half = 0; half < 2; ++half) {
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
        const SharedAddress entries(table, anew(lane_ * 4 - (place_bits << 7)));
        MVIT_ROLLED
        for (const uint8_t* end = shared + cut.head_bytes; shared < end; shared += Step::bytes) {
            uint32_t weights[phase_rounds][4];
            MVIT_UNROLL
            for (uint32_t half = 0; half < 2; ++half) {
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
        const PhaseBlock block(cut);
        const uint32_t at = lane();
        uint8_t* const y = p.y + block.first(cut.y) + (block.head + block.own_head) * static_cast<uint32_t>(cut.depth);
        MVIT_UNROLL
        for (uint32_t i = 0; i < 2 * phase_rounds; ++i) {
            const uint32_t r = i / 2, half = i % 2;
            // The column of ones is the last one; all sums of exponentials are exact.
            const float total = of_quad(at % 4 == 3 ? static_cast<float>(sums_[r][2 * pairs - 1][2 * half + 1]) : 0.0f);
            const uint32_t n = block.own_tile * phase_tile + 8 * i + at / 4;
            if (n >= cut.length) continue;
            const int32_t exponentials = round_to_int(total);
            const float times = p.ratio / total;
            uint8_t* const to = y + cut.pixel(cut.y, n);
            MVIT_UNROLL
            for (int pair = 0; pair < pairs; ++pair) {
                const int c = 16 * pair + static_cast<int>(at % 4 * 4), left = cut.depth - c;
                if (left <= 0) continue;
                Quad<int32_t> bytes;
                MVIT_UNROLL
                for (uint32_t j = 0; j < 4; ++j) {
                    const int32_t sum = subtract_product(sums_[r][2 * pair + j / 2][2 * half + j % 2], p.v_zero_point, exponentials);
                    const float x = static_cast<float>(sum) * times;
                    bytes.v[j] = rint_bits(fminf(fmaxf(x, p.byte.low), p.byte.high)) + p.byte.zero_point;
                }
                store_channels(low_bytes(bytes), to + c, left, cut.y.aligned);
            }
        }
    }

  private:
    MVIT_DEVICE static uint32_t lane() { return anew(static_cast<uint32_t>(thread_index())) % warp_size; }

    // Of what this lane addresses of 16 rows, so that ldmatrix.x4 gives two fragments of b, one after the other.
    MVIT_DEVICE uint32_t own_place() const { return Step::place(lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2); }

    // Scores of 16 of 32 keys, as bits of floats.
    MVIT_DEVICE void multiply(const uint8_t* shared, uint32_t half, int32_t (&scores)[phase_rounds][2][4]) const {
        struct alignas(8) Two {
            int32_t v[2];
        };
        int32_t starts[2][4];
        MVIT_UNROLL
        for (uint32_t j = 0; j < 2; ++j) {
            const auto two = *reinterpret_cast<const Two*>(shared + Step::starts + 4 * (16 * half + 8 * j + lane_ % 4 * 2));
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

    uint32_t lane_;
    uint32_t queries_[phase_rounds][parts][4];
    float largest_[phase_rounds][2];
    int32_t sums_[phase_rounds][2 * pairs][4] = {};
};

// shared: PhaseShape::bytes, aligned to 16.
template <int pairs>
MVIT_DEVICE void qpatch_attention_block(const QPatchAttentionProblem& p, const QPatchAttentionCut& cut, uint8_t* shared) {
    const PhaseBlock block(cut);
    uint8_t* const heads = shared + phase_table_bytes;
    PhaseQueries<pairs> queries;
    const auto load = [&]<bool aligned>() {
        const uint8_t* q = p.qkv + block.first(cut.qkv) + block.head * static_cast<uint32_t>(cut.depth);
        queries.template load<aligned>(cut, q + block.own_head * static_cast<uint32_t>(cut.depth), block);
        load_phase<pairs, aligned>(cut, q + p.dim, p.dim, block.heads, heads);
    };
    cut.qkv.aligned ? load.template operator()<true>() : load.template operator()<false>();
    load_phase_table(p.table, cut.threads(), shared);
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
