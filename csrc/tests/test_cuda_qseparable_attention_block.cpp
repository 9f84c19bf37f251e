// The CUDA kernels of qseparable_attention_block on the processor, block by block (block.h), against plain loops over the formulas.
#include "cuda/ops/qseparable_attention_block.cuh"

#include <algorithm>
#include <cmath>

#include "tests/block.h"
#include "tests/qweights.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch;
    int height, width, channels, patch_height, patch_width;
    int most = 255;          // of all bytes
    int zero_point = 40;     // likewise
    int16_t spread = 3000;   // of the stream; 0: all values are the same
    double decay = 0.04;     // of exponentials, from one score to the next
};

int byte_of(double x, int zero_point, int most) {
    return static_cast<int>(std::nearbyint(std::fmin(std::fmax(x, -zero_point), most - zero_point))) + zero_point;
}

// What all launches of a case compute with.
struct Layer {
    int64_t pixels, phases;
    Guarded<int16_t> x;
    Guarded<int64_t> sums;
    std::vector<int> normal;  // bytes of the norm

    explicit Layer(const Case& t)
        : pixels(int64_t{t.height} * t.width),
          phases(int64_t{t.patch_height} * t.patch_width),
          x(t.batch * pixels * t.channels),
          sums(2 * t.batch),
          normal(static_cast<size_t>(x.size())) {
        const int64_t size = pixels * t.channels;
        const double n = static_cast<double>(size);
        for (int64_t b = 0; b < t.batch; ++b) {
            int16_t* image = x.data() + b * size;
            sums[2 * b] = sums[2 * b + 1] = 0;
            for (int64_t i = 0; i < size; ++i) {
                image[i] = static_cast<int16_t>(1000 * b - 500 + random_int(-t.spread, t.spread));
                sums[2 * b] += image[i], sums[2 * b + 1] += int64_t{image[i]} * image[i];
            }
            const double mean = static_cast<double>(sums[2 * b]) / n;
            const double variance = std::fmax(static_cast<double>(sums[2 * b + 1]) / n - mean * mean, 0.0);
            const auto factor = static_cast<float>(ratio / std::sqrt(variance * power + eps));
            for (int64_t i = 0; i < size; ++i) {
                const float d = static_cast<float>(image[i]) - static_cast<float>(mean), y = d * factor;
                normal[static_cast<size_t>(b * size + i)] = byte_of(y, t.zero_point, t.most);
            }
        }
    }

    static constexpr double ratio = 0.002 / 0.03, power = 0.002 * 0.002, eps = 1e-5;
};

// kernel(shared) of `blocks` blocks, in all orders or in one of them.
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
    const int d = t.channels;
    Guarded<uint8_t> query(round_up(d, 32)), context(t.batch * layer.phases * d);
    std::memset(query.data(), 0, static_cast<size_t>(query.size()));
    for (int c = 0; c < d; ++c) query[c] = static_cast<uint8_t>(random_int(-127, 127));
    RandomChannels channels(1 + d, 0.002f, t.most);
    int32_t table[256];
    for (int i = 0; i < 256; ++i) table[i] = static_cast<int32_t>(std::nearbyint(std::ldexp(std::exp(-t.decay * i), 16)));

    cuda::QAttentionContextProblem p{};
    p.batch = t.batch, p.height = t.height, p.width = t.width, p.channels = d;
    p.patch_height = t.patch_height, p.patch_width = t.patch_width;
    p.x = layer.x.data(), p.sums = layer.sums.data();
    p.ratio = Layer::ratio, p.power = Layer::power, p.eps = Layer::eps;
    const int bits = t.most == 63 ? 6 : 8;
    p.norm = qbyte_of_inverse(1.0f, t.zero_point, bits), p.byte = qbyte_of_inverse(1.0f, 255 - t.zero_point, bits);
    p.query = query.data(), p.query_channels = channels.channels(), p.table = table, p.scale = 3.7, p.context = context.data();
    const cuda::PhasePoints map(t.height, t.width, t.patch_height, t.patch_width);
    const cuda::PhaseShared at(d, map.points);
    std::memset(context.data(), 0x5A, static_cast<size_t>(context.size()));
    run_blocks(t.batch * layer.phases, cuda::phase_threads, at.bytes, order,
               [&](uint8_t* shared) { cuda::qattention_context_phase(p, map, at, shared); });
    CHECK(context.canary_intact());

    const QChannels c = channels.channels();
    for (int64_t b = 0; b < t.batch; ++b)
        for (int64_t phase = 0; phase < layer.phases; ++phase) {
            std::vector<const int*> points;
            for (int64_t n = 0; n < layer.pixels; ++n)
                if (n / t.width % t.patch_height * t.patch_width + n % t.width % t.patch_width == phase)
                    points.push_back(layer.normal.data() + (b * layer.pixels + n) * d);
            std::vector<int> scores;
            int largest = 0;
            for (const int* point : points) {
                int32_t sum = c.init[0];
                for (int i = 0; i < d; ++i) sum += point[i] * static_cast<int8_t>(query[i]);
                const float real = static_cast<float>(sum) * c.scale[0];
                scores.push_back(static_cast<int>(std::lrint(std::fmin(std::fmax(real, c.low[0]), c.high[0]))) + c.zero_point[0]);
                largest = std::max(largest, scores.back());
            }
            for (int i = 0; i < d; ++i) {
                int64_t total = 0, weighted = 0;
                for (size_t n = 0; n < points.size(); ++n)
                    total += table[largest - scores[n]], weighted += int64_t{table[largest - scores[n]]} * points[n][i];
                const double mean = static_cast<double>(weighted) / static_cast<double>(total) - t.zero_point;
                CHECK(context[(b * layer.phases + phase) * d + i] == byte_of(mean * 3.7, 255 - t.zero_point, t.most));
            }
        }
}

}  // namespace

TEST(cuda_qseparable_attention_context) {
    for (const BlockOrder& order : block_orders) {
        compare_context({2, 4, 6, 16, 2, 2}, order);
        compare_context({1, 20, 12, 72, 2, 2}, order);  // points and channels that fill no tile; more rows than threads have at once
    }
    const BlockOrder& order = block_orders[2];
    compare_context({3, 3, 5, 8, 3, 1}, order);
    compare_context({1, 1, 1, 8, 1, 1}, order);
    compare_context({1, 2, 300, 24, 2, 1}, order);  // more points than threads
    compare_context({1, 8, 8, 264, 2, 2}, order);   // more channels than warps have tiles
    compare_context({1, 4, 4, 2048, 2, 2}, order);  // a row of all threads
    compare_context({2, 8, 8, 32, 2, 2, 63, 10}, order);
    compare_context({1, 8, 8, 32, 2, 2, 255, 255, 32767}, order);
    compare_context({1, 8, 8, 32, 2, 2, 255, 0, 0}, order);            // no variance
    compare_context({1, 8, 8, 32, 2, 2, 255, 40, 3000, 0.0}, order);  // all exponentials are 2^16
    compare_context({1, 8, 8, 32, 2, 2, 255, 40, 3000, 9.0}, order);  // all but the largest are 0
}
