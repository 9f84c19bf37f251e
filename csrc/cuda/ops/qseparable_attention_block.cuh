// Blocks of ops/qseparable_attention_block.h.
#pragma once

#include "cuda/ops/qpair.cuh"
#include "cuda/ops/qseparable_attention_block.h"
#include "cuda/primitives/divisor.h"

namespace mvit::cuda {

// Which pixels are in a phase, (y mod ph) pw + x mod pw: its points, row by row.
class AttentionPhases {
  public:
    MVIT_BOTH explicit AttentionPhases(const QAttentionMap& map)
        : phases(map.patch_height * map.patch_width),
          pixels(map.height * map.width),
          points(pixels / phases),
          width_(map.width),
          patch_width_(map.patch_width),
          skipped_((map.patch_height - 1) * map.width),
          of_phases_(static_cast<uint32_t>(phases)),
          of_patch_width_(static_cast<uint32_t>(map.patch_width)),
          of_across_(static_cast<uint32_t>(map.width / map.patch_width)) {}

    MVIT_BOTH int image(int phase_of_all) const { return static_cast<int>(of_phases_(static_cast<uint32_t>(phase_of_all))); }
    // Of the image, the first pixel of a phase, and from there on that of a point.
    MVIT_BOTH int first(int phase) const {
        const int y = static_cast<int>(of_patch_width_(static_cast<uint32_t>(phase)));
        return y * width_ + phase - y * patch_width_;
    }
    MVIT_BOTH int pixel(int point) const {
        return static_cast<int>(of_across_(static_cast<uint32_t>(point))) * skipped_ + point * patch_width_;
    }

    int phases, pixels, points;

  private:
    int width_, patch_width_, skipped_;
    Divisor of_phases_, of_patch_width_, of_across_;
};

// --- the context: a block is a phase of an image ---

inline constexpr int qcontext_threads = 256, qcontext_warps = qcontext_threads / warp_size;
inline constexpr int qcontext_loads = 3;  // of a thread, 16 bytes each, that are under way at once
inline constexpr int digit_bits = 7, exponential_digits = 3;

// Which rows threads load at once, and where things lie in shared memory, in bytes. A parameter of the kernel.
struct QContextShared {
    Divisor of_chunks;  // eight channels each, of a row
    int chunks, rows;   // rows: that there are threads for
    int depth;          // tiles of it
    int row, points, scores, weights, query, bytes;

    QContextShared(int channels, int points_)
        : of_chunks(static_cast<uint32_t>(channels / eight)),
          chunks(channels / eight),
          rows(qcontext_threads / chunks),
          depth((channels + tile_depth - 1) / tile_depth),
          row(depth * tile_depth + 16),  // eight rows begin in different banks
          points((points_ + tile_depth - 1) / tile_depth * tile_depth),
          scores(points * row),
          weights(scores + points),
          query(weights + exponential_digits * points),
          bytes(static_cast<int>(bytes_of(channels, points_))) {}

