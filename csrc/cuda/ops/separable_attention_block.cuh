// The three kernels of ops/separable_attention_block.h.
#pragma once

#include "cuda/ops/separable_attention_block.h"
#include "cuda/primitives/cp_async.cuh"
#include "cuda/primitives/floats.cuh"
#include "cuda/primitives/mma_f16.cuh"
#include "cuda/primitives/mma_s8.cuh"
#include "cuda/primitives/qfragments.h"
#include "cuda/primitives/swizzle.cuh"
#include "cuda/primitives/warp.cuh"

namespace mvit::cuda {

using AttentionProblem = SeparableAttentionBlockProblem;

template <class T>
struct alignas(16) Eight {
    T v[8];
};

template <class T>
MVIT_DEVICE Eight<T> load_eight(const void* p, int64_t at) {
    return *reinterpret_cast<const Eight<T>*>(static_cast<const T*>(p) + at);
}

// Where things lie in a map. Phases are the pixels of a patch, each with `points` pixels.
struct AttentionMap {
    int width, patch_height, patch_width, pixels, tiles, phases, points;

    MVIT_BOTH explicit AttentionMap(const AttentionProblem& p)
        : width(p.width),
          patch_height(p.patch_height),
          patch_width(p.patch_width),
          pixels(p.height * p.width),
          tiles((pixels + attention_tile - 1) / attention_tile),
          phases(p.patch_height * p.patch_width),
          points(pixels / phases) {}

