// A block of ops/separable_attention_image.h.
#pragma once

#include "cuda/ops/separable_attention_image.h"
#include "cuda/primitives/cp_async.cuh"
#include "cuda/primitives/divisor.h"
#include "cuda/primitives/floats.cuh"
#include "cuda/primitives/mma_f16.cuh"
#include "cuda/primitives/mma_s8.cuh"
#include "cuda/primitives/qfragments.h"
#include "cuda/primitives/warp.cuh"

namespace mvit::cuda {

using AttentionImageProblem = SeparableAttentionImageProblem;

inline constexpr int image_threads = 256, image_warps = image_threads / warp_size;
inline constexpr int warp_pixels = 32, pass_pixels = image_warps * warp_pixels;
inline constexpr int stage_columns = 32, image_stages = 3;
inline constexpr int most_contexts = 16;  // phases of all images of a block: rows of one product

// Where things lie in shared memory, in bytes, and what a block has. A parameter of the kernel. depth: tiles of 16 channels.
template <int depth>
struct AttentionImageShared {
    static constexpr int channels = 16 * depth, row = 2 * channels + 16, stage = stage_columns / tile_columns * depth * tile_bytes(8);
    static constexpr int stages_of_matrix = channels / stage_columns;
    static constexpr int groups = image_threads / (channels / 8);  // of threads that share eight channels each
    // Of the sums of a phase's pixels, as many as there are groups, or phases.
    static constexpr int most_parts = groups > most_contexts ? groups : most_contexts;

    // What blocks of a cluster tell each other, in bytes: of x and of y a sum and one of squares; of each context the largest score, the
    // sum of the weights, and the sum of the pixels by their weights.
    static constexpr int of_contexts = 32, exchange = of_contexts + most_contexts * 4 * (2 + channels);

    int images, cluster, height, pixels;  // images of a block, or blocks of an image; its rows and pixels of an image
    int phases, rows, passes;             // rows: pixels of all images of a block, up to whole blocks of 32
    int ring, mixed, context, bias, scores, parts, told, normal, bytes;
    Digit of_pixels;
    Digit of_width;
    Divisor of_patch_height, of_patch_width, of_across;  // across: patches of a row

    // One of images_ and cluster_ is 1. Blocks of an image have whole patches of it.
    AttentionImageShared(int images_, int cluster_, int height_, int width, int patch_height, int patch_width)
        : images(images_),
          cluster(cluster_),
          height((height_ / patch_height + cluster - 1) / cluster * patch_height),
          pixels(height * width),
          phases(patch_height * patch_width),
          rows((images * pixels + warp_pixels - 1) / warp_pixels * warp_pixels),
          passes((rows + pass_pixels - 1) / pass_pixels),
          ring(rows * row),
          mixed(ring + image_stages * stage),
          context(mixed + most_contexts * row),
          bias(context + images * phases * channels * 4),
          scores(bias + images * channels * 4),
          parts(scores + rows * 4),
          told(parts + most_parts * channels * 4),
          normal(told + (cluster == 1 ? exchange : 0)),
          bytes(normal + images * 16 + image_warps * 8),
          of_pixels(static_cast<uint32_t>(pixels)),
          of_width(static_cast<uint32_t>(width)),
          of_patch_height(static_cast<uint32_t>(patch_height)),
          of_patch_width(static_cast<uint32_t>(patch_width)),
          of_across(static_cast<uint32_t>(width / patch_width)) {}
};

// Of an image; in shared memory.
struct alignas(16) ImageNormal {
    float mean, inverse, about, unused;
};

template <class T, int depth>
class AttentionImage {
  public:
    using Shared = AttentionImageShared<depth>;

    // shared: Shared::bytes, aligned to 16.
    MVIT_DEVICE AttentionImage(const AttentionImageProblem& p, const Shared& at, uint8_t* shared)
        : p_(p),
          at_(at),
          x_(shared),
          shared_(shared),
          first_(block_x() / at.cluster * at.images),
          rank_(static_cast<int>(block_x() % at.cluster)),
          source_(p.tiles),
          passes_left_(at.passes) {
        const int64_t left = p.batch - first_;
        images_ = left < at.images ? static_cast<int>(left) : at.images;
        const int rows_left = p.height - rank_ * at.height;
        own_ = (rows_left < 0 ? 0 : rows_left < at.height ? rows_left : at.height) * p.width;
    }

