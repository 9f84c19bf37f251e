// The CUDA kernels of qseparable_attention_block on the processor, block by block (block.h), against plain loops over the formulas.
#include "cuda/ops/qseparable_attention_block.cuh"

#include <algorithm>
#include <cmath>

#include "tests/block.h"
#include "tests/qpair.h"
#include "tests/qweights.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch;
    int height, width, channels, patch_height = 2, patch_width = 2;
    int pieces = 1;       // that sums of the stream come in
    int most = 255;       // of all bytes
    int zero_point = 40;  // likewise
    int spread = 3000;    // of the stream; 0: all values of an image are the same
    double decay = 0.04;  // of exponentials, from one score to the next
    float gain = 0.02f;   // of values by their context
    bool collects = false;
};

int byte_of(float x, int zero_point, int most) {
    const auto low = static_cast<float>(-zero_point), high = static_cast<float>(most - zero_point);
    const float inside = x >= low ? std::fmin(x, high) : low;  // NaN too
    return static_cast<int>(std::nearbyint(inside)) + zero_point;
}

// A stream, and its bytes by the norm.
struct Layer {
    Case t;
    int64_t pixels, phases;
    Guarded<int16_t> x;
    Guarded<int64_t> sums;
    std::vector<int> normal;
    cuda::QAttentionMap map{};

    explicit Layer(const Case& c)
        : t(c),
          pixels(int64_t{c.height} * c.width),
          phases(int64_t{c.patch_height} * c.patch_width),
          x(c.batch * pixels * c.channels),
          sums(2 * c.batch * c.pieces),
          normal(static_cast<size_t>(x.size())) {
        const int64_t size = pixels * t.channels;
        std::fill_n(sums.data(), sums.size(), 0);
        for (int64_t i = 0; i < x.size(); ++i) {
            x[i] = static_cast<int16_t>(
                std::clamp(1000 * (i / size) - 500 + random_int(-t.spread, t.spread), int64_t{-32768}, int64_t{32767}));
            const int64_t piece = i / size * t.pieces + i % t.pieces;
            sums[2 * piece] += x[i], sums[2 * piece + 1] += int64_t{x[i]} * x[i];
        }
        map = {t.batch, t.height, t.width, t.channels, t.patch_height, t.patch_width, x.data(), {}};
        map.norm = {sums.data(),
                    t.pieces,
                    0.002 / 0.03,
                    0.002 * 0.002,
                    1e-5,
                    static_cast<float>(-t.zero_point),
                    static_cast<float>(t.most - t.zero_point),
                    t.zero_point};
        for (int64_t i = 0; i < x.size(); ++i) {
            int64_t of_image[2] = {};
            for (int64_t j = 0; j < 2 * t.pieces; ++j) of_image[j % 2] += sums[i / size * 2 * t.pieces + j];
            normal[static_cast<size_t>(i)] = byte_of_stream(map.norm, x[i], static_cast<double>(of_image[0]),
                                                            static_cast<double>(of_image[1]), static_cast<double>(size));
        }
    }

    int phase(int64_t pixel) const {
        return static_cast<int>(pixel / t.width % t.patch_height * t.patch_width + pixel % t.width % t.patch_width);
    }
    const int* bytes(int64_t image, int64_t pixel) const { return normal.data() + (image * pixels + pixel) * t.channels; }
    QByte byte(int zero_point) const { return qbyte_of_inverse(1.0f, zero_point, t.most == 63 ? 6 : 8); }
};

template <class Kernel>
void run_blocks(int64_t blocks, int threads, int64_t bytes, const BlockOrder& order, const Kernel& kernel) {
    Guarded<uint8_t> shared(bytes);
    for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t i = 0; i < bytes; ++i) shared[i] = static_cast<uint8_t>(random_int(0, 255));
        run_block(threads, block, 0, order, [&] { kernel(shared.data()); });
        CHECK(shared.canary_intact());
    }
}

