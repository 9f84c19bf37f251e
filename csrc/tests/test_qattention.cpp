// Attention on bytes against plain loops over the formulas, sums in 64 bits, every value exact. Guard pages behind each tensor.
#include "cpu/ops/qattention.h"

#include <algorithm>

#include "tests/attention.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch, queries, keys, heads, depth, value_depth;
    int64_t gap = 0;  // between rows
    float steps = 3e-3f, ratio = 1.7f;
    int32_t q_zero_point = 117, k_zero_point = 131, v_zero_point = 140;
};

using Floats = std::vector<float>;

// to[h] = start[h] + mixture[h, 0] x[0] + mixture[h, 1] x[1] + ..., in this order; `count` values a head.
Floats mix(const float* mixture, int64_t heads, int64_t count, const Floats& start, const Floats& x) {
    Floats to = start;
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t m = 0; m < count; ++m)
            for (int64_t g = 0; g < heads; ++g)
                to[static_cast<size_t>(h * count + m)] += mixture[h * heads + g] * x[static_cast<size_t>(g * count + m)];
    return to;
}

void compare(const Case& c, const Mixed& mixed) {
    QAttentionProblem p{};
    p.batch = c.batch, p.heads = c.heads, p.queries = c.queries, p.keys = c.keys, p.depth = c.depth, p.value_depth = c.value_depth;
    p.q_zero_point = c.q_zero_point, p.k_zero_point = c.k_zero_point, p.v_zero_point = c.v_zero_point;
    p.steps = c.steps, p.ratio = c.ratio, p.table = exponential_table(), p.out = qbyte(1.0f, 90, 8);
    Guarded<uint8_t> q(set_row_strides(c.batch, c.queries, c.heads * c.depth, c.gap, p.q_stride));
    Guarded<uint8_t> k(set_row_strides(c.batch, c.keys, c.heads * c.depth, c.gap, p.k_stride));
    Guarded<uint8_t> v(set_row_strides(c.batch, c.keys, c.heads * c.value_depth, c.gap, p.v_stride));
    Guarded<uint8_t> y(set_row_strides(c.batch, c.queries, c.heads * c.value_depth, c.gap, p.y_stride)), alone(y.size());
    for (Guarded<uint8_t>* each : {&q, &k, &v})
        for (int64_t i = 0; i < each->size(); ++i) (*each)[i] = static_cast<uint8_t>(random_int(0, 255));
    const int64_t stride = round_up(c.queries, panel);
    Guarded<float> bias(mixed.bias ? c.heads * c.keys * stride : 0), scores(mixed.scores ? c.heads * c.heads : 0);
    Guarded<float> weights(mixed.weights ? c.heads * c.heads : 0), shift(mixed.shift ? c.heads : 0);
    for (int64_t i = 0; i < bias.size(); ++i) bias[i] = 40.0f * random_float();
    for (int64_t i = 0; i < scores.size(); ++i) scores[i] = c.steps * random_float();
    for (int64_t i = 0; i < weights.size(); ++i) weights[i] = random_float();
    for (int64_t i = 0; i < shift.size(); ++i) shift[i] = 0.1f * random_float();
    if (mixed.bias) p.bias = bias.data(), p.bias_stride = stride;
    if (mixed.scores) p.mix = scores.data();
    if (mixed.weights) p.mix_weights = weights.data();
    if (mixed.shift) p.shift = shift.data();
    const uint8_t untouched = 7;
    std::fill(y.data(), y.data() + y.size(), untouched);
    std::fill(alone.data(), alone.data() + alone.size(), untouched);
    p.q = q.data(), p.k = k.data(), p.v = v.data(), p.y = alone.data();
    CHECK(qattention(p, 1) == Status::ok);
    p.y = y.data();
    CHECK(qattention(p, 2) == Status::ok);
    CHECK(y.canary_intact() && std::memcmp(y.data(), alone.data(), static_cast<size_t>(y.size())) == 0);

    const auto at = [&](int64_t h, int64_t m) { return static_cast<size_t>(h * c.keys + m); };
    const size_t count = static_cast<size_t>(c.heads * c.keys);
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t n = 0; n < c.queries; ++n) {
            Floats exact(count), start(count), e(count), constant(count), factor(static_cast<size_t>(c.heads));
            std::vector<int64_t> whole(count);
            for (int64_t h = 0; h < c.heads; ++h)
                for (int64_t m = 0; m < c.keys; ++m) {
                    int64_t sum = 0;
                    for (int64_t i = 0; i < c.depth; ++i)
                        sum += (int64_t{q[b * p.q_stride[0] + n * p.q_stride[1] + h * c.depth + i]} - p.q_zero_point) *
                               (int64_t{k[b * p.k_stride[0] + m * p.k_stride[1] + h * c.depth + i]} - p.k_zero_point);
                    exact[at(h, m)] = static_cast<float>(sum);
                    if (p.bias) start[at(h, m)] = p.bias[(h * c.keys + m) * stride + n];
                    if (p.shift) constant[at(h, m)] = p.shift[h];
                }
            Floats logits = start;
            if (p.mix) {
                logits = mix(p.mix, c.heads, c.keys, start, exact);
            } else {
                for (size_t i = 0; i < count; ++i) logits[i] = start[i] + p.steps * exact[i];
            }
            for (int64_t h = 0; h < c.heads; ++h) {
                const float top = *std::max_element(&logits[at(h, 0)], &logits[at(h, 0)] + c.keys);
                int64_t sum = 0;
                for (int64_t m = 0; m < c.keys; ++m) {
                    const float below = std::fmin(top - logits[at(h, m)], 255.0f);
                    sum += whole[at(h, m)] = p.table[static_cast<int>(std::nearbyint(below))];
                }
                const float total = static_cast<float>(sum);
                factor[static_cast<size_t>(h)] = p.ratio / total;
                for (int64_t m = 0; m < c.keys; ++m) e[at(h, m)] = static_cast<float>(whole[at(h, m)]) * (1.0f / total);
            }
            if (p.mix_weights) {
                const Floats w = mix(p.mix_weights, c.heads, c.keys, constant, e);
                for (int64_t h = 0; h < c.heads; ++h) {
                    float most = 0x1p-100f;
                    for (int64_t m = 0; m < c.keys; ++m) most = std::fmax(most, std::fabs(w[at(h, m)]));
                    for (int64_t m = 0; m < c.keys; ++m)
                        whole[at(h, m)] = static_cast<int64_t>(std::nearbyint(w[at(h, m)] * (255.0f / most)));
                    factor[static_cast<size_t>(h)] = most * (p.ratio / 255.0f);
                }
            }
            for (int64_t h = 0; h < c.heads; ++h)
                for (int64_t i = 0; i < c.value_depth; ++i) {
                    int64_t sum = 0;
                    for (int64_t m = 0; m < c.keys; ++m)
                        sum +=
                            whole[at(h, m)] * (int64_t{v[b * p.v_stride[0] + m * p.v_stride[1] + h * c.value_depth + i]} - p.v_zero_point);
                    const float t = static_cast<float>(sum) * factor[static_cast<size_t>(h)];
                    uint8_t& actual = y[b * p.y_stride[0] + n * p.y_stride[1] + h * c.value_depth + i];
                    CHECK(actual == static_cast<int>(std::nearbyint(std::fmin(std::fmax(t, -90.0f), 165.0f))) + 90);
                    actual = untouched;  // so that the gaps can be looked at in the end
                }
        }
    for (int64_t i = 0; i < y.size(); ++i) CHECK(y[i] == untouched);
}

}  // namespace

