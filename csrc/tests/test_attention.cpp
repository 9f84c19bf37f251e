// Every tail, mixture and float type against a double-precision loop over the formulas, with guard pages behind each tensor.
#include "cpu/ops/attention.h"

#include <algorithm>
#include <cfenv>
#include <numbers>

#include "tests/attention.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch, queries, keys, heads, depth, value_depth;
    int64_t gap = 0;     // between rows
    float far = 1.0f;    // how much larger queries are
    float times = 1.0f;  // what the scale is, too
};

template <class T>
struct Tensors {
    AttentionProblem p{};  // whose strides come with the sizes
    Guarded<T> q, k, v, y;
    Guarded<float> bias, mix_scores, mix_weights, mix_bias;

    Tensors(const Case& c, const Mixed& mixed)
        : q(set_row_strides(c.batch, c.queries, c.heads * c.depth, c.gap, p.q_stride)),
          k(set_row_strides(c.batch, c.keys, c.heads * c.depth, c.gap, p.k_stride)),
          v(set_row_strides(c.batch, c.keys, c.heads * c.value_depth, c.gap, p.v_stride)),
          y(set_row_strides(c.batch, c.queries, c.heads * c.value_depth, c.gap, p.y_stride)),
          bias(mixed.bias ? c.heads * c.keys * round_up(c.queries, panel) : 0),
          mix_scores(mixed.scores ? c.heads * c.heads : 0),
          mix_weights(mixed.weights ? c.heads * c.heads : 0),
          mix_bias(mixed.shift ? c.heads : 0) {
        p.dtype = dtype_of<T>;
        p.batch = c.batch, p.heads = c.heads, p.queries = c.queries, p.keys = c.keys, p.depth = c.depth, p.value_depth = c.value_depth;
        p.scale = c.times / std::sqrt(static_cast<float>(c.depth));
        const float share = 1.0f / std::sqrt(static_cast<float>(c.heads));
        fill(q, 0.0f, c.far), fill(k), fill(v), fill(bias), fill(mix_scores, 0.0f, share), fill(mix_weights, 0.0f, share), fill(mix_bias);
        p.q = q.data(), p.k = k.data(), p.v = v.data(), p.y = y.data();
        if (mixed.bias) p.bias = bias.data(), p.bias_stride = round_up(c.queries, panel);
        if (mixed.scores) p.mix_scores = mix_scores.data();
        if (mixed.weights) p.mix_weights = mix_weights.data();
        if (mixed.shift) p.mix_bias = mix_bias.data();
    }
};

// to[h] = sum_g mixture[h, g] from[g], or from[h]; each has `count` values a head.
std::vector<double> mix(const float* mixture, int64_t heads, int64_t count, const std::vector<double>& from, bool sizes = false) {
    if (!mixture) return from;
    std::vector<double> to(from.size());
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t g = 0; g < heads; ++g) {
            const double factor = double{mixture[h * heads + g]};
            for (int64_t m = 0; m < count; ++m)
                to[static_cast<size_t>(h * count + m)] += (sizes ? std::fabs(factor) : factor) * from[static_cast<size_t>(g * count + m)];
        }
    return to;
}

// Where bfloat16 is multiplied as such, so is e.
template <class T>
double rounding_of_weights(int64_t keys) {
    return isa_active() >= Isa::avx512bf16 && keys >= attention_fewest_bf16_keys ? operand_rounding<T> : 0.0;
}