void compare_context(const Case& t, const BlockOrder& order) {
    Layer layer(t);
    const int d = t.channels, zero_point = 255 - t.zero_point;
    Guarded<uint8_t> query(round_up(d, 32)), context(t.batch * layer.phases * d);
    std::memset(query.data(), 0, static_cast<size_t>(query.size()));
    for (int c = 0; c < d; ++c) query[c] = static_cast<uint8_t>(random_int(-127, 127));
    RandomChannels channels(1 + d, 0.002f, t.most);
    int32_t table[256];
    for (int i = 0; i < 256; ++i) table[i] = static_cast<int32_t>(std::nearbyint(std::ldexp(std::exp(-t.decay * i), 16)));

    const QChannels c = channels.channels();
    const cuda::QAttentionContextProblem p{layer.map, query.data(), c, table, 3.7, layer.byte(zero_point), context.data()};
    const cuda::AttentionPhases phases(p.map);
    const cuda::QContextShared at(d, phases.points);
    std::memset(context.data(), 0x5A, static_cast<size_t>(context.size()));
    run_blocks(t.batch * layer.phases, cuda::qcontext_threads, at.bytes, order,
               [&](uint8_t* shared) { cuda::qattention_context_phase(p, phases, at, shared); });
    CHECK(context.canary_intact());

    for (int64_t b = 0; b < t.batch; ++b)
        for (int phase = 0; phase < layer.phases; ++phase) {
            std::vector<const int*> points;
            for (int64_t n = 0; n < layer.pixels; ++n)
                if (layer.phase(n) == phase) points.push_back(layer.bytes(b, n));
            std::vector<int> scores;
            int largest = 0;
            for (const int* point : points) {
                int32_t sum = c.init[0];
                for (int i = 0; i < d; ++i) sum += point[i] * static_cast<int8_t>(query[i]);
                scores.push_back(byte_of(static_cast<float>(sum) * c.scale[0], c.zero_point[0], t.most));
                largest = std::max(largest, scores.back());
            }
            for (int i = 0; i < d; ++i) {
                int64_t total = 0, weighted = 0;
                for (size_t n = 0; n < points.size(); ++n)
                    total += table[largest - scores[n]], weighted += int64_t{table[largest - scores[n]]} * points[n][i];
                const double mean = (static_cast<double>(weighted) / static_cast<double>(total) - t.zero_point) * 3.7;
                const double inside = std::fmin(std::fmax(mean, -zero_point), t.most - zero_point);
                CHECK(context[(b * layer.phases + phase) * d + i] == static_cast<int>(std::nearbyint(inside)) + zero_point);
            }
        }
}

template <class Shape>
void compare_values(const Case& t, const BlockOrder& order) {
    Layer layer(t);
    const int d = t.channels, v_zero_point = t.zero_point, zero_point = 100;
    const auto at = [](int64_t a, int64_t b, int64_t c) { return static_cast<size_t>(a * b + c); };
    PairSlices slices(d, d);
    std::vector<int> value(at(d, d, 0)), out(value.size());
    std::vector<int32_t> init(static_cast<size_t>(d));
    std::vector<float> scale(init.size());
    for (int64_t h = 0; h < d; ++h) {
        init[static_cast<size_t>(h)] = random_int(-100000, 100000), scale[static_cast<size_t>(h)] = 0.001f * std::fabs(random_float());
        slices.put_numbers(h, init[static_cast<size_t>(h)], scale[static_cast<size_t>(h)]);
        for (int64_t c = 0; c < d; ++c) {
            slices.put_first(h, c, value[at(h, d, c)] = random_int(-127, 127));
            slices.put_second(c, h, out[at(c, d, h)] = random_int(-127, 127));
        }
    }
    Guarded<float> key(t.batch * layer.phases * d);
    for (int64_t i = 0; i < key.size(); ++i) key[i] = random_float() * t.gain;
    if (t.gain > 1.0f) key[0] = INFINITY, key[key.size() - 1] = -INFINITY;
    RandomChannels channels(d, 0.01f);
    Guarded<int16_t> y(layer.x.size());

    cuda::QAttentionValuesProblem p{};
    p.map = layer.map, p.key = key.data(), p.ratio = 1.37f, p.byte = layer.byte(zero_point), p.slices = slices.data();
    p.v_low = static_cast<float>(std::max(-v_zero_point, 0)), p.v_high = static_cast<float>(std::max(t.most - v_zero_point, 0));
    QEpilogue& e = p.out;
    e.channels = channels.channels(), e.type = QType::i16, e.plain = true;
    e.y = y.data(), e.y_stride = d, e.residual = layer.x.data(), e.residual_type = QType::i16, e.residual_stride = d;
    const cuda::AttentionPhases phases(p.map);
    const int64_t pieces = cuda::QAttentionPlace<Shape>::pieces(phases);
    Guarded<int64_t> parts(t.collects ? 2 * t.batch * pieces : 0);
    if (t.collects) p.parts = parts.data();
    std::memset(y.data(), 0x5A, static_cast<size_t>(y.size()) * 2), std::memset(parts.data(), 0x5A, static_cast<size_t>(parts.size()) * 8);
    run_blocks((t.batch * pieces + Shape::warps - 1) / Shape::warps, Shape::threads, cuda::QAttentionShared<Shape>::bytes, order,
               [&](uint8_t* shared) { cuda::qattention_values_block<Shape>(p, phases, shared); });
    CHECK(y.canary_intact() && parts.canary_intact());

    std::vector<int> gated(init.size());
    std::vector<int64_t> of_y(static_cast<size_t>(2 * t.batch));
    for (int64_t row = 0; row < t.batch * layer.pixels; ++row) {
        const int64_t image = row / layer.pixels, pixel = row % layer.pixels;
        const int* bytes = layer.bytes(image, pixel);
        for (int h = 0; h < d; ++h) {
            int32_t sum = init[static_cast<size_t>(h)];
            for (int c = 0; c < d; ++c) sum += value[at(h, d, c)] * bytes[c];
            const int v = byte_of(static_cast<float>(sum) * scale[static_cast<size_t>(h)], v_zero_point, t.most);
            const float m = key[(image * layer.phases + layer.phase(pixel)) * d + h] * 1.37f;
            gated[static_cast<size_t>(h)] = byte_of(static_cast<float>(std::max(v - v_zero_point, 0)) * m, zero_point, t.most);
        }
        for (int n = 0; n < d; ++n) {
            int64_t total = e.channels.init[n];
            for (int h = 0; h < d; ++h) total += out[at(n, d, h)] * gated[static_cast<size_t>(h)];
            const int64_t mine = y[row * d + n];
            CHECK(static_cast<double>(mine) == finish_one(e, total, row, n));
            of_y[static_cast<size_t>(2 * image)] += mine, of_y[static_cast<size_t>(2 * image + 1)] += mine * mine;
        }
    }
    for (int64_t i = 0; i < parts.size(); ++i) of_y[static_cast<size_t>(i / 2 / pieces * 2 + i % 2)] -= parts[i];
    for (const int64_t left : of_y) CHECK(!t.collects || left == 0);
}