TEST(qattention_on_every_tail) {
    on_every_isa([] {
        for (const Mixed& mixed : mixtures) {
            for (int64_t queries : {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 49, 70})
                for (int64_t keys : {1, 3, 16, 49}) compare({1, queries, keys, 2, 5, 9}, mixed);
            for (int64_t depth : {1, 3, 7, 8, 9, 15, 16, 17, 33, 36})
                for (int64_t wide : {1, 8, 17, 64}) compare({2, 5, 6, 3, depth, wide, 3}, mixed);
            compare({1, 49, 49, 8, 32, 128}, mixed);
            compare({2, 49, 196, 8, 16, 64, 1}, mixed);
        }
        compare({1, 3, 4, qattention_most_heads, 2, 3}, mixtures[4]);
    });
}

TEST(qattention_at_its_ends) {
    on_every_isa([] {
        for (const Mixed& mixed : mixtures) {
            for (float steps : {0.0f, 1e-5f, 1.0f, 1e30f}) compare({1, 20, 30, 2, 12, 5, 0, steps}, mixed);
            for (int32_t zero_point : {-300, 0, 255, 700})
                compare({1, 6, 7, 2, 3, 5, 0, 3e-3f, 1e-3f, zero_point, zero_point, zero_point}, mixed);
            compare({1, 5, 258, 1, 258, 3, 0, 3e-3f, 1.7f, 0, 255, 0}, mixed);  // sums up to 2^24
            compare({1, 5, 40, 1, 273, 3, 0, 3e-3f, 1.7f, 14, 0, 128}, mixed);  // of 273 x 241 x 255 = 2^24 - 1
            compare({1, 5, 700, 1, 6, 5, 0, 1e-5f, 1.7f, 14, 0, 255}, mixed);   // sums beyond 2^24, of several blocks of keys
            compare({1, 5, 1, 1, 2, 3, 0, 3e-9f, 1e-6f, 8 - (1 << 12), 255, 60}, mixed);
        }
    });
}

