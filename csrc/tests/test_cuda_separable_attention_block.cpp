// The three CUDA kernels of separable_attention_block on the processor, block by block (block.h), against the definition in double
// precision.
#include "cuda/ops/separable_attention_block.cuh"

#include <algorithm>

#include "tests/block.h"
#include "tests/floats.h"
#include "tests/fragments.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch;
    int height, width, channels, patch_height, patch_width;
    float mean = 0.0f;
    bool moments = false;
};

// (N, K) 16-bit floats as tiles; their bytes are what lies in the order of tensor cores.
template <class T>
FragmentMatrix tiles_of(Guarded<T>& w, int64_t d) {
    return FragmentMatrix(d, 2 * d, 8, [&](int64_t n, int64_t k) { return static_cast<int8_t>(w[n * d + k / 2].bits >> (8 * (k % 2))); });
}

template <class T>
void compare(const Case& t, const BlockOrder& order) {
    const int64_t d = t.channels, pixels = int64_t{t.height} * t.width;
    Guarded<T> x(t.batch * pixels * d), y(x.size()), value(d * d), out(d * d);
    Guarded<float> gamma(d), beta(d), query(d), w_query(d), key(d * d), key_bias(d), value_bias(d), out_bias(d);
    const float size = 1.0f / std::sqrt(static_cast<float>(d));
    fill(x, t.mean), fill(value, 0.0f, size), fill(out, 0.0f, size), fill(w_query, 0.0f, size), fill(key, 0.0f, size);
    fill(gamma, 1.0f, 0.3f), fill(beta, 0.0f, 0.3f), fill(key_bias), fill(value_bias), fill(out_bias);
    for (int64_t c = 0; c < d; ++c) query[c] = gamma[c] * w_query[c];
    const FragmentMatrix value_tiles = tiles_of(value, d), out_tiles = tiles_of(out, d);

    // The definition: normalise, keys and values of every pixel, softmax within a phase.
    std::vector<double> expected(static_cast<size_t>(x.size()));
    Guarded<double> moments(2 * t.batch);
    for (int64_t b = 0; b < t.batch; ++b) {
        const T* image = x.data() + b * pixels * d;
        double mean = 0.0, variance = 0.0;
        for (int64_t i = 0; i < pixels * d; ++i) mean += mvit::tests::value(image[i]);
        mean /= static_cast<double>(pixels * d);
        for (int64_t i = 0; i < pixels * d; ++i) variance += (mvit::tests::value(image[i]) - mean) * (mvit::tests::value(image[i]) - mean);
        variance /= static_cast<double>(pixels * d);
        moments[2 * b] = mean, moments[2 * b + 1] = variance;
        std::vector<double> xn(static_cast<size_t>(pixels * d));
        for (int64_t i = 0; i < pixels * d; ++i)
            xn[static_cast<size_t>(i)] =
                (mvit::tests::value(image[i]) - mean) / std::sqrt(variance + 1e-5) * double{gamma[i % d]} + double{beta[i % d]};
        const auto product = [&](int64_t n, int64_t row, const auto& w) {
            double sum = 0.0;
            for (int64_t c = 0; c < d; ++c) sum += xn[static_cast<size_t>(n * d + c)] * w(row * d + c);
            return sum;
        };
        for (int phase = 0; phase < t.patch_height * t.patch_width; ++phase) {
            std::vector<int64_t> points;
            for (int64_t n = 0; n < pixels; ++n)
                if (n / t.width % t.patch_height * t.patch_width + n % t.width % t.patch_width == phase) points.push_back(n);
            std::vector<double> scores, context(static_cast<size_t>(d));
            for (int64_t n : points) scores.push_back(product(n, 0, [&](int64_t i) { return double{w_query[i]}; }));
            const double most = *std::max_element(scores.begin(), scores.end());
            double total = 0.0;
            for (double& score : scores) score = std::exp(score - most), total += score;
            for (int64_t c = 0; c < d; ++c)
                for (size_t i = 0; i < points.size(); ++i)
                    context[static_cast<size_t>(c)] +=
                        scores[i] / total * (product(points[i], c, [&](int64_t k) { return double{key[k]}; }) + double{key_bias[c]});
            for (int64_t n : points) {
                std::vector<double> values(static_cast<size_t>(d));
                for (int64_t c = 0; c < d; ++c)
                    values[static_cast<size_t>(c)] =
                        std::max(product(n, c, [&](int64_t k) { return mvit::tests::value(value[k]); }) + double{value_bias[c]}, 0.0) *
                        context[static_cast<size_t>(c)];
                for (int64_t c = 0; c < d; ++c) {
                    double sum = mvit::tests::value(image[n * d + c]) + double{out_bias[c]};
                    for (int64_t k = 0; k < d; ++k) sum += values[static_cast<size_t>(k)] * mvit::tests::value(out[c * d + k]);
                    expected[static_cast<size_t>((b * pixels + n) * d + c)] = sum;
                }
            }
        }
    }

    cuda::AttentionProblem p{};
    p.dtype = dtype_of<T>, p.batch = t.batch, p.height = t.height, p.width = t.width, p.channels = t.channels;
    p.patch_height = t.patch_height, p.patch_width = t.patch_width, p.eps = 1e-5f;
    p.x = x.data(), p.y = y.data();
    p.query = query.data(), p.gamma = gamma.data(), p.beta = beta.data(), p.key = key.data(), p.key_bias = key_bias.data();
    p.value_tiles = value_tiles.weight.tiles, p.out_tiles = out_tiles.weight.tiles;
    p.value_bias = value_bias.data(), p.out_bias = out_bias.data();
    p.moments = t.moments ? moments.data() : nullptr;
    const cuda::AttentionMap map(p);
    Guarded<float> scores(t.batch * pixels), context(t.batch * map.phases * d), normal(2 * t.batch);
    Guarded<double> partial(2 * t.batch * map.tiles);
    p.scores = scores.data(), p.partial = partial.data(), p.context = context.data(), p.normal = normal.data();

    const auto run = [&](int64_t blocks, int threads, int64_t bytes, const auto& kernel) {
        Guarded<uint8_t> shared(bytes);
        for (int64_t i = 0; i < blocks; ++i) {
            std::memset(shared.data(), 0xFF, static_cast<size_t>(bytes));  // NaN, as float of any size
            run_block(threads, i, 0, order, [&] { kernel(shared.data()); });
            CHECK(shared.canary_intact());
        }
    };
    std::memset(y.data(), 0xFF, static_cast<size_t>(y.size()) * sizeof(T));
    run(t.batch * map.tiles, cuda::score_threads, cuda::score_warps * int64_t{sizeof(double)},
        [&](uint8_t* shared) { cuda::attention_scores<T>(p, reinterpret_cast<double*>(shared)); });
    run(t.batch * map.phases, cuda::context_threads, sizeof(cuda::ContextShared),
        [&](uint8_t* shared) { cuda::attention_context<T>(p, *reinterpret_cast<cuda::ContextShared*>(shared)); });
    run((t.batch * pixels + cuda::attention_tile - 1) / cuda::attention_tile, cuda::value_threads, cuda::value_shared_bytes(t.channels),
        [&](uint8_t* shared) { cuda::attention_values<T>(p, shared); });
    CHECK(y.canary_intact() && scores.canary_intact() && context.canary_intact() && partial.canary_intact() && normal.canary_intact());

    double largest = 0.0, error = 0.0;
    for (int64_t i = 0; i < y.size(); ++i) {
        const double v = expected[static_cast<size_t>(i)], mine = mvit::tests::value(y[i]);
        CHECK(mine == mine);
        largest = std::max(largest, std::fabs(v)), error = std::max(error, std::fabs(mine - v));
    }
    // Operands of both products and the result are rounded once each.
    CHECK(error <= 3 * rounding<T> * largest);
}

}  // namespace

TEST(cuda_separable_attention_block) {
    for (const BlockOrder& order : block_orders) {
        compare<f16>({2, 4, 6, 16, 2, 2}, order);
        compare<bf16>({1, 10, 8, 72, 2, 2}, order);  // several tiles, and parts of columns with a tail
    }
    const BlockOrder& order = block_orders[0];
    compare<f16>({3, 3, 5, 8, 3, 1}, order);  // rows of one tile are of several images
    compare<f16>({1, 1, 1, 8, 1, 1}, order);
    compare<f16>({1, 2, 300, 24, 2, 1}, order);  // more points than threads
    compare<f16>({1, 4, 4, 136, 2, 2, 30.0f}, order);
    compare<bf16>({2, 4, 4, 64, 2, 2, 3.0f, true}, order);
    compare<f16>({1, 2, 2, cuda::attention_most_channels, 2, 2}, order);
}
