// Every tail against a double-precision loop over the formula, with guard pages behind each buffer.
#include "cpu/ops/separable_attention_block.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch, dim, height, width, patch_h, patch_w;
    bool given = false;  // the moments of x
    float mean = 0.0f, query = 1.0f;
};

template <class T>
void compare(const Case& c) {
    const int64_t positions = c.height * c.width, phases = c.patch_h * c.patch_w, d = c.dim;
    Guarded<T> x(c.batch * positions * d), y(x.size()), again(x.size());
    fill(x, c.mean);
    Guarded<float> query(d);
    fill(query, 0.0f, c.query / std::sqrt(static_cast<float>(d)));
    Weight key(d, d);
    Weight<Operand<T>> value_(d, d), out(d, d);
    Guarded<Moments> moments(c.batch), collected(c.batch);
    for (int64_t b = 0; b < c.batch; ++b)
        moments[b] = exact_moments(positions * d, [&](int64_t i) { return value(x[b * positions * d + i]); });

    SeparableAttentionBlockProblem p{};
    p.dtype = dtype_of<T>;
    p.batch = c.batch, p.dim = d, p.height = c.height, p.width = c.width, p.patch_h = c.patch_h, p.patch_w = c.patch_w;
    p.query = query.data();
    p.key_weight = key.data(), p.key_bias = key.bias_data();
    p.value_weight = value_.data(), p.value_bias = value_.bias_data();
    p.out_weight = out.data(), p.out_bias = out.bias_data();
    p.moments = c.given ? moments.data() : nullptr;
    p.eps = 1e-3f;
    p.x = x.data();
    for (int threads : {1, 2, 3}) {
        Guarded<T>& to = threads == 1 ? y : again;
        fill_with(to, NAN);
        p.y = to.data();
        p.collected = threads == 2 ? nullptr : collected.data();
        spoil_scratch();
        CHECK(separable_attention_block(p, threads) == Status::ok);
        CHECK(to.canary_intact());
        CHECK(threads == 1 || same_bits(y, again));
        CHECK(moments_are_of(collected, y, positions * d));
    }

    std::vector<double> centred(static_cast<size_t>(positions * d)), mixed(static_cast<size_t>(d)), context(mixed), gated(mixed),
        doubt(mixed);
    for (int64_t b = 0; b < c.batch; ++b) {
        const auto at = [&](int64_t n, int64_t k) -> double& { return centred[static_cast<size_t>(n * d + k)]; };
        const auto given = [&](int64_t n, int64_t k) { return value(x[(b * positions + n) * d + k]); };
        const double sigma = std::sqrt(moments[b].variance + double{p.eps});
        for (int64_t n = 0; n < positions; ++n)
            for (int64_t k = 0; k < d; ++k) at(n, k) = (given(n, k) - moments[b].mean) / sigma;
        const auto score = [&](int64_t n) {
            double sum = 0;
            for (int64_t k = 0; k < d; ++k) sum += double{query[k]} * at(n, k);
            return sum;
        };
        for (int64_t phase = 0; phase < phases; ++phase) {
            const auto each_position = [&](const auto& body) {
                for (int64_t n = 0; n < positions; ++n)
                    if (n / c.width % c.patch_h * c.patch_w + n % c.width % c.patch_w == phase) body(n);
            };
            double top = -INFINITY, sum = 0;
            each_position([&](int64_t n) { top = std::fmax(top, score(n)); });
            std::fill(mixed.begin(), mixed.end(), 0.0);
            each_position([&](int64_t n) {
                const double e = std::exp(score(n) - top);
                sum += e;
                for (int64_t k = 0; k < d; ++k) mixed[static_cast<size_t>(k)] += e * at(n, k);
            });
            for (int64_t j = 0; j < d; ++j) {
                double total = key.bias(j);
                for (int64_t k = 0; k < d; ++k) total += key.at(j, k) * mixed[static_cast<size_t>(k)] / sum;
                context[static_cast<size_t>(j)] = total;
            }
            each_position([&](int64_t n) {
                for (int64_t j = 0; j < d; ++j) {
                    double total = value_.bias(j), size = 0, by = context[static_cast<size_t>(j)];
                    for (int64_t k = 0; k < d; ++k) total += value_.at(j, k) * at(n, k), size += std::fabs(value_.at(j, k) * at(n, k));
                    gated[static_cast<size_t>(j)] = std::fmax(total, 0.0) * by;
                    doubt[static_cast<size_t>(j)] = operand_rounding<T> * std::fabs(by) * (size + std::fabs(total));
                }
                for (int64_t j = 0; j < d; ++j) {
                    double total = out.bias(j) + given(n, j), size = std::fabs(given(n, j)), doubts = 0;
                    for (int64_t k = 0; k < d; ++k) {
                        total += out.at(j, k) * gated[static_cast<size_t>(k)];
                        size += std::fabs(out.at(j, k) * gated[static_cast<size_t>(k)]);
                        doubts += std::fabs(out.at(j, k)) * doubt[static_cast<size_t>(k)];
                    }
                    const double actual = value(y[(b * positions + n) * d + j]);
                    CHECK(std::fabs(actual - total) < 2e-5 * (1 + size) + doubts + rounding<T> * std::fabs(total));
                }
            });
        }
    }
}

