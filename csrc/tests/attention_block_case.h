// A MobileViTv2 attention half of random numbers, and what the definition makes of it in double precision: for the tests of both of its
// CUDA kernels.
#pragma once

#include <algorithm>

#include "tests/floats.h"

namespace mvit::tests {

struct AttentionBlockCase {
    int64_t batch;
    int height, width, channels, patch_height, patch_width;
    float mean = 0.0f;
    bool moments = false;
};

template <class T>
struct AttentionBlock {
    AttentionBlockCase t;
    int64_t d = t.channels, pixels = int64_t{t.height} * t.width;
    Guarded<T> x{t.batch * pixels * d}, value{d * d}, out{d * d};
    Guarded<float> gamma{d}, beta{d}, w_query{d}, key{d * d}, key_bias{d}, value_bias{d}, out_bias{d};
    Guarded<double> moments{2 * t.batch};  // of x
    std::vector<double> expected;

    explicit AttentionBlock(const AttentionBlockCase& t_) : t(t_) {
        const float size = 1.0f / std::sqrt(static_cast<float>(d));
        fill(x, t.mean), fill(value, 0.0f, size), fill(out, 0.0f, size), fill(w_query, 0.0f, size), fill(key, 0.0f, size);
        fill(gamma, 1.0f, 0.3f), fill(beta, 0.0f, 0.3f), fill(key_bias), fill(value_bias), fill(out_bias);
        define();
    }

    // Operands of both products and the result are rounded once each.
    void check(Guarded<T>& y) {
        double largest = 0.0, error = 0.0;
        for (int64_t i = 0; i < y.size(); ++i) {
            const double v = expected[static_cast<size_t>(i)], mine = mvit::tests::value(y[i]);
            CHECK(mine == mine);
            largest = std::max(largest, std::fabs(v)), error = std::max(error, std::fabs(mine - v));
        }
        CHECK(error <= 3 * rounding<T> * largest);
    }

  private:
    // Normalise, keys and values of every pixel, softmax within a phase.
    void define() {
        expected.resize(static_cast<size_t>(x.size()));
        for (int64_t b = 0; b < t.batch; ++b) {
            const T* image = x.data() + b * pixels * d;
            double mean = 0.0, variance = 0.0;
            for (int64_t i = 0; i < pixels * d; ++i) mean += mvit::tests::value(image[i]);
            mean /= static_cast<double>(pixels * d);
            for (int64_t i = 0; i < pixels * d; ++i)
                variance += (mvit::tests::value(image[i]) - mean) * (mvit::tests::value(image[i]) - mean);
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
    }
};

}  // namespace mvit::tests