    // Of all of it, also where that is more than places in it can be counted with.
    static constexpr int64_t bytes_of(int64_t channels, int64_t points) {
        const int64_t row = (channels + tile_depth - 1) / tile_depth * tile_depth;
        return (points + tile_depth - 1) / tile_depth * tile_depth * (row + 16 + 1 + exponential_digits) + row;
    }
};

// shared: QContextShared::bytes, aligned to 16.
MVIT_DEVICE void qattention_context_phase(const QAttentionContextProblem& p, const AttentionPhases& phases, const QContextShared& at,
                                          uint8_t* shared) {
    const int thread = thread_index() & (qcontext_threads - 1), lane = thread % warp_size, warp = thread / warp_size;
    const int block = static_cast<int>(block_x()), image = phases.image(block), phase = block - image * phases.phases;
    const int channels = p.map.channels, points = phases.points, rows = at.rows;

    // Threads side by side have eight channels each of as many rows as there are threads for.
    const int first = static_cast<int>(at.of_chunks(static_cast<uint32_t>(thread))), chunk = thread - first * at.chunks;
    const int16_t* from = p.map.x + (int64_t{image} * phases.pixels + phases.first(phase)) * channels + eight * chunk;
    Words<4> held[qcontext_loads] = {};
    const auto load = [&](int row) {
        MVIT_UNROLL
        for (int i = 0; i < qcontext_loads; ++i) {
            const int n = row + i * rows;
            if (n < points) held[i] = *reinterpret_cast<const Words<4>*>(from + int64_t{phases.pixel(n)} * channels);
        }
    };
    const int begin = first < rows ? first : points;
    load(begin);  // on its way before the norm is known
    if (thread < 2 * at.depth) reinterpret_cast<Sixteen*>(shared + at.query)[thread] = reinterpret_cast<const Sixteen*>(p.query)[thread];
    auto* const normals = reinterpret_cast<QPairNormal*>(shared + at.weights);
    if (warp == 0) {
        const QPairNormal own = QPairNormal::of_image(p.map.norm, image, int64_t{phases.pixels} * channels, lane);
        if (lane == 0) *normals = own;
    }
    block_barrier();
    const QPairNormal normal = *normals;
    const QPairBytes bytes(p.map.norm.low, p.map.norm.high, p.map.norm.zero_point);
    MVIT_ROLLED
    for (int row = begin; row < points; row += qcontext_loads * rows) {
        if (row > begin) load(row);
        MVIT_UNROLL
        for (int i = 0; i < qcontext_loads; ++i) {
            const auto& x = held[i].v;
            const Words<2> both{{bytes(x[0], x[1], normal), bytes(x[2], x[3], normal)}};
            if (row + i * rows < points) *reinterpret_cast<Words<2>*>(shared + (row + i * rows) * at.row + eight * chunk) = both;
        }
    }
    block_barrier();

    // Scores: a product of 16 rows with one column. Its other columns are whatever they are, as are rows beyond the points; what lies
    // beyond the channels meets zeros.
    const QChannels& c = p.query_channels;
    const int32_t init = c.init[0], zero_point = c.zero_point[0];
    const float scale = c.scale[0], low = c.low[0], high = c.high[0];
    MVIT_ROLLED
    for (int tile = 16 * warp; tile < points; tile += 16 * qcontext_warps) {
        int32_t sums[4] = {init, 0, init, 0};
        const uint8_t* a = shared + (tile + ldmatrix_row(lane)) * at.row + 16 * ldmatrix_chunk(lane);
        const uint8_t* b = shared + at.query + b_k(lane, 0);
        MVIT_ROLLED
        for (int k = 0; k < at.depth; ++k, a += tile_depth, b += tile_depth) {
            uint32_t fragment[4];
            ldmatrix_x4(fragment, a);
            mma_u8s8(sums, fragment, *reinterpret_cast<const uint32_t*>(b), *reinterpret_cast<const uint32_t*>(b + 16));
        }
        MVIT_UNROLL
        for (int i = 0; i < 4; i += 2) {
            const int n = tile + c_row(lane, i);
            if (c_column(lane, i) == 0 && n < points)
                shared[at.scores + n] = static_cast<uint8_t>(to_byte(static_cast<float>(sums[i]) * scale, low, high, zero_point));
        }
    }
    block_barrier();

    // Exponentials, in digits of seven bits, which are signed bytes: a product of bytes sums them up. Of 16 points, the four
    // that `pairs` below has in a word lie side by side.
    const uint8_t* const scores = shared + at.scores;
    uint8_t* const weights = shared + at.weights;
    int32_t largest = 0;
    MVIT_ROLLED
    for (int n = lane; n < points; n += warp_size) largest = Largest()(largest, int32_t{scores[n]});
    largest = of_warp(largest, Largest());
    MVIT_ROLLED
    for (int n = thread; n < at.points; n += qcontext_threads) {
        const int e = n < points ? p.table[largest - scores[n]] : 0;
        uint8_t* to = weights + (n & ~15) + 2 * (n & 6) + (n & 8) / 4 + (n & 1);
        MVIT_UNROLL
        for (int i = 0; i < exponential_digits; ++i) to[i * at.points] = static_cast<uint8_t>(e >> (digit_bits * i) & 127);
    }
    block_barrier();

    int32_t total = 0;  // at most 2^16 a point
    MVIT_ROLLED
    for (int n = four * lane; n < at.points; n += four * warp_size) {
        MVIT_UNROLL
        for (int i = 0; i < exponential_digits; ++i)
            total += dot4(*reinterpret_cast<const uint32_t*>(weights + i * at.points + n), 0x01010101, 0) << (digit_bits * i);
    }
    total = of_warp(total);

    // Sums: 16 channels, the rows of a product whose depth are the points, with the digits as columns; the columns beyond are
    // not looked at.
    const double all = total;
    MVIT_ROLLED
    for (int group = 16 * warp; group < channels; group += 16 * qcontext_warps) {
        int32_t sums[4] = {};
        const uint8_t* a = shared + lane * at.row + group;
        const uint8_t* b = weights + (b_column(lane) < exponential_digits ? b_column(lane) : 0) * at.points + b_k(lane, 0);
        MVIT_ROLLED
        for (int n = 0; n < at.points; n += tile_depth, a += tile_depth * at.row, b += tile_depth) {
            uint32_t pairs[4];
            ldmatrix_x4_trans(pairs, a);
            const uint32_t fragment[4] = {permute(pairs[0], pairs[1], 0x6420), permute(pairs[0], pairs[1], 0x7531),
                                          permute(pairs[2], pairs[3], 0x6420), permute(pairs[2], pairs[3], 0x7531)};
            mma_u8s8(sums, fragment, *reinterpret_cast<const uint32_t*>(b), *reinterpret_cast<const uint32_t*>(b + 16));
        }
        // Rows c_row are the even channels and then the odd ones. Lane 0 of four has the low digits of both, lane 1 the high
        // ones; each finishes one of them.
        const bool second = lane % 4 == 1;
        const auto lower = [&](int i) { return sums[i] + (int64_t{sums[i + 1]} << digit_bits); };
        const int64_t other = shuffle_xor(second ? int64_t{sums[0]} : lower(2), 1);
        const int64_t sum = second ? other + (int64_t{sums[2]} << (2 * digit_bits)) : lower(0) + (other << (2 * digit_bits));
        const int channel = group + 2 * (lane / 4) + lane % 4;
        if (lane % 4 < 2 && channel < channels) {
            const double t = (static_cast<double>(sum) / all - p.map.norm.zero_point) * p.scale;
            const double inside = fmin(fmax(t, double{p.byte.low}), double{p.byte.high});
            p.context[int64_t{block} * channels + channel] = static_cast<uint8_t>(static_cast<int>(rint(inside)) + p.byte.zero_point);
        }
    }
}

// --- the values: a block is the pixels of its warps ---

// Points of one phase of an image; a piece is what a warp has.
template <class Shape>
struct QAttentionPlace {
    int64_t image;
    int phase, first;