    MVIT_DEVICE void operator()() {
        load_x();
        load_stage(), load_stage();
        cp_async_wait<2>();
        block_barrier();
        for (int image = 0; image < images_; ++image) measure(image);
        find_largest();
        meet();
        settle();
        weigh();
        block_barrier();
        mix();
        block_barrier();
        gather();
        meet();
        finish_mixing();
        each_stage([&](int stage, const uint8_t* tiles) { of_keys(stage, tiles); });
        MVIT_ROLLED
        for (int pass = 0; pass < at_.passes; ++pass) products(pass);
        cp_async_wait<0>();
        if (p_.moments) write_moments();
    }

  private:
    static constexpr int chunks = Shared::channels / 8, chunk_steps = chunks / 8;
    static_assert(chunks % 8 == 0);
    static constexpr int blocks = warp_pixels / 16;
    struct alignas(8) FourValues {
        uint32_t words[2];
    };
    // Eight channels, of a row in shared memory.
    struct Values {
        float v[8];
        MVIT_DEVICE explicit Values(const uint8_t* from) {
            const Sixteen some = *reinterpret_cast<const Sixteen*>(from);
            MVIT_UNROLL
            for (int i = 0; i < 4; ++i) {
                const Unpacked<T> two(some.words[i]);
                v[2 * i] = two.low, v[2 * i + 1] = two.high;
            }
        }
    };

    const AttentionImageProblem& p_;
    const Shared& at_;
    uint8_t *x_, *shared_;
    int64_t first_;            // image
    int rank_, images_, own_;  // own: pixels of an image
    const uint8_t* source_;    // of the next stage
    int passes_left_, to_ = 0, from_ = 0;
    float once_[blocks][2] = {}, twice_[blocks][2] = {};  // of the results of each row: distances from the mean of x, and their squares

    MVIT_DEVICE const float* vector(AttentionVector which) const { return p_.vectors + which * Shared::channels; }
    MVIT_DEVICE float* floats(int at) const { return reinterpret_cast<float*>(shared_ + at); }
    MVIT_DEVICE ImageNormal& normal(int image) const { return reinterpret_cast<ImageNormal*>(shared_ + at_.normal)[image]; }
    MVIT_DEVICE int count() const { return images_ * own_; }
    MVIT_DEVICE int64_t first_pixel() const { return first_ * p_.height * p_.width + int64_t{rank_} * at_.pixels; }
    MVIT_DEVICE double values_of_image() const { return static_cast<double>(int64_t{p_.height} * p_.width * p_.channels); }

    // What each block of the cluster tells: alone it does so in its own shared memory.
    MVIT_DEVICE uint8_t* told(int rank) const {
        return at_.cluster == 1 ? shared_ + at_.told : p_.exchange + (first_ * at_.cluster + rank) * Shared::exchange;
    }
    MVIT_DEVICE double* told_sums(int rank) const { return reinterpret_cast<double*>(told(rank)); }
    MVIT_DEVICE float* told_largest(int rank) const { return reinterpret_cast<float*>(told(rank) + Shared::of_contexts); }
    MVIT_DEVICE float* told_totals(int rank) const { return told_largest(rank) + most_contexts; }
    MVIT_DEVICE float* told_pixels(int rank) const { return told_totals(rank) + most_contexts; }
    MVIT_DEVICE void meet() const { at_.cluster == 1 ? block_barrier() : cluster_barrier(); }

    MVIT_DEVICE void load_x() {
        const auto* from = static_cast<const uint8_t*>(p_.x);
        const int64_t first = first_pixel();
        const int all = count(), here = p_.channels / 8;
        MVIT_ROLLED
        for (int i = thread_index(); i < at_.rows * chunks; i += image_threads) {
            const int row = i / chunks, chunk = i % chunks;
            const bool is_there = row < all && chunk < here;
            cp_async16(x_ + row * Shared::row + 16 * chunk, from + (is_there ? ((first + row) * here + chunk) * 16 : 0), is_there ? 16 : 0);
        }
        cp_async_commit();
    }