template <class T>
void compare_every_part() {
    for (bool given : {false, true})
        for (float mean : {0.0f, 3.0f, 30.0f, 100.0f}) compare<T>({2, 24, 6, 10, 2, 2, given, mean});
    compare<T>({1, 33, 4, 20, 4, 1});
    compare<T>({1, 20, 16, 16, 8, 8});
    compare<T>({1, 17, 18, 18, 1, 1, false, 0.0f, 30.0f});  // scores far apart, in several blocks
}

}  // namespace

TEST(separable_attention_block_on_every_tail) {
    on_every_isa([] {
        for (int64_t d : {1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 65, 130}) {
            compare<float>({2, d, 1, 1, 1, 1});
            compare<float>({1, d, 4, 9, 4, 1});
            compare<float>({1, d, 4, 6, 2, 2});
        }
        for (int64_t width : {1, 3, 15, 16, 17, 63, 64, 65, 130}) {
            compare<float>({2, 9, 1, width, 1, 1});
            compare<float>({1, 9, 3, width, 3, 1});
            compare<float>({1, 9, 2, 3 * width, 1, 3});
        }
    });
}

TEST(separable_attention_block_with_many_phases) {
    on_every_isa([] {
        compare<float>({1, 10, 24, 24, 8, 8});
        compare<float>({2, 5, 8, 64, 8, 8});
        compare<float>({1, 6, 300, 5, 300, 1});  // (B, P, N, d) with many rows
        compare<float>({1, 6, 12, 10, 12, 10});  // a phase for each position
        compare<float>({1, 6, 10, 15, 5, 1});
        compare<float>({1, 6, 9, 14, 3, 7});
    });
}

TEST(separable_attention_block_with_every_part_of_its_formula) {
    on_every_isa([] {
        compare_every_part<float>();
        compare_every_part<bf16>();
        compare_every_part<f16>();
    });
}

TEST(separable_attention_block_on_several_threads) {
    on_every_isa([] {
        compare<float>({3, 70, 16, 16, 2, 2});
        compare<bf16>({1, 130, 16, 18, 2, 2, true});
        compare<float>({1, 40, 32, 64, 8, 8});
        compare<float>({5, 64, 10, 10, 2, 2});        // images of one thread each, and one of all
        compare<f16>({4, 32, 12, 20, 2, 2, true});    // of one thread each
        compare<float>({3, 300, 6, 6, 2, 2, false});  // weights too large for that
    });
}

TEST(scores_of_minus_infinity_weigh_nothing) {
    // The first block of positions has scores of -infinity alone, the second finite ones: as in a softmax over both.
    on_every_isa([] {
        const int64_t positions = 128, d = 2;
        Guarded<float> x(positions * d), query(d), y(x.size());
        for (int64_t n = 0; n < positions; ++n) {
            x[n * d] = n < 64 ? 2.0f : 0.0f;
            x[n * d + 1] = n < 64 ? 5.0f : -1.0f;
        }
        query[0] = -3e38f;
        query[1] = 0.0f;
        Weight weight(d, d);
        const Moments moments{0.0, 1.0};
        SeparableAttentionBlockProblem p{};
        p.batch = 1, p.dim = d, p.height = 1, p.width = positions, p.patch_h = p.patch_w = 1;
        p.query = query.data();
        p.key_weight = weight.data(), p.value_weight = p.out_weight = weight.data();
        p.key_bias = p.value_bias = p.out_bias = weight.bias_data();
        p.moments = &moments;
        p.x = x.data();
        p.y = y.data();
        CHECK(separable_attention_block(p, 1) == Status::ok);
        for (int64_t i = 0; i < y.size(); ++i) CHECK(std::isfinite(y[i]));
    });
}

TEST(separable_attention_block_refuses_what_it_cannot_walk) {
    const auto status = [](const auto& change) {
        SeparableAttentionBlockProblem p{};
        p.dim = p.patch_h = p.patch_w = 1;  // and no image: nothing is read
        p.height = p.width = 4;
        change(p);
        return separable_attention_block(p, 1);
    };
    using Problem = SeparableAttentionBlockProblem;
    CHECK(status([](Problem&) {}) == Status::ok);
    CHECK(status([](Problem& p) { p.batch = -1; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.dim = -1; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.height = -4; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.width = -4; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.patch_h = 0; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.patch_w = -1; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.patch_h = 3; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.patch_w = 8; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.dtype = static_cast<DType>(3); }) == Status::bad_dtype);
}