TEST(qattention_refuses_what_it_cannot_do) {
    const float some[32 * 33] = {};
    const auto gives = [&](Status status, auto change) {
        QAttentionProblem p{};
        p.batch = 0, p.heads = 2, p.queries = 3, p.keys = 4, p.depth = p.value_depth = 5;
        CHECK(qattention(p, 1) == Status::ok);
        change(p);
        CHECK(qattention(p, 1) == status);
    };
    gives(Status::bad_shape, [](QAttentionProblem& p) { p.batch = -1; });
    gives(Status::bad_shape, [](QAttentionProblem& p) { p.queries = -1; });
    gives(Status::bad_shape, [](QAttentionProblem& p) { p.keys = -1; });
    gives(Status::bad_shape, [](QAttentionProblem& p) { p.depth = -1; });
    gives(Status::bad_shape, [](QAttentionProblem& p) { p.value_depth = -1; });
    gives(Status::bad_shape, [](QAttentionProblem& p) { p.heads = 0; });
    gives(Status::bad_shape, [](QAttentionProblem& p) { p.batch = 1, p.keys = 0; });
    gives(Status::bad_shape, [&](QAttentionProblem& p) { p.mix = some, p.heads = qattention_most_heads + 1; });
    gives(Status::bad_shape, [&](QAttentionProblem& p) { p.mix_weights = some, p.heads = qattention_most_heads + 1; });
    gives(Status::ok, [](QAttentionProblem& p) { p.heads = qattention_most_heads + 1; });
    gives(Status::bad_layout, [&](QAttentionProblem& p) { p.bias = some, p.bias_stride = 3; });
    gives(Status::bad_layout, [&](QAttentionProblem& p) { p.shift = some; });
    gives(Status::ok, [&](QAttentionProblem& p) { p.mix_weights = p.shift = p.bias = some, p.bias_stride = panel; });
    for (const auto point : {&QAttentionProblem::q_zero_point, &QAttentionProblem::k_zero_point, &QAttentionProblem::v_zero_point})
        for (const int32_t far : {farthest_zero_point + 1, -farthest_zero_point - 1, INT32_MIN, INT32_MAX})
            gives(Status::overflow, [&](QAttentionProblem& p) { p.*point = far; });
    gives(Status::overflow, [](QAttentionProblem& p) { p.out.zero_point = farthest_zero_point + 1; });
    gives(Status::ok, [](QAttentionProblem& p) { p.depth = p.keys = 258; });
    gives(Status::overflow, [](QAttentionProblem& p) { p.depth = 259; });
    gives(Status::ok, [](QAttentionProblem& p) { p.keys = 33025; });
    gives(Status::overflow, [](QAttentionProblem& p) { p.keys = 33026; });
    gives(Status::overflow, [](QAttentionProblem& p) { p.keys = 1 << 20, p.v_zero_point = 128; });
    gives(Status::overflow, [](QAttentionProblem& p) { p.keys = 259, p.v_zero_point = 1000; });
    gives(Status::overflow, [](QAttentionProblem& p) { p.depth = 274, p.q_zero_point = 14; });
}