    // The ring: stages in the order in which they are used, those of W_k once, of W_v and W_o once a pass.
    MVIT_DEVICE void load_stage() {
        if (passes_left_ > 0) {
            uint8_t* to = shared_ + at_.ring + to_ * Shared::stage + 16 * thread_index();
            const uint8_t* from = source_ + 16 * thread_index();
            MVIT_UNROLL
            for (int i = 0; i < Shared::stage; i += 16 * image_threads)
                if (Shared::stage % (16 * image_threads) == 0 || i + 16 * thread_index() < Shared::stage) cp_async16(to + i, from + i, 16);
            source_ += Shared::stage;
            if (source_ == p_.tiles + 3 * Shared::stages_of_matrix * Shared::stage) {
                --passes_left_;
                source_ -= 2 * Shared::stages_of_matrix * Shared::stage;
            }
        }
        cp_async_commit();
        to_ = to_ + 1 < image_stages ? to_ + 1 : 0;
    }
    // The next stage is there, and the one after the next on its way to where the one before was.
    MVIT_DEVICE const uint8_t* next_stage() {
        cp_async_wait<image_stages - 2>();
        block_barrier();
        load_stage();
        const uint8_t* stage = shared_ + at_.ring + from_ * Shared::stage;
        from_ = from_ + 1 < image_stages ? from_ + 1 : 0;
        return stage;
    }
    template <class Body>
    MVIT_DEVICE void each_stage(const Body& body) {
        MVIT_ROLLED
        for (int stage = 0; stage < Shared::stages_of_matrix; ++stage) body(stage, next_stage());
    }

