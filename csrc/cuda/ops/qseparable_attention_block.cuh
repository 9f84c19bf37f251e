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
          across_(static_cast<uint32_t>(map.width / map.patch_width)) {}

    // Of the image, the first pixel of a phase, and from there on that of a point.
    MVIT_BOTH int first(int phase) const { return phase / patch_width_ * width_ + phase % patch_width_; }
    MVIT_BOTH int pixel(int point) const {
        return static_cast<int>(across_(static_cast<uint32_t>(point))) * skipped_ + point * patch_width_;
    }

    int phases, pixels, points;

  private:
    int width_, patch_width_, skipped_;
    Divisor across_;
};

// --- the context: a block is a phase of an image ---

inline constexpr int phase_threads = 256, phase_warps = phase_threads / warp_size;
inline constexpr int phase_loads = 3;  // of a thread, 16 bytes each, that are under way at once
inline constexpr int digit_bits = 7, digits = 3;

// Where things lie in shared memory, and how large they are, in bytes. A parameter of the kernel.
struct PhaseShared {
    int depth;  // tiles of it
    int row, points, scores, weights, bytes;

    PhaseShared(int channels, int points_)
        : depth((channels + tile_depth - 1) / tile_depth),
          row(depth * tile_depth + 16),  // eight rows begin in different banks
          points((points_ + tile_depth - 1) / tile_depth * tile_depth),
          scores(points * row),
          weights(scores + points),
          bytes(weights + digits * points) {}
};