template <class T>
void compare(const Case& c, const Mixed& mixed) {
    Tensors<T> t(c, mixed);
    const AttentionProblem& p = t.p;
    fill_with(t.y, 7.0f);
    Guarded<T> alone(t.y.size());
    fill_with(alone, 7.0f);
    CHECK(attention(p, 2) == Status::ok);
    AttentionProblem again = p;
    again.y = alone.data();
    spoil_scratch();
    CHECK(attention(again, 1) == Status::ok);
    CHECK(t.y.canary_intact() && same_bits(t.y, alone));

    const auto at = [](int64_t h, int64_t m, int64_t count) { return static_cast<size_t>(h * count + m); };
    std::vector<double> scores(static_cast<size_t>(c.heads * c.keys));
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t n = 0; n < c.queries; ++n) {
            for (int64_t h = 0; h < c.heads; ++h)
                for (int64_t m = 0; m < c.keys; ++m) {
                    double& sum = scores[at(h, m, c.keys)] = 0.0;
                    for (int64_t i = 0; i < c.depth; ++i)
                        sum += value(t.q[b * p.q_stride[0] + n * p.q_stride[1] + h * c.depth + i]) *
                               value(t.k[b * p.k_stride[0] + m * p.k_stride[1] + h * c.depth + i]);
                    sum *= double{p.scale};
                }
            std::vector<double> shares = mix(p.mix_scores, c.heads, c.keys, scores);
            double largest = 1.0;  // |l|: its rounding is a relative error of e
            for (int64_t h = 0; h < c.heads; ++h) {
                double top = -INFINITY, sum = 0.0;
                for (int64_t m = 0; m < c.keys; ++m) {
                    double& l = shares[at(h, m, c.keys)];
                    if (p.bias) l += double{p.bias[(h * c.keys + m) * p.bias_stride + n]} / std::numbers::log2e;
                    top = std::max(top, l), largest = std::max(largest, std::fabs(l));
                }
                for (int64_t m = 0; m < c.keys; ++m) sum += shares[at(h, m, c.keys)] = std::exp(shares[at(h, m, c.keys)] - top);
                for (int64_t m = 0; m < c.keys; ++m) shares[at(h, m, c.keys)] /= sum;
            }
            const std::vector<double> weights = mix(p.mix_weights, c.heads, c.keys, shares);
            const std::vector<double> sizes = mix(p.mix_weights, c.heads, c.keys, shares, true);
            for (int64_t h = 0; h < c.heads; ++h) {
                const double shift = p.mix_bias ? double{p.mix_bias[h]} : 0.0;
                for (int64_t i = 0; i < c.value_depth; ++i) {
                    double exact = 0.0, size = 0.0;
                    for (int64_t m = 0; m < c.keys; ++m) {
                        const double x = value(t.v[b * p.v_stride[0] + m * p.v_stride[1] + h * c.value_depth + i]);
                        exact += (weights[at(h, m, c.keys)] + shift) * x;
                        size += (sizes[at(h, m, c.keys)] + std::fabs(shift)) * std::fabs(x);
                    }
                    T& actual = t.y[b * p.y_stride[0] + n * p.y_stride[1] + h * c.value_depth + i];
                    const double error = 2e-6 * largest * size + rounding_of_weights<T>(c.keys) * size;
                    CHECK(std::fabs(value(actual) - exact) <= error + rounding<T> * std::fabs(exact) + 0x1p-25);
                    from_float(7.0f, &actual);  // so that the gaps can be looked at in the end
                }
            }
        }
    for (int64_t i = 0; i < t.y.size(); ++i) CHECK(value(t.y[i]) == 7.0);
}

template <class T>
void compare_all() {
    for (const Mixed& mixed : mixtures) {
        for (int64_t queries : {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 49, 70})
            for (int64_t keys : {1, 3, 16, 49}) compare<T>({1, queries, keys, 2, 5, 9}, mixed);
        for (int64_t depth : {1, 3, 7, 8, 9, 15, 16, 17, 33, 36})
            for (int64_t wide : {1, 8, 17, 64}) compare<T>({2, 5, 6, 3, depth, wide, 3}, mixed);
        for (int64_t keys : {127, 128, 129, 257, 300}) compare<T>({1, 6, keys, 2, 6, 5}, mixed);  // blocks of keys
        for (int64_t keys : {31, 32, 33, 47, 48, 49, 63, 64, 65, 255, 256, 513}) compare<T>({1, 18, keys, 2, 7, 20}, mixed);
        for (int64_t depth : {31, 32, 33, 65}) compare<T>({1, 17, 40, 2, depth, 65, 1}, mixed);
        compare<T>({1, 49, 49, 8, 32, 128}, mixed);
        compare<T>({1, 290, 300, 1, 36, 81}, mixed);
        compare<T>({2, 300, 20, 1, 4, 4, 1}, mixed);  // tasks of queries
        compare<T>({1, 4, 5, 1, 512, 512}, mixed);    // rows of a power of two
        compare<T>({1, 20, 40, 2, 4, 5, 0, 100.0f}, mixed);
        compare<T>({1, 18, 40, 1, 1101, 9}, mixed);  // more channels than are summed at once
        for (float times : {0.0f, -1.0f}) compare<T>({1, 20, 40, 2, 5, 4, 0, 1.0f, times}, mixed);
    }
    compare<T>({1, 3, 4, most_mixed_heads, 2, 3}, mixtures[4]);
}

}  // namespace