    // Scores, mean and variance of an image. Eight lanes have a row.
    MVIT_DEVICE void measure(int image) {
        const int thread = thread_index(), inside = thread % 8;
        const int begin = image * at_.pixels;
        const auto* first = static_cast<const uint8_t*>(p_.x) + (first_ + image) * p_.height * p_.width * p_.channels * 2;
        const auto each_chunk = [&](const auto& body) {
            MVIT_UNROLL
            for (int i = 0; i < chunk_steps; ++i)
                if (8 * (inside + 8 * i) < p_.channels) body(inside + 8 * i, i);
        };
        const auto of_eight = [](float x) {
            MVIT_UNROLL
            for (int mask = 4; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
            return x;
        };
        float query[chunk_steps][8], sum = 0.0f;
        each_chunk([&](int chunk, int i) {
            const Values values(first + 16 * chunk);
            MVIT_UNROLL
            for (int k = 0; k < 8; ++k) sum += values.v[k], query[i][k] = vector(attention_query)[8 * chunk + k];
        });
        const float about = of_eight(sum) / static_cast<float>(p_.channels);
        float once = 0.0f, twice = 0.0f;
        MVIT_ROLLED
        for (int n = thread / 8; n - thread / 8 < own_; n += image_threads / 8) {
            float score = 0.0f;
            if (n < own_) {
                each_chunk([&](int chunk, int i) {
                    const Values values(x_ + (begin + n) * Shared::row + 16 * chunk);
                    MVIT_UNROLL
                    for (int k = 0; k < 8; ++k) {
                        const float d = values.v[k] - about;
                        once += d, twice = fmaf(d, d, twice), score = fmaf(d, query[i][k], score);
                    }
                });
            }
            score = of_eight(score);
            if (inside == 0 && n < own_) floats(at_.scores)[begin + n] = score;
        }
        auto* of_warps = reinterpret_cast<double*>(shared_ + at_.normal + at_.images * 16);
        const double sum_of_all = of_block<image_threads>(static_cast<double>(once), of_warps);
        const double squares_of_all = of_block<image_threads>(static_cast<double>(twice), of_warps);
        if (thread == 0) {
            normal(image).about = about;
            if (at_.cluster == 1) {
                set_normal(image, sum_of_all, squares_of_all);
            } else {
                told_sums(rank_)[0] = sum_of_all, told_sums(rank_)[1] = squares_of_all;
            }
        }
    }

    // Of sums of distances from `about`, and of their squares.
    MVIT_DEVICE void set_normal(int image, double once, double twice) const {
        const double left = once / values_of_image(), variance = twice / values_of_image() - left * left;
        ImageNormal& of = normal(image);
        of.mean = static_cast<float>(static_cast<double>(of.about) + left);
        of.inverse = static_cast<float>(1.0 / sqrt((variance < 0.0 ? 0.0 : variance) + static_cast<double>(p_.eps)));
    }

    // The mean and variance of an image of which several blocks have told theirs.
    MVIT_DEVICE void settle() {
        if (at_.cluster == 1) return;
        if (thread_index() == 0) {
            double once = 0.0, twice = 0.0;
            for (int rank = 0; rank < at_.cluster; ++rank) once += told_sums(rank)[0], twice += told_sums(rank)[1];
            set_normal(0, once, twice);
        }
        block_barrier();
    }

    MVIT_DEVICE int pixel(int phase, int point) const {
        const auto patch = static_cast<uint32_t>(point), row = at_.of_across(patch);
        const auto down = at_.of_patch_width(static_cast<uint32_t>(phase));
        const int across = p_.width / p_.patch_width;
        const int y = static_cast<int>(row) * p_.patch_height + static_cast<int>(down);
        const int x = (point - static_cast<int>(row) * across) * p_.patch_width + phase - static_cast<int>(down) * p_.patch_width;
        return y * p_.width + x;
    }
    MVIT_DEVICE int phase_of(int pixel) const {
        auto row = static_cast<uint32_t>(pixel);
        const uint32_t column = at_.of_width.take(row);
        const auto inside = [](uint32_t x, const Divisor& by, int size) { return static_cast<int>(x) - static_cast<int>(by(x)) * size; };
        return inside(row, at_.of_patch_height, p_.patch_height) * p_.patch_width + inside(column, at_.of_patch_width, p_.patch_width);
    }

    // A warp has a phase of an image; body(context, phase, scores of the image).
    template <class Body>
    MVIT_DEVICE void each_context(const Body& body) const {
        MVIT_ROLLED
        for (int i = thread_index() / warp_size; i < images_ * at_.phases; i += image_warps)
            body(i, i % at_.phases, floats(at_.scores) + i / at_.phases * at_.pixels);
    }
    MVIT_DEVICE void find_largest() {
        const int lane = thread_index() % warp_size, points = own_ / at_.phases;
        each_context([&](int i, int phase, const float* scores) {
            float largest = -INFINITY;
            for (int n = lane; n < points; n += warp_size) largest = Largest()(scores[pixel(phase, n)], largest);
            largest = of_warp(largest, Largest());
            if (lane == 0) told_largest(rank_)[i] = largest;
        });
    }
    // Scores to weights, whose sum is left for later.
    MVIT_DEVICE void weigh() {
        const int lane = thread_index() % warp_size, points = own_ / at_.phases;
        each_context([&](int i, int phase, float* scores) {
            const float inverse = normal(i / at_.phases).inverse;
            float largest = -INFINITY, total = 0.0f;
            for (int rank = 0; rank < at_.cluster; ++rank) largest = Largest()(told_largest(rank)[i], largest);
            for (int n = lane; n < points; n += warp_size) {
                float& score = scores[pixel(phase, n)];
                score = expf((score - largest) * inverse), total += score;
            }
            total = of_warp(total);
            if (lane == 0) told_totals(rank_)[i] = total;
        });
    }

    // Of each phase, in parts, the sum of its pixels by their weights; a group of threads has a part.
    MVIT_DEVICE int parts_of_each() const { return Shared::groups > images_ * at_.phases ? Shared::groups / (images_ * at_.phases) : 1; }
    MVIT_DEVICE void mix() {
        const int contexts = images_ * at_.phases, lots = parts_of_each();
        const int group = thread_index() / chunks, chunk = thread_index() % chunks;
        if (group >= Shared::groups) return;  // there is no barrier in here
        MVIT_ROLLED
        for (int i = group; i < contexts * lots; i += Shared::groups) {
            const int image = i / lots / at_.phases, phase = i / lots % at_.phases;
            const uint8_t* from = x_ + image * at_.pixels * Shared::row + 16 * chunk;
            const float* weights = floats(at_.scores) + image * at_.pixels;
            float sums[8] = {};
            // Rows of patches by turns.
            for (int y = phase / p_.patch_width + i % lots * p_.patch_height; y * p_.width < own_; y += lots * p_.patch_height) {
                for (int n = y * p_.width + phase % p_.patch_width; n < (y + 1) * p_.width; n += p_.patch_width) {
                    const Values values(from + n * Shared::row);
                    MVIT_UNROLL
                    for (int k = 0; k < 8; ++k) sums[k] = fmaf(weights[n], values.v[k], sums[k]);
                }
            }
            auto* to = reinterpret_cast<Quad<float>*>(floats(at_.parts) + i * Shared::channels + 8 * chunk);
            to[0] = {{sums[0], sums[1], sums[2], sums[3]}}, to[1] = {{sums[4], sums[5], sums[6], sums[7]}};
        }
    }

    MVIT_DEVICE void gather() {
        const int lots = parts_of_each();
        MVIT_ROLLED
        for (int i = thread_index(); i < images_ * at_.phases * Shared::channels; i += image_threads) {
            const int context = i / Shared::channels, c = i % Shared::channels;
            float sum = 0.0f;
            for (int part = 0; part < lots; ++part) sum += floats(at_.parts)[(context * lots + part) * Shared::channels + c];
            told_pixels(rank_)[i] = sum;
        }
    }

    // Rows of the product with W_k, and what values of an image begin with.
    MVIT_DEVICE void finish_mixing() {
        const int contexts = images_ * at_.phases;
        MVIT_ROLLED
        for (int i = thread_index(); i < most_contexts * Shared::channels / 2; i += image_threads) {
            const int row = i / (Shared::channels / 2), c = i % (Shared::channels / 2) * 2;
            float low = 0.0f, high = 0.0f;
            if (row < contexts && c < p_.channels) {
                float total = 0.0f;
                for (int rank = 0; rank < at_.cluster; ++rank) {
                    const float* sums = told_pixels(rank) + row * Shared::channels + c;
                    total += told_totals(rank)[row], low += sums[0], high += sums[1];
                }
                const ImageNormal of = normal(row / at_.phases);
                low = (low / total - of.mean) * of.inverse, high = (high / total - of.mean) * of.inverse;
            }
            *reinterpret_cast<uint32_t*>(shared_ + at_.mixed + row * Shared::row + 2 * c) = from_floats(low, high, T{});
        }
        MVIT_ROLLED
        for (int i = thread_index(); i < images_ * Shared::channels; i += image_threads) {
            const int image = i / Shared::channels, c = i % Shared::channels;
            const ImageNormal of = normal(image);
            floats(at_.bias)[i] = vector(attention_value_bias)[c] - of.inverse * of.mean * vector(attention_value_sums)[c];
        }
    }

    // Two warps have 16 columns of a stage each, in four sums, which wait for each other less.
    MVIT_DEVICE void of_keys(int stage, const uint8_t* tiles) {
        const int lane = thread_index() % warp_size, warp = thread_index() / warp_size, tile = warp % 2;
        if (warp / 2 != stage % (image_warps / 2)) return;
        float sums[4][2][4] = {};
        const uint8_t* a = shared_ + at_.mixed + ldmatrix_row(lane) * Shared::row + 16 * ldmatrix_chunk(lane);
        const uint8_t* b = tiles + tile * depth * tile_bytes(8) + 16 * lane;
        MVIT_UNROLL
        for (int k = 0; k < depth; ++k) {
            uint32_t rows[4];
            ldmatrix_x4(rows, a + k * tile_depth);
            const Sixteen words = *reinterpret_cast<const Sixteen*>(b + k * tile_bytes(8));
            mma(sums[k % 4][0], rows, words.words[0], words.words[1], T{});
            mma(sums[k % 4][1], rows, words.words[2], words.words[3], T{});
        }
        const int c = stage * stage_columns + tile * tile_columns + 4 * (lane % 4);
        const Quad<float> bias = *reinterpret_cast<const Quad<float>*>(vector(attention_key_bias) + c);
        MVIT_UNROLL
        for (int half = 0; half < 2; ++half) {
            const int row = c_row(lane, 2 * half);
            if (row >= images_ * at_.phases) continue;
            Quad<float> result;
            MVIT_UNROLL
            for (int k = 0; k < 4; ++k) {
                const int i = 2 * half + k % 2;
                result.v[k] = bias.v[k] + ((sums[0][k / 2][i] + sums[1][k / 2][i]) + (sums[2][k / 2][i] + sums[3][k / 2][i]));
            }
            *reinterpret_cast<Quad<float>*>(floats(at_.context) + row * Shared::channels + c) = result;
        }
    }

    // Both products of 256 pixels.
    MVIT_DEVICE void products(int pass) {
        const int lane = thread_index() % warp_size, begin = pass * pass_pixels + thread_index() / warp_size * warp_pixels;
        const bool works = begin < count();
        const uint8_t* a = x_ + (begin + ldmatrix_row(lane)) * Shared::row + 16 * ldmatrix_chunk(lane);
        uint32_t values[blocks][depth][4];

        // Of each row of this lane: its image, and which context.
        int images[blocks][2], contexts[blocks][2];
        MVIT_UNROLL
        for (int i = 0; i < blocks; ++i) {
            MVIT_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int row = begin + 16 * i + c_row(lane, 2 * half);
                auto image = static_cast<uint32_t>(row < count() ? row : 0);
                const auto pixel = static_cast<int>(at_.of_pixels.take(image));
                images[i][half] = static_cast<int>(image), contexts[i][half] = static_cast<int>(image) * at_.phases + phase_of(pixel);
            }
        }

        MVIT_UNROLL
        for (int stage = 0; stage < Shared::stages_of_matrix; ++stage) {
            const uint8_t* b = next_stage() + 16 * lane;
            if (!works) continue;
            float sums[blocks][4][4] = {};
            MVIT_UNROLL
            for (int k = 0; k < depth; ++k) {
                uint32_t rows[blocks][4];
                MVIT_UNROLL
                for (int i = 0; i < blocks; ++i) ldmatrix_x4(rows[i], a + 16 * i * Shared::row + k * tile_depth);
                multiply(sums, rows, b, k);
            }
            MVIT_UNROLL
            for (int tile = 0; tile < 2; ++tile) {
                const int c = stage * stage_columns + tile * tile_columns + 4 * (lane % 4);
                MVIT_UNROLL
                for (int i = 0; i < blocks; ++i) {
                    MVIT_UNROLL
                    for (int half = 0; half < 2; ++half) {
                        const Quad<float> bias =
                            *reinterpret_cast<const Quad<float>*>(floats(at_.bias) + images[i][half] * Shared::channels + c);
                        const Quad<float> context =
                            *reinterpret_cast<const Quad<float>*>(floats(at_.context) + contexts[i][half] * Shared::channels + c);
                        const float inverse = normal(images[i][half]).inverse;
                        float v[4];
                        MVIT_UNROLL
                        for (int k = 0; k < 4; ++k) {
                            const float value = fmaf(sums[i][2 * tile + k / 2][2 * half + k % 2], inverse, bias.v[k]);
                            v[k] = relu(value) * context.v[k];
                        }
                        values[i][2 * stage + tile][half] = from_floats(v[0], v[1], T{});
                        values[i][2 * stage + tile][2 + half] = from_floats(v[2], v[3], T{});
                    }
                }
            }
        }

        uint8_t* const y = static_cast<uint8_t*>(p_.y) + first_pixel() * p_.channels * 2;
        each_stage([&](int stage, const uint8_t* tiles) {
            if (!works) return;
            const uint8_t* b = tiles + 16 * lane;
            float sums[blocks][4][4] = {};
            MVIT_UNROLL
            for (int k = 0; k < depth; ++k) {
                uint32_t rows[blocks][4];
                MVIT_UNROLL
                for (int i = 0; i < blocks; ++i) {
                    MVIT_UNROLL
                    for (int word = 0; word < 4; ++word) rows[i][word] = values[i][k][word];
                }
                multiply(sums, rows, b, k);
            }
            MVIT_UNROLL
            for (int tile = 0; tile < 2; ++tile) {
                const int c = stage * stage_columns + tile * tile_columns + 4 * (lane % 4);
                if (c >= p_.channels) continue;
                const Quad<float> bias = *reinterpret_cast<const Quad<float>*>(vector(attention_out_bias) + c);
                MVIT_UNROLL
                for (int i = 0; i < blocks; ++i) {
                    MVIT_UNROLL
                    for (int half = 0; half < 2; ++half) {
                        const int row = begin + 16 * i + c_row(lane, 2 * half);
                        if (row >= count()) continue;
                        const FourValues x = *reinterpret_cast<const FourValues*>(x_ + row * Shared::row + 2 * c);
                        FourValues out;
                        const float mean = normal(images[i][half]).mean;
                        MVIT_UNROLL
                        for (int k = 0; k < 2; ++k) {
                            const Unpacked<T> two(x.words[k]);
                            const float* sum = &sums[i][2 * tile + k][2 * half];
                            out.words[k] = from_floats(sum[0] + bias.v[2 * k] + two.low, sum[1] + bias.v[2 * k + 1] + two.high, T{});
                            if (p_.moments) {
                                const Unpacked<T> stored(out.words[k]);
                                const float low = stored.low - mean, high = stored.high - mean;
                                once_[i][half] += low + high, twice_[i][half] = fmaf(low, low, fmaf(high, high, twice_[i][half]));
                            }
                        }
                        *reinterpret_cast<FourValues*>(y + static_cast<uint32_t>((row * p_.channels + c) * 2)) = out;
                    }
                }
            }
        });
    }