// shared: PhaseShared::bytes, aligned to 16.
MVIT_DEVICE void qattention_context_phase(const QAttentionContextProblem& p, const AttentionPhases& phases, const PhaseShared& at,
                                          uint8_t* shared) {
    const int thread = thread_index() & (phase_threads - 1), lane = thread % warp_size, warp = thread / warp_size;
    const int block = static_cast<int>(block_x()), phase = block % phases.phases, image = block / phases.phases;
    const int channels = p.map.channels, points = phases.points;

    // Threads side by side have eight channels each of as many rows as there are threads for.
    const int chunks = channels / eight, rows = phase_threads / chunks, chunk = thread % chunks, first = thread / chunks;
    const int16_t* from = p.map.x + (int64_t{image} * phases.pixels + phases.first(phase)) * channels + eight * chunk;
    Words<4> held[phase_loads] = {};
    const auto load = [&](int row) {
        MVIT_UNROLL
        for (int i = 0; i < phase_loads; ++i) {
            const int n = row + i * rows;
            if (n < points) held[i] = *reinterpret_cast<const Words<4>*>(from + int64_t{phases.pixel(n)} * channels);
        }
    };
    const int begin = first < rows ? first : points;
    load(begin);  // on its way before the norm is known
    auto* const normals = reinterpret_cast<QPairNormal*>(shared + at.weights);
    if (warp == 0) {
        const QPairNormal own = QPairNormal::of_image(p.map.norm, image, int64_t{phases.pixels} * channels, lane);
        if (lane == 0) *normals = own;
    }
    block_barrier();
    const QPairNormal normal = *normals;
    const QPairBytes bytes(p.map.norm.low, p.map.norm.high, p.map.norm.zero_point);
    MVIT_ROLLED
    for (int row = begin; row < points; row += phase_loads * rows) {
        if (row > begin) load(row);
        MVIT_UNROLL
        for (int i = 0; i < phase_loads; ++i) {
            const auto& x = held[i].v;
            const Words<2> both{{bytes(x[0], x[1], normal), bytes(x[2], x[3], normal)}};
            if (row + i * rows < points) *reinterpret_cast<Words<2>*>(shared + (row + i * rows) * at.row + eight * chunk) = both;
        }
    }
    block_barrier();

    // Scores: a product of 16 rows with one column. What lies beyond the channels meets zeros, and rows beyond the points are not written.
    const auto* query = reinterpret_cast<const uint32_t*>(p.query);
    MVIT_ROLLED
    for (int tile = 16 * warp; tile < points; tile += 16 * phase_warps) {
        int32_t sums[4] = {};
        MVIT_ROLLED
        for (int k = 0; k < at.depth; ++k) {
            uint32_t fragment[4], words[2];
            ldmatrix_x4(fragment, shared + (tile + ldmatrix_row(lane)) * at.row + k * tile_depth + 16 * ldmatrix_chunk(lane));
            MVIT_UNROLL
            for (int i = 0; i < 2; ++i) words[i] = b_column(lane) == 0 ? query[(k * tile_depth + b_k(lane, i)) / 4] : 0;
            mma_u8s8(sums, fragment, words[0], words[1]);
        }
        MVIT_UNROLL
        for (int i = 0; i < 4; i += 2) {
            const QChannels& c = p.query_channels;
            const int n = tile + c_row(lane, i);
            if (c_column(lane, i) == 0 && n < points)
                shared[at.scores + n] = static_cast<uint8_t>(
                    to_byte(static_cast<float>(add(sums[i], c.init[0])) * c.scale[0], c.low[0], c.high[0], c.zero_point[0]));
        }
    }
    block_barrier();

    // Exponentials, in digits of seven bits, which are signed bytes: a product of bytes sums them up. Of 16 points, the four that
    // `pixels` below has in a word lie side by side.
    const uint8_t* const scores = shared + at.scores;
    uint8_t* const weights = shared + at.weights;
    float most = 0.0f;
    MVIT_ROLLED
    for (int n = lane; n < points; n += warp_size) most = Largest()(most, static_cast<float>(scores[n]));
    const int largest = static_cast<int>(of_warp(most, Largest()));
    MVIT_ROLLED
    for (int n = thread; n < at.points; n += phase_threads) {
        const int e = n < points ? p.table[largest - scores[n]] : 0;
        const int place = n / 16 * 16 + n % 8 / 2 * 4 + n % 16 / 8 * 2 + n % 2;
        MVIT_UNROLL
        for (int i = 0; i < digits; ++i) weights[i * at.points + place] = static_cast<uint8_t>(e >> (digit_bits * i) & 127);
    }
    block_barrier();

    const auto* words = reinterpret_cast<const uint32_t*>(weights);
    int32_t all = 0;  // at most 2^16 a point
    MVIT_ROLLED
    for (int n = lane; n < at.points / 4; n += warp_size) {
        MVIT_UNROLL
        for (int i = 0; i < digits; ++i) all += dot4(words[i * at.points / 4 + n], 0x01010101, 0) << (digit_bits * i);
    }
    const double total = of_warp(static_cast<double>(all));

    // Sums: 16 channels, the rows of a product whose depth are the points, with the digits as columns.
    MVIT_ROLLED
    for (int group = 16 * warp; group < channels; group += 16 * phase_warps) {
        int32_t sums[4] = {};
        MVIT_ROLLED
        for (int n = 0; n < at.points; n += tile_depth) {
            uint32_t pairs[4], digit[2];
            ldmatrix_x4_trans(pairs, shared + (n + lane) * at.row + group);
            const uint32_t fragment[4] = {permute(pairs[0], pairs[1], 0x6420), permute(pairs[0], pairs[1], 0x7531),
                                          permute(pairs[2], pairs[3], 0x6420), permute(pairs[2], pairs[3], 0x7531)};
            MVIT_UNROLL
            for (int i = 0; i < 2; ++i) digit[i] = b_column(lane) < digits ? words[(b_column(lane) * at.points + n + b_k(lane, i)) / 4] : 0;
            mma_u8s8(sums, fragment, digit[0], digit[1]);
        }
        // Rows c_row are the even channels and then the odd ones. Lane 0 of four has the low digits of both, lane 1 the high ones.
        const double unit = 1 << digit_bits;
        const bool second = lane % 4 == 1;
        const auto low = [&](int i) { return static_cast<double>(sums[i]) + static_cast<double>(sums[i + 1]) * unit; };
        const double other = shuffle_xor(second ? static_cast<double>(sums[0]) : low(2), 1);
        const double sum = second ? other + static_cast<double>(sums[2]) * unit * unit : low(0) + other * unit * unit;
        const int channel = group + 2 * (lane / 4) + lane % 4;
        if (lane % 4 < 2 && channel < channels) {
            const double t = (sum / total - p.map.norm.zero_point) * p.scale;
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