void compare_values(const Case& t, const BlockOrder& order) {
    bool found = false;
    cuda::with_pair_shape(t.channels, [&]<class Shape>() {
        compare_values<Shape>(t, order), found = true;
        if constexpr (cuda::has_few<Shape>) compare_values<typename Shape::Few>(t, order);
    });
    CHECK(found);
}

}  // namespace

TEST(cuda_qseparable_attention_context) {
    for (const BlockOrder& order : block_orders) {
        compare_context({.batch = 2, .height = 4, .width = 6, .channels = 16}, order);
        // Points and channels that fill no tile; more rows than threads have at once.
        compare_context({.batch = 1, .height = 20, .width = 12, .channels = 72, .pieces = 3}, order);
    }
    const BlockOrder& order = block_orders[2];
    compare_context({.batch = 3, .height = 3, .width = 5, .channels = 8, .patch_height = 3, .patch_width = 1}, order);
    compare_context({.batch = 1, .height = 1, .width = 1, .channels = 8, .patch_height = 1, .patch_width = 1}, order);
    // More points than threads, more channels than warps have tiles, a row of all threads.
    compare_context({.batch = 1, .height = 2, .width = 300, .channels = 24, .patch_width = 1, .pieces = 40}, order);
    compare_context({.batch = 1, .height = 8, .width = 8, .channels = 264}, order);
    compare_context({.batch = 1, .height = 4, .width = 4, .channels = 2048}, order);
    compare_context({.batch = 2, .height = 8, .width = 8, .channels = 32, .most = 63, .zero_point = 10}, order);
    compare_context({.batch = 1, .height = 8, .width = 8, .channels = 32, .zero_point = 255, .spread = 32767}, order);
    compare_context({.batch = 1, .height = 8, .width = 8, .channels = 32, .zero_point = 0, .spread = 0}, order);
    compare_context({.batch = 1, .height = 8, .width = 8, .channels = 32, .decay = 0.0}, order);  // all exponentials are 2^16
    compare_context({.batch = 1, .height = 8, .width = 8, .channels = 32, .decay = 9.0}, order);  // all but the largest are 0
}

TEST(cuda_qseparable_attention_values) {
    for (const BlockOrder& order : block_orders) {
        compare_values({.batch = 2, .height = 4, .width = 6, .channels = 40, .pieces = 3, .collects = true}, order);
        compare_values({.batch = 1, .height = 14, .width = 12, .channels = 70}, order);  // phases of several warps, the last of few points
    }
    const BlockOrder& order = block_orders[0];
    compare_values({.batch = 3, .height = 3, .width = 5, .channels = 8, .patch_height = 3, .patch_width = 1, .collects = true}, order);
    compare_values({.batch = 1, .height = 1, .width = 1, .channels = 1, .patch_height = 1, .patch_width = 1}, order);
    compare_values({.batch = 1, .height = 4, .width = 4, .channels = 24, .most = 63, .zero_point = 10}, order);
    for (int zero_point : {0, 255, 300, -20})
        compare_values({.batch = 1, .height = 4, .width = 4, .channels = 24, .zero_point = zero_point, .spread = 32767}, order);
    compare_values({.batch = 1, .height = 4, .width = 4, .channels = 24, .gain = 1e30f}, order);  // contexts that are no numbers, too
    for (int channels : {32, 64, 96, 120, 128, 160, 192, 224, 256})
        compare_values({.batch = 1, .height = 6, .width = 6, .channels = channels, .collects = channels % 64 == 0},
                       block_orders[channels / 32 % 4]);
}