    // sums += rows times the tiles of a stage; b: of this lane.
    MVIT_DEVICE static void multiply(float (&sums)[blocks][4][4], const uint32_t (&rows)[blocks][4], const uint8_t* b, int k) {
        MVIT_UNROLL
        for (int tile = 0; tile < 2; ++tile) {
            const Sixteen words = *reinterpret_cast<const Sixteen*>(b + (tile * depth + k) * tile_bytes(8));
            MVIT_UNROLL
            for (int i = 0; i < blocks; ++i) {
                mma(sums[i][2 * tile], rows[i], words.words[0], words.words[1], T{});
                mma(sums[i][2 * tile + 1], rows[i], words.words[2], words.words[3], T{});
            }
        }
    }

    // Of a block of one image, or of a part of it, all passes are of it; of several ones there is one pass.
    MVIT_DEVICE void write_moments() {
        const int lane = thread_index() % warp_size, begin = thread_index() / warp_size * warp_pixels;
        auto* of_warps = reinterpret_cast<double*>(shared_ + at_.normal + at_.images * 16);
        MVIT_ROLLED
        for (int image = 0; image < images_; ++image) {
            double once = 0.0, twice = 0.0;
            MVIT_UNROLL
            for (int i = 0; i < blocks; ++i) {
                MVIT_UNROLL
                for (int half = 0; half < 2; ++half) {
                    const int row = begin + 16 * i + c_row(lane, 2 * half);
                    if (at_.images > 1 && (row < image * at_.pixels || row >= (image + 1) * at_.pixels)) continue;
                    once += static_cast<double>(once_[i][half]), twice += static_cast<double>(twice_[i][half]);
                }
            }
            once = of_block<image_threads>(once, of_warps), twice = of_block<image_threads>(twice, of_warps);
            if (at_.cluster > 1) {
                if (thread_index() == 0) told_sums(rank_)[2] = once, told_sums(rank_)[3] = twice;
                cluster_barrier();
                once = twice = 0.0;
                for (int rank = 0; rank < at_.cluster; ++rank) once += told_sums(rank)[2], twice += told_sums(rank)[3];
            }
            if (thread_index() == 0 && rank_ == 0) {
                double* to = p_.moments + 2 * (first_ + image);
                const double left = once / values_of_image(), variance = twice / values_of_image() - left * left;
                to[0] = static_cast<double>(normal(image).mean) + left, to[1] = variance < 0.0 ? 0.0 : variance;
            }
        }
    }
};

// body<depth>() of the kernel for so many channels; not at all where there is none.
template <class Body>
void with_attention_image(int channels, const Body& body) {
    if (channels <= 64) {
        body.template operator()<4>();
    } else if (channels <= 128) {
        body.template operator()<8>();
    } else if (channels <= 192) {
        body.template operator()<12>();
    } else if (channels <= 256) {
        body.template operator()<16>();
    }
}

// How many images a block has: as many as fill its warps, but not so many that there are fewer blocks than multiprocessors.
inline int images_of_block(int64_t batch, int pixels, int phases, int multiprocessors) {
    const int fill = pass_pixels / pixels < most_contexts / phases ? pass_pixels / pixels : most_contexts / phases;
    const int64_t spread = ceil_divide(batch, multiprocessors);
    const int64_t images = spread < fill ? spread : fill;
    return images > 1 ? static_cast<int>(images) : 1;
}

// How many blocks an image takes that have `most` bytes of shared memory each, in clusters of up to most_cluster; 0: more than that.
inline constexpr int cluster_sizes[] = {1, 2, 4, 8};
template <int depth>
int blocks_of_image(int height, int width, int patch_height, int patch_width, int most, int most_cluster) {
    if (patch_height * patch_width > most_contexts) return 0;
    for (int cluster : cluster_sizes) {
        const bool is_small = int64_t{height} * width / cluster < most;  // so that no size is more than an int holds
        if (cluster <= most_cluster && is_small &&
            AttentionImageShared<depth>(1, cluster, height, width, patch_height, patch_width).bytes <= most)
            return cluster;
    }
    return 0;
}

}  // namespace mvit::cuda