TEST(attention_on_every_tail) {
    on_every_isa([] {
        compare_all<float>();
        compare_all<bf16>();
        compare_all<f16>();
    });
}

namespace {

template <class T>
void compare_nan() {
    for (const Mixed& mixed : mixtures) {
        const Case c{1, 40, 40, 2, 3, 4};
        Tensors<T> t(c, mixed);
        from_float(std::nanf(""), &t.q[6 * 17]);  // of the first head, which mixtures carry to the other one
        CHECK(attention(t.p, 1) == Status::ok);
        for (int64_t i = 0; i < t.y.size(); ++i) {
            const bool reached = i / 8 == 17 && (i % 8 < 4 || mixed.scores || mixed.weights);
            CHECK(std::isnan(value(t.y[i])) == reached);
        }
    }
}

// Of a key: all queries that do not see it less than others. Of a value: its channel.
template <class T>
void compare_keys_and_values_that_are_not_finite() {
    for (int64_t keys : {20, 33, 300})
        for (float x : {NAN, INFINITY, -INFINITY}) {
            const Case c{1, 40, keys, 2, 3, 5};
            for (bool of_value : {false, true}) {
                Tensors<T> t(c, mixtures[0]);
                const int64_t key = keys - 1;
                from_float(x, of_value ? &t.v[key * 10 + 5 + 2] : &t.k[key * 6 + 3 + 2]);  // of the second head
                CHECK(attention(t.p, 1) == Status::ok);
                for (int64_t n = 0; n < c.queries; ++n)
                    for (int64_t i = 0; i < 10; ++i) {
                        const double y = value(t.y[n * 10 + i]), towards = value(t.q[n * 6 + 3 + 2]) * double{x};
                        if (i < 5 || (of_value && i != 5 + 2) || (!of_value && towards < 0)) {
                            CHECK(std::isfinite(y));
                        } else if (of_value && !std::isnan(x)) {
                            CHECK(y == double{x});
                        } else {
                            CHECK(std::isnan(y));
                        }
                    }
            }
        }
}

// A query has the same bits in any company.
template <class T>
void compare_cuts() {
    for (const Mixed& mixed : {mixtures[0], mixtures[4]})
        for (int64_t keys : {20, 49, 300}) {
            const Case c{1, 300, keys, 1, 5, 9};
            Tensors<T> t(c, mixed);
            t.p.bias = nullptr;  // which lies by panels of all queries
            CHECK(attention(t.p, 1) == Status::ok);
            for (int64_t first : {0, 3, 31, 290}) {
                AttentionProblem part = t.p;
                part.queries = first == 3 ? 250 : 5;
                part.q = t.q.data() + first * 5;
                Guarded<T> y(part.queries * 9);
                part.y = y.data();
                spoil_scratch();
                CHECK(attention(part, 1) == Status::ok);
                CHECK(std::memcmp(y.data(), t.y.data() + first * 9, static_cast<size_t>(y.size()) * sizeof(T)) == 0);
            }
        }
}

template <class T>
void compare_minus_infinity() {
    for (const Mixed& mixed : {mixtures[1], mixtures[4]})
        for (int64_t keys : {20, 40}) {
            const Case c{1, 3, keys, 1, 3, 4};
            Tensors<T> t(c, mixed);
            for (int64_t m = 0; m < c.keys; ++m) {
                if (m != 5) t.bias[m * panel + 1] = -INFINITY;  // query 1 sees key 5 alone,
                t.bias[m * panel + 2] = -INFINITY;              // query 2 none, and is NaN
            }
            CHECK(attention(t.p, 1) == Status::ok);
            for (int64_t i = 0; i < 4; ++i) {
                double exact = value(t.v[5 * 4 + i]);
                if (mixed.weights) exact *= double{t.mix_weights[0]};
                for (int64_t m = 0; mixed.shift && m < c.keys; ++m) exact += double{t.mix_bias[0]} * value(t.v[m * 4 + i]);
                const double error = 1e-5 + rounding<T> * std::fabs(exact);
                CHECK(std::isfinite(value(t.y[i])) && std::fabs(value(t.y[4 + i]) - exact) <= error && std::isnan(value(t.y[8 + i])));
            }
        }
}

// Denormal numbers are slow.
template <class T>
void compare_denormal(bool masked) {
    for (int64_t keys : {40, 49, 300}) {
        const Case c{1, 20, keys, 1, 32, 32};
        Tensors<T> t(c, mixtures[masked ? 1 : 0]);
        for (int64_t m = 0; masked && m < keys; m += 2)
            for (int64_t n = 0; n < c.queries; ++n) t.bias[m * panel + n] = -INFINITY;
        std::feclearexcept(FE_UNDERFLOW);
        CHECK(attention(t.p, 1) == Status::ok);
        CHECK(!std::fetestexcept(FE_UNDERFLOW));
    }
}

}  // namespace