    MVIT_BOTH int pixel(int phase, int point) const {
        const int across = width / patch_width, y = point / across * patch_height + phase / patch_width;
        return y * width + point % across * patch_width + phase % patch_width;
    }
    MVIT_BOTH int phase(int pixel) const { return pixel / width % patch_height * patch_width + pixel % width % patch_width; }
};

// --- 1: a block is a tile of pixels ---

inline constexpr int score_threads = 128, score_warps = score_threads / warp_size;

// shared: one a warp.
template <class T>
MVIT_DEVICE void attention_scores(const AttentionProblem& p, double* shared) {
    const AttentionMap map(p);
    const int lane = thread_index() % warp_size, warp = thread_index() / warp_size;
    const int64_t image = block_x() / map.tiles;
    const int tile = static_cast<int>(block_x() % map.tiles), first = tile * attention_tile;
    const int count = map.pixels - first < attention_tile ? map.pixels - first : attention_tile;
    const int64_t begin = image * map.pixels + first;

    // body(value, channel) of every value of a pixel that is this lane's.
    const auto each_value = [&](int pixel, const auto& body) {
        for (int c = 8 * lane; c < p.channels; c += 8 * warp_size) {
            const Eight<T> x = load_eight<T>(p.x, (begin + pixel) * p.channels + c);
            MVIT_UNROLL
            for (int i = 0; i < 8; ++i) body(to_float(x.v[i]), c + i);
        }
    };
    float sum = 0.0f;
    for (int pixel = warp; pixel < count; pixel += score_warps) {
        float score = 0.0f;
        each_value(pixel, [&](float x, int c) { score += x * p.query[c], sum += x; });
        score = of_warp(score);
        if (lane == 0) p.scores[begin + pixel] = score;
    }
    if (p.moments) return;
    const double values = static_cast<double>(count) * p.channels;
    const auto about = static_cast<float>(of_block<score_threads>(static_cast<double>(sum), shared) / values);
    float once = 0.0f, twice = 0.0f;
    for (int pixel = warp; pixel < count; pixel += score_warps)
        each_value(pixel, [&](float x, int) {
            const float d = x - about;
            once += d, twice += d * d;
        });
    const double left = of_block<score_threads>(static_cast<double>(once), shared);
    const double squares = of_block<score_threads>(static_cast<double>(twice), shared);
    if (thread_index() == 0) {
        double* to = p.partial + 2 * (image * map.tiles + tile);
        to[0] = static_cast<double>(about) + left / values;
        to[1] = squares - left * left / values;
    }
}

// --- 2: a block is a phase of an image ---

inline constexpr int context_threads = 256, context_warps = context_threads / warp_size;

struct ContextShared {
    double of_warps[context_warps];
    float floats_of_warps[context_warps];
    float weights[context_threads];
    float parts[8 * context_threads];  // of each group of threads, the sums of all channels
    float mixed[attention_most_channels];
};

struct Normal {
    float mean, inverse;
};

MVIT_DEVICE Normal normal_of_image(const AttentionProblem& p, const AttentionMap& map, int64_t image, double* shared) {
    double mean, variance;
    if (p.moments) {
        mean = p.moments[2 * image], variance = p.moments[2 * image + 1];
    } else {
        const double* tiles = p.partial + 2 * image * map.tiles;
        const double all = static_cast<double>(map.pixels) * p.channels;
        const auto share = [&](int tile) {
            const int left = map.pixels - tile * attention_tile;
            return static_cast<double>(left < attention_tile ? left : attention_tile) * p.channels;
        };
        double sum = 0.0, squares = 0.0;
        for (int i = thread_index(); i < map.tiles; i += context_threads) sum += share(i) * tiles[2 * i];
        mean = of_block<context_threads>(sum, shared) / all;
        for (int i = thread_index(); i < map.tiles; i += context_threads) {
            const double d = tiles[2 * i] - mean;
            squares += tiles[2 * i + 1] + share(i) * d * d;
        }
        variance = of_block<context_threads>(squares, shared) / all;
    }
    return {static_cast<float>(mean), static_cast<float>(1.0 / sqrt(variance + static_cast<double>(p.eps)))};
}

template <class T>
MVIT_DEVICE void attention_context(const AttentionProblem& p, ContextShared& shared) {
    const AttentionMap map(p);
    const int64_t image = block_x() / map.phases;
    const int phase = static_cast<int>(block_x() % map.phases), thread = thread_index(), lane = thread % warp_size;
    const Normal normal = normal_of_image(p, map, image, shared.of_warps);
    if (phase == 0 && thread == 0) p.normal[2 * image] = normal.mean, p.normal[2 * image + 1] = normal.inverse;

    const float* scores = p.scores + image * map.pixels;
    float largest = -INFINITY;
    for (int n = thread; n < map.points; n += context_threads) largest = Largest()(scores[map.pixel(phase, n)], largest);
    largest = of_block<context_threads>(largest, shared.floats_of_warps, Largest());

    // Threads side by side take eight channels each, as many groups of them as there are take points by turns.
    const int chunks = p.channels / 8, groups = context_threads / chunks, chunk = thread % chunks, group = thread / chunks;
    float sums[8] = {}, total = 0.0f;
    for (int first = 0; first < map.points; first += context_threads) {
        const int n = first + thread, count = map.points - first < context_threads ? map.points - first : context_threads;
        if (n < map.points) {
            const float weight = expf((scores[map.pixel(phase, n)] - largest) * normal.inverse);
            shared.weights[thread] = weight;
            total += weight;
        }
        block_barrier();
        for (int i = group; i < count && group < groups; i += groups) {
            const int64_t at = image * map.pixels + map.pixel(phase, first + i);
            const Eight<T> x = load_eight<T>(p.x, at * p.channels + 8 * chunk);
            const float weight = shared.weights[i];
            MVIT_UNROLL
            for (int j = 0; j < 8; ++j) sums[j] += weight * to_float(x.v[j]);
        }
        block_barrier();
    }
    total = of_block<context_threads>(total, shared.floats_of_warps);
    if (group < groups) {
        MVIT_UNROLL
        for (int j = 0; j < 8; ++j) shared.parts[group * p.channels + 8 * chunk + j] = sums[j];
    }
    block_barrier();
    for (int c = thread; c < p.channels; c += context_threads) {
        float sum = 0.0f;
        for (int i = 0; i < groups; ++i) sum += shared.parts[i * p.channels + c];
        shared.mixed[c] = p.gamma[c] * ((sum / total - normal.mean) * normal.inverse) + p.beta[c];
    }
    block_barrier();
    float* to = p.context + (image * map.phases + phase) * p.channels;
    for (int row = thread / warp_size; row < p.channels; row += context_warps) {
        float sum = 0.0f;
        for (int c = lane; c < p.channels; c += warp_size) sum += p.key[static_cast<int64_t>(row) * p.channels + c] * shared.mixed[c];
        sum = of_warp(sum);
        if (lane == 0) to[row] = sum + p.key_bias[row];
    }
}

// --- 3: a block is 32 pixels, of any images ---

inline constexpr int value_threads = 128, value_stages = 4, value_columns = fragment_columns, panel_values = row_bytes / 2;
inline constexpr int value_stage_bytes = value_columns * row_bytes;

// Rows of 32 pixels in shared memory, in panels of 64 bytes (swizzle.cuh) of each.
MVIT_BOTH constexpr int value_panels(int channels) { return (channels + panel_values - 1) / panel_values; }
MVIT_BOTH constexpr int value_rows_bytes(int channels) { return value_panels(channels) * attention_tile * row_bytes; }
MVIT_BOTH constexpr int value_shared_bytes(int channels) { return 2 * value_rows_bytes(channels) + value_stages * value_stage_bytes; }
// Of channel c, a multiple of two, of a row.
MVIT_BOTH constexpr int value_place(int row, int c) {
    const int byte = c % panel_values * 2;
    return c / panel_values * attention_tile * row_bytes + swizzled(row, byte / chunk_bytes) + byte % chunk_bytes;
}

template <class T>
struct alignas(4) Two {
    T v[2];
};

// shared: value_shared_bytes, aligned to 16.
template <class T>
MVIT_DEVICE void attention_values(const AttentionProblem& p, uint8_t* shared) {
    const AttentionMap map(p);
    const int thread = thread_index(), lane = thread % warp_size, warp = thread / warp_size, channels = p.channels;
    const int64_t rows = p.batch * map.pixels, first = block_x() * attention_tile;
    const int panels = value_panels(channels), parts = (channels + value_columns - 1) / value_columns, steps = parts * panels;
    uint8_t* normal = shared;
    uint8_t* values = shared + value_rows_bytes(channels);
    uint8_t* ring = values + value_rows_bytes(channels);

    // Stages: 64 bytes of the depth of 64 columns, those of W_v and then those of W_o. A column's depth is rounded up to whole panels.
    constexpr int run_bytes = row_bytes / tile_depth * tile_bytes(8), run_chunks = run_bytes / chunk_bytes;
    const auto load_stage = [&](int stage) {
        const uint8_t* tiles = stage < steps ? p.value_tiles : p.out_tiles;
        const int step = stage % steps, part = step / panels, panel = step % panels;
        uint8_t* to = ring + stage % value_stages * value_stage_bytes;
        MVIT_UNROLL
        for (int i = 0; i < value_stage_bytes / chunk_bytes; i += value_threads) {
            const int c = i + thread;
            const int64_t run = static_cast<int64_t>(part * (value_columns / tile_columns) + c / run_chunks) * panels + panel;
            cp_async16(to + c * chunk_bytes, tiles + run * run_bytes + c % run_chunks * chunk_bytes, chunk_bytes);
        }
    };
    MVIT_UNROLL
    for (int stage = 0; stage < value_stages - 1; ++stage) {
        if (stage < 2 * steps) load_stage(stage);
        cp_async_commit();
    }

    for (int i = thread; i < attention_tile * panels * row_chunks; i += value_threads) {
        const int row = i / (panels * row_chunks), c = i % (panels * row_chunks) * 8;
        Eight<T> x{};  // zeros beyond the channels and the rows
        if (c < channels && first + row < rows) {
            const int64_t image = (first + row) / map.pixels;
            const float mean = p.normal[2 * image], inverse = p.normal[2 * image + 1];
            x = load_eight<T>(p.x, (first + row) * channels + c);
            MVIT_UNROLL
            for (int j = 0; j < 8; ++j) from_float(p.gamma[c + j] * ((to_float(x.v[j]) - mean) * inverse) + p.beta[c + j], &x.v[j]);
        }
        *reinterpret_cast<Eight<T>*>(normal + value_place(row, c)) = x;
        if (c >= channels) *reinterpret_cast<Eight<T>*>(values + value_place(row, c)) = x;
    }

    // Two by two warps, of 16 rows and 32 columns each.
    const int warp_row = warp / 2 * 16, warp_column = warp % 2 * 32;
    float sums[4][4];
    for (int stage = 0; stage < 2 * steps; ++stage) {
        const bool of_out = stage >= steps;
        const int step = stage % steps, part = step / panels, panel = step % panels;
        cp_async_wait<value_stages - 2>();
        block_barrier();
        if (stage + value_stages - 1 < 2 * steps) load_stage(stage + value_stages - 1);
        cp_async_commit();

        if (panel == 0) {
            MVIT_UNROLL
            for (int j = 0; j < 4; ++j) {
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i) sums[j][i] = 0.0f;
            }
        }
        const uint8_t* a = (of_out ? values : normal) + panel * attention_tile * row_bytes;
        const uint8_t* b = ring + stage % value_stages * value_stage_bytes;
        MVIT_UNROLL
        for (int k = 0; k < row_bytes / tile_depth; ++k) {
            uint32_t fragment[4];
            ldmatrix_x4(fragment, a + swizzled(warp_row + ldmatrix_row(lane), 2 * k + ldmatrix_chunk(lane)));
            MVIT_UNROLL
            for (int j = 0; j < 2; ++j) {
                const uint8_t* tile = b + (warp_column / tile_columns + j) * run_bytes + k * tile_bytes(8);
                const auto words = *reinterpret_cast<const Eight<uint16_t>*>(tile + lane * 16);
                const auto word = [&](int i) { return words.v[2 * i] | uint32_t{words.v[2 * i + 1]} << 16; };
                mma(sums[2 * j], fragment, word(0), word(1), T{});
                mma(sums[2 * j + 1], fragment, word(2), word(3), T{});
            }
        }
        if (panel + 1 < panels) continue;

        MVIT_UNROLL
        for (int half = 0; half < 4; half += 2) {
            const int row = warp_row + c_row(lane, half);
            const int64_t m = first + row;
            if (m >= rows) continue;
            const int64_t image = m / map.pixels, phase = map.phase(static_cast<int>(m - image * map.pixels));
            const float* context = p.context + (image * map.phases + phase) * channels;
            MVIT_UNROLL
            for (int j = 0; j < 4; ++j) {
                const int c = part * value_columns + warp_column + 8 * j + c_column(lane, half);
                if (c >= channels) continue;  // c is even, and so are channels
                Two<T> out;
                if (of_out) {
                    const int64_t at = m * channels + c;
                    const auto x = *reinterpret_cast<const Two<T>*>(static_cast<const T*>(p.x) + at);
                    MVIT_UNROLL
                    for (int i = 0; i < 2; ++i) from_float(sums[j][half + i] + p.out_bias[c + i] + to_float(x.v[i]), &out.v[i]);
                    *reinterpret_cast<Two<T>*>(static_cast<T*>(p.y) + at) = out;
                } else {
                    MVIT_UNROLL
                    for (int i = 0; i < 2; ++i) {
                        const float value = sums[j][half + i] + p.value_bias[c + i];
                        from_float(relu(value) * context[c + i], &out.v[i]);
                    }
                    *reinterpret_cast<Two<T>*>(values + value_place(row, c)) = out;
                }
            }
        }
    }
    cp_async_wait<0>();
}

}  // namespace mvit::cuda
