// Every tail against a double-precision loop over the formula, with guard pages behind each buffer.
#include "cpu/ops/feed_forward.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

enum class Norm { computed, given, layer, none };

struct Case {
    int64_t groups, rows, dim, hidden;
    Norm norm = Norm::computed;
    Activation activation = Activation::silu;
    float mean = 0.0f;
};

template <class T>
void compare(const Case& c) {
    const int64_t rows = c.groups * c.rows;
    Guarded<T> x(rows * c.dim), y(x.size()), again(x.size());
    fill(x, c.mean);
    Weight<Operand<T>> first(c.hidden, c.dim), second(c.dim, c.hidden);
    Guarded<Moments> moments(c.groups), collected(c.groups);
    for (int64_t g = 0; g < c.groups; ++g)
        moments[g] = exact_moments(c.rows * c.dim, [&](int64_t i) { return value(x[g * c.rows * c.dim + i]); });

    FeedForwardProblem p{};
    p.dtype = dtype_of<T>;
    p.groups = c.groups, p.rows = c.rows, p.dim = c.dim, p.hidden = c.hidden;
    p.weight1 = first.data(), p.bias1 = first.bias_data();
    p.weight2 = second.data(), p.bias2 = second.bias_data();
    p.layer_norm = c.norm == Norm::layer;
    p.as_it_is = c.norm == Norm::none;
    p.moments = c.norm == Norm::given ? moments.data() : nullptr;
    p.eps = 1e-3f;
    p.activation = c.activation;
    p.x = x.data();
    for (int threads : {1, 2, 3}) {
        Guarded<T>& to = threads == 1 ? y : again;
        fill_with(to, NAN);
        p.y = to.data();
        p.collected = threads == 2 ? nullptr : collected.data();
        spoil_scratch();
        CHECK(feed_forward(p, threads) == Status::ok);
        CHECK(to.canary_intact());
        CHECK(threads == 1 || same_bits(y, again));
        CHECK(moments_are_of(collected, y, c.rows * c.dim));
    }

    std::vector<double> normal(static_cast<size_t>(c.dim)), hidden(static_cast<size_t>(c.hidden)), doubt(hidden);  // of each hidden value
    for (int64_t r = 0; r < rows; ++r) {
        const auto at = [&](int64_t k) { return value(x[r * c.dim + k]); };
        const Moments norm = p.layer_norm ? exact_moments(c.dim, at) : moments[r / c.rows];
        for (int64_t k = 0; k < c.dim; ++k)
            normal[static_cast<size_t>(k)] = p.as_it_is ? at(k) : (at(k) - norm.mean) / std::sqrt(norm.variance + double{p.eps});
        for (int64_t n = 0; n < c.hidden; ++n) {
            double sum = first.bias(n), size = 0;
            for (int64_t k = 0; k < c.dim; ++k) {
                sum += normal[static_cast<size_t>(k)] * first.at(n, k);
                size += std::fabs(normal[static_cast<size_t>(k)] * first.at(n, k));
            }
            hidden[static_cast<size_t>(n)] = activate_exactly(c.activation, sum);
            doubt[static_cast<size_t>(n)] = operand_rounding<T> * (size + std::fabs(hidden[static_cast<size_t>(n)]));
        }
        for (int64_t n = 0; n < c.dim; ++n) {
            double sum = at(n) + second.bias(n), size = std::fabs(at(n)), doubts = 0;
            for (int64_t k = 0; k < c.hidden; ++k) {
                doubts += doubt[static_cast<size_t>(k)] * std::fabs(second.at(n, k));
                sum += hidden[static_cast<size_t>(k)] * second.at(n, k);
                size += std::fabs(hidden[static_cast<size_t>(k)] * second.at(n, k));
            }
            CHECK(std::fabs(value(y[r * c.dim + n]) - sum) < 5e-6 * (1 + size) + doubts + rounding<T> * std::fabs(sum));
        }
    }
}

template <class T>
void compare_every_part() {
    for (Norm norm : {Norm::computed, Norm::given, Norm::layer, Norm::none}) {
        for (Activation activation : activations) compare<T>({2, 18, 24, 37, norm, activation});
        if (norm == Norm::none) continue;  // values as large as that are no use of it
        for (float mean : {3.0f, 30.0f, 100.0f}) compare<T>({2, 21, 24, 16, norm, Activation::gelu, mean});
    }
}

}  // namespace

TEST(feed_forward_on_every_tail) {
    on_every_isa([] {
        for (Norm norm : {Norm::computed, Norm::layer, Norm::none}) {
            for (int64_t rows : {1, 2, 15, 16, 17, 63, 64, 65, 130})
                for (int64_t dim : {3, 16, 33}) compare<float>({2, rows, dim, 20, norm});
            for (int64_t dim : {1, 2, 7, 15, 16, 17, 31, 32, 48, 257})
                for (int64_t hidden : {0, 1, 17, 32, 65}) compare<float>({1, 5, dim, hidden, norm});
        }
        compare<float>({1, 20, 512, 600});  // strides that would share cache sets
    });
}

TEST(feed_forward_with_every_part_of_its_formula) {
    on_every_isa([] {
        compare_every_part<float>();
        compare_every_part<bf16>();
        compare_every_part<f16>();
    });
}

TEST(feed_forward_on_several_threads) {
    on_every_isa([] {
        for (Norm norm : {Norm::computed, Norm::given, Norm::layer, Norm::none}) compare<float>({3, 150, 48, 96, norm});
        compare<f16>({1, 300, 64, 128});
    });
}

TEST(feed_forward_refuses_what_it_cannot_do) {
    const Moments moments{0.0, 1.0};
    const auto status = [](const auto& change) {
        FeedForwardProblem p{};
        p.rows = p.dim = p.hidden = 1;  // and no group: nothing is read
        change(p);
        return feed_forward(p, 1);
    };
    CHECK(status([](FeedForwardProblem&) {}) == Status::ok);
    CHECK(status([](FeedForwardProblem& p) { p.groups = -1; }) == Status::bad_shape);
    CHECK(status([](FeedForwardProblem& p) { p.rows = -1; }) == Status::bad_shape);
    CHECK(status([](FeedForwardProblem& p) { p.dim = -1; }) == Status::bad_shape);
    CHECK(status([](FeedForwardProblem& p) { p.hidden = -1; }) == Status::bad_shape);
    CHECK(status([](FeedForwardProblem& p) { p.dtype = static_cast<DType>(-1); }) == Status::bad_dtype);
    CHECK(status([&](FeedForwardProblem& p) { p.layer_norm = true, p.moments = &moments; }) == Status::bad_shape);
    CHECK(status([&](FeedForwardProblem& p) { p.as_it_is = true, p.moments = &moments; }) == Status::bad_shape);
    CHECK(status([](FeedForwardProblem& p) { p.as_it_is = p.layer_norm = true; }) == Status::bad_shape);
}
