// Blocks of ops/qseparable_attention_block.h.
#pragma once

#include "cuda/ops/qseparable_attention_block.h"
#include "cuda/primitives/divisor.h"
#include "cuda/primitives/dot4.cuh"
#include "cuda/primitives/mma_s8.cuh"
#include "cuda/primitives/qeight.cuh"
#include "cuda/primitives/qfragments.h"
#include "cuda/primitives/warp.cuh"

namespace mvit::cuda {

// Point n of a phase (y mod ph) pw + x mod pw is the pixel of the map that is its n-th, row by row.
class PhasePoints {
  public:
    MVIT_BOTH PhasePoints(int height, int width, int patch_height, int patch_width)
        : points(height / patch_height * (width / patch_width)),
          width_(width),
          patch_width_(patch_width),
          skipped_((patch_height - 1) * width),
          across_(static_cast<uint32_t>(width / patch_width)) {}

    MVIT_BOTH int first(int phase) const { return phase / patch_width_ * width_ + phase % patch_width_; }
    // From the first one on.
    MVIT_BOTH int pixel(int n) const { return static_cast<int>(across_(static_cast<uint32_t>(n))) * skipped_ + n * patch_width_; }

    int points;

  private:
    int width_, patch_width_, skipped_;
    Divisor across_;
};

// --- the context: a block is a phase of an image ---

inline constexpr int phase_threads = 256, phase_warps = phase_threads / warp_size;
inline constexpr int phase_loads = 4;  // of a thread, 16 bytes each, that are under way at once
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

struct QNormal {
    float mean, factor;
};

MVIT_DEVICE QNormal normal_of(const QAttentionContextProblem& p, int image) {
    const double each = static_cast<double>(p.height) * p.width * p.channels;
    const double mean = static_cast<double>(p.sums[2 * image]) / each;
    const double difference = static_cast<double>(p.sums[2 * image + 1]) / each - mean * mean;
    const double variance = difference > 0.0 ? difference : 0.0;
    return {static_cast<float>(mean), static_cast<float>(p.ratio / sqrt(variance * p.power + p.eps))};
}

// Bytes of four values of the stream.
MVIT_DEVICE uint32_t normal_bytes(uint32_t low, uint32_t high, QNormal normal, const QByte& byte) {
    Quad<int32_t> q;
    MVIT_UNROLL
    for (int i = 0; i < four; ++i) {
        const auto x = static_cast<float>(static_cast<int16_t>((i < 2 ? low : high) >> (16 * (i % 2))));
        q.v[i] = rint_bits(fminf(fmaxf((x - normal.mean) * normal.factor, byte.low), byte.high)) + byte.zero_point;
    }
    return low_bytes(q);
}

// shared: PhaseShared::bytes, aligned to 16.
MVIT_DEVICE void qattention_context_phase(const QAttentionContextProblem& p, const PhasePoints& map, const PhaseShared& at,
                                          uint8_t* shared) {
    const int thread = thread_index() & (phase_threads - 1), lane = thread % warp_size, warp = thread / warp_size;
    const int block = static_cast<int>(block_x()), phases = p.patch_height * p.patch_width, phase = block % phases, image = block / phases;

    // Threads side by side have eight channels each of as many rows as there are threads for.
    const int chunks = p.channels / 8, rows = phase_threads / chunks, chunk = thread % chunks, first = thread / chunks;
    const int16_t* from = p.x + (int64_t{image} * p.height * p.width + map.first(phase)) * p.channels + 8 * chunk;
    Quad<uint32_t> held[phase_loads] = {};
    const auto load = [&](int row) {
        MVIT_UNROLL
        for (int i = 0; i < phase_loads; ++i) {
            const int n = row + i * rows;
            if (n < map.points) held[i] = *reinterpret_cast<const Quad<uint32_t>*>(from + int64_t{map.pixel(n)} * p.channels);
        }
    };
    const int begin = first < rows ? first : map.points;
    load(begin);  // on its way before the normal is known
    auto* const normals = reinterpret_cast<QNormal*>(shared + at.weights);
    if (thread == 0) *normals = normal_of(p, image);
    block_barrier();
    const QNormal normal = *normals;
    MVIT_ROLLED
    for (int row = begin; row < map.points; row += phase_loads * rows) {
        if (row > begin) load(row);
        MVIT_UNROLL
        for (int i = 0; i < phase_loads; ++i) {
            const auto& v = held[i].v;
            struct alignas(8) Eight {
                uint32_t v[2];
            } bytes{{normal_bytes(v[0], v[1], normal, p.norm), normal_bytes(v[2], v[3], normal, p.norm)}};
            if (row + i * rows < map.points) *reinterpret_cast<Eight*>(shared + (row + i * rows) * at.row + 8 * chunk) = bytes;
        }
    }
    block_barrier();

    // Scores: a product of 16 rows with one column. What lies beyond the channels meets zeros, and rows beyond the points are not written.
    const auto* query = reinterpret_cast<const uint32_t*>(p.query);
    MVIT_ROLLED
    for (int tile = 16 * warp; tile < map.points; tile += 16 * phase_warps) {
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
            if (c_column(lane, i) == 0 && n < map.points)
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
    for (int n = lane; n < map.points; n += warp_size) most = Largest()(most, static_cast<float>(scores[n]));
    const int largest = static_cast<int>(of_warp(most, Largest()));
    for (int n = thread; n < at.points; n += phase_threads) {
        const int e = n < map.points ? p.table[largest - scores[n]] : 0;
        const int place = n / 16 * 16 + n % 8 / 2 * 4 + n % 16 / 8 * 2 + n % 2;
        MVIT_UNROLL
        for (int i = 0; i < digits; ++i) weights[i * at.points + place] = static_cast<uint8_t>(e >> (digit_bits * i) & 127);
    }
    block_barrier();

    const auto* words = reinterpret_cast<const uint32_t*>(weights);
    int32_t all = 0;  // at most 2^16 a point
    for (int n = lane; n < at.points / 4; n += warp_size) {
        MVIT_UNROLL
        for (int i = 0; i < digits; ++i) all += dot4(words[i * at.points / 4 + n], 0x01010101, 0) << (digit_bits * i);
    }
    const double total = of_warp(static_cast<double>(all));

    // Sums: 16 channels, the rows of a product whose depth are the points, with the digits as columns.
    MVIT_ROLLED
    for (int group = 16 * warp; group < p.channels; group += 16 * phase_warps) {
        int32_t sums[4] = {};
        MVIT_ROLLED
        for (int n = 0; n < at.points; n += tile_depth) {
            uint32_t pairs[4], digit[2];
            ldmatrix_x4_trans(pairs, shared + (n + lane) * at.row + group);
            const uint32_t fragment[4] = {permute(pairs[0], pairs[1], 0x6420), permute(pairs[0], pairs[1], 0x7531),
                                          permute(pairs[2], pairs[3], 0x6420), permute(pairs[2], pairs[3], 0x7531)};
            MVIT_UNROLL
            for (int i = 0; i < 2; ++i)
                digit[i] = b_column(lane) < digits ? words[(b_column(lane) * at.points + n + b_k(lane, i)) / 4] : 0;
            mma_u8s8(sums, fragment, digit[0], digit[1]);
        }
        // Rows c_row are the even channels and then the odd ones. Lane 0 of four has the low digits of both, lane 1 the high ones.
        const double unit = 1 << digit_bits;
        const bool second = lane % 4 == 1;
        const auto low = [&](int i) { return static_cast<double>(sums[i]) + static_cast<double>(sums[i + 1]) * unit; };
        const double other = shuffle_xor(second ? static_cast<double>(sums[0]) : low(2), 1);
        const double sum = second ? other + static_cast<double>(sums[2]) * unit * unit : low(0) + other * unit * unit;
        const int channel = group + 2 * (lane / 4) + lane % 4;
        if (lane % 4 < 2 && channel < p.channels) {
            const double t = (sum / total - p.norm.zero_point) * p.scale;
            const double inside = fmin(fmax(t, double{p.byte.low}), double{p.byte.high});
            p.context[int64_t{block} * p.channels + channel] = static_cast<uint8_t>(static_cast<int>(rint(inside)) + p.byte.zero_point);
        }
    }
}

}  // namespace mvit::cuda