    MVIT_BOTH static int pieces(const AttentionPhases& phases) {
        return phases.phases * ((phases.points + Shape::pixels - 1) / Shape::pixels);
    }

    MVIT_DEVICE QAttentionPlace(uint32_t piece, const AttentionPhases& phases)
        : image(piece / static_cast<uint32_t>(pieces(phases))), phases_(phases) {
        const int of_image = static_cast<int>(piece % static_cast<uint32_t>(pieces(phases)));
        phase = of_image % phases.phases, first = of_image / phases.phases * Shape::pixels;
    }
    MVIT_DEVICE int64_t operator()(int row) const {
        return first + row < phases_.points ? image * phases_.pixels + phases_.first(phase) + phases_.pixel(first + row) : -1;
    }

  private:
    const AttentionPhases& phases_;
};

// Rows of the numbers of a slice.
enum QAttentionRow { attention_scale = pair_init_rows, attention_rows };

template <class Shape>
struct QAttentionShared {
    static constexpr int slice = Shape::slice_bytes(attention_rows), gates = Shape::stages_bytes(attention_rows);
    static constexpr int gate = Shape::depth * pair_slice;  // floats of a warp
    static constexpr int bytes = gates + Shape::warps * gate * 4;
};

// shared: QAttentionShared::bytes, aligned to 16.
template <class Shape>
MVIT_DEVICE void qattention_values_block(const QAttentionValuesProblem& p, const AttentionPhases& phases, uint8_t* shared) {
    using At = QAttentionShared<Shape>;
    using Place = QAttentionPlace<Shape>;
    using Warp = QPairWarp<Shape>;
    const QAttentionMap& map = p.map;
    const QPairSlices<Shape> slices{p.slices, shared, At::slice, (map.channels + pair_slice - 1) / pair_slice};
    slices.begin();

    const auto thread = static_cast<uint32_t>(thread_index());
    const int lane = static_cast<int>(thread % warp_size);
    const Warp warp(lane);
    const auto piece = static_cast<uint32_t>(block_x()) * Shape::warps + thread / warp_size;  // with those of all blocks below 2^31
    const bool there = piece < map.batch * Place::pieces(phases);                             // else the warp only copies weights
    float* const gates = reinterpret_cast<float*>(shared + At::gates) + thread / warp_size * At::gate;
    typename Warp::Operand normal;
    typename Warp::Sums sums;
    if (there) {
        const Place place(piece, phases);
        const float* key = p.key + (place.image * phases.phases + place.phase) * map.channels;
        for (int c = lane; c < map.channels; c += warp_size) gates[c] = key[c] * p.ratio;
        const QPairStream x{map.x, map.channels, pair_is_aligned(map.x, map.channels)};
        warp.normalise(map.norm, x, place, int64_t{phases.pixels} * map.channels, normal);
        warp.begin(p.out, map.channels, sums);
    }
    const QPairBytes bytes(p.byte.low, p.byte.high, p.byte.zero_point);
    const float* gate = gates;
    slices.each([&](const uint8_t* slice) {
        if (!there) return;
        const auto between = [&](const typename Warp::Hidden& hidden, uint32_t (&to)[Shape::rounds][4]) {
            MVIT_UNROLL
            for (int pair = 0; pair < 2; ++pair) {
                const auto scale = warp.template hidden_quad<float>(slice, attention_scale, pair);
                const auto m = *reinterpret_cast<const Quad<float>*>(gate + 16 * pair + four * (lane % 4));
                MVIT_UNROLL
                for (int i = 0; i < Shape::rounds; ++i) {
                    MVIT_UNROLL
                    for (int half = 0; half < 2; ++half) {
                        const auto own = [&](int c) { return hidden[i][2 * pair + c / 2][2 * half + c % 2]; };
                        Quad<float> v = scaled({{own(0), own(1), own(2), own(3)}}, scale);
                        MVIT_UNROLL
                        for (int c = 0; c < four; ++c) v.v[c] = (fminf(fmaxf(v.v[c], p.v_low), p.v_high) + 0x1.8p23f - 0x1.8p23f) * m.v[c];
                        to[i][half + 2 * pair] = bytes(v.v);
                    }
                }
            }
        };
        warp.multiply(slice, attention_rows, normal, between, sums);
        gate += pair_slice;
    });
    if (there) warp.finish(sums, p.out, map.channels, Place(piece, phases), p.parts ? p.parts + 2 * int64_t{piece} : nullptr);
}

}  // namespace mvit::cuda