TEST(attention_keeps_nan_to_its_query) {
    on_every_isa([] {
        compare_nan<float>();
        compare_nan<bf16>();
    });
}

TEST(attention_of_keys_and_values_that_are_not_finite) {
    on_every_isa([] {
        compare_keys_and_values_that_are_not_finite<float>();
        compare_keys_and_values_that_are_not_finite<bf16>();
    });
}

TEST(attention_of_a_query_in_any_company) {
    on_every_isa([] {
        compare_cuts<float>();
        compare_cuts<bf16>();
    });
}

TEST(attention_of_scores_of_minus_infinity) {
    on_every_isa([] {
        compare_minus_infinity<float>();
        compare_minus_infinity<bf16>();
    });
}

TEST(attention_refuses_what_it_cannot_do) {
    const float some[32 * 33] = {};
    const auto gives = [&](Status status, auto change) {
        AttentionProblem p{};
        p.batch = 0, p.heads = 2, p.queries = 3, p.keys = 4, p.depth = p.value_depth = 5;
        CHECK(attention(p, 1) == Status::ok);
        change(p);
        CHECK(attention(p, 1) == status);
    };
    gives(Status::bad_shape, [](AttentionProblem& p) { p.batch = -1; });
    gives(Status::bad_shape, [](AttentionProblem& p) { p.queries = -1; });
    gives(Status::bad_shape, [](AttentionProblem& p) { p.keys = -1; });
    gives(Status::bad_shape, [](AttentionProblem& p) { p.depth = -1; });
    gives(Status::bad_shape, [](AttentionProblem& p) { p.value_depth = -1; });
    gives(Status::bad_shape, [](AttentionProblem& p) { p.heads = 0; });
    gives(Status::bad_shape, [](AttentionProblem& p) { p.batch = 1, p.keys = 0; });
    gives(Status::bad_dtype, [](AttentionProblem& p) { p.dtype = static_cast<DType>(3); });
    gives(Status::bad_layout, [&](AttentionProblem& p) { p.bias = some, p.bias_stride = 3; });
    gives(Status::bad_layout, [&](AttentionProblem& p) { p.mix_bias = some; });
    gives(Status::bad_shape, [&](AttentionProblem& p) { p.mix_scores = some, p.heads = most_mixed_heads + 1; });
    gives(Status::bad_shape, [&](AttentionProblem& p) { p.mix_weights = some, p.heads = most_mixed_heads + 1; });
    gives(Status::ok, [&](AttentionProblem& p) { p.mix_weights = p.mix_bias = some, p.bias = some, p.bias_stride = panel; });
    gives(Status::ok, [](AttentionProblem& p) { p.heads = most_mixed_heads + 1; });
    gives(Status::ok, [](AttentionProblem& p) { p.batch = 1, p.keys = p.queries = 0; });
}

TEST(attention_makes_no_denormal_numbers) {
    on_every_isa([] {
        for (bool masked : {false, true}) {
            compare_denormal<float>(masked);
            compare_denormal<bf16>(masked);
        }
    });
}
