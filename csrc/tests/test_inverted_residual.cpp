// Every tail against a double-precision loop over the formula, with guard pages behind each buffer.
#include "cpu/ops/inverted_residual.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch, channels, hidden, columns, height, width;
    int stride = 1;
    bool expand = true, residual = false;
    Activation activation = Activation::silu;
};

template <class T>
void compare(const Case& c) {
    const int64_t out_height = (c.height - 1) / c.stride + 1, out_width = (c.width - 1) / c.stride + 1;
    const int64_t pixels = c.height * c.width, out_pixels = out_height * out_width;
    Guarded<T> x(c.batch * pixels * c.channels), y(c.batch * out_pixels * c.columns), again(y.size());
    fill(x);
    Weight<Operand<T>> expand(c.hidden, c.channels), reduce(c.columns, c.hidden);
    const int64_t taps_stride = depthwise_stride(c.hidden);
    Guarded<float> taps(9 * taps_stride), taps_bias(taps_stride);
    fill(taps, 0.0f, 0.4f);
    fill(taps_bias);
    Guarded<Moments> collected(c.batch);

    InvertedResidualProblem p{};
    p.dtype = dtype_of<T>;
    p.batch = c.batch, p.height = c.height, p.width = c.width;
    p.channels = c.channels, p.hidden = c.hidden, p.columns = c.columns;
    p.stride = c.stride;
    if (c.expand) p.expand_weight = expand.data(), p.expand_bias = expand.bias_data();
    p.depthwise_weight = taps.data(), p.depthwise_bias = taps_bias.data();
    p.reduce_weight = reduce.data(), p.reduce_bias = reduce.bias_data();
    p.activation = c.activation;
    p.residual = c.residual;
    p.x = x.data();
    for (int threads : {1, 2, 3}) {
        Guarded<T>& to = threads == 1 ? y : again;
        fill_with(to, NAN);
        p.y = to.data();
        p.collected = threads == 2 ? nullptr : collected.data();
        spoil_scratch();
        CHECK(inverted_residual(p, threads) == Status::ok);
        CHECK(to.canary_intact());
        CHECK(threads == 1 || same_bits(y, again));
        CHECK(moments_are_of(collected, y, out_pixels * c.columns));
    }

    std::vector<double> wide(static_cast<size_t>(pixels * c.hidden)), filtered(static_cast<size_t>(c.hidden)), doubt(filtered);
    for (int64_t b = 0; b < c.batch; ++b) {
        const auto at = [&](int64_t pixel, int64_t k) { return value(x[(b * pixels + pixel) * c.channels + k]); };
        for (int64_t pixel = 0; pixel < pixels; ++pixel)
            for (int64_t e = 0; e < c.hidden; ++e) {
                double sum = c.expand ? expand.bias(e) : at(pixel, e);
                for (int64_t k = 0; c.expand && k < c.channels; ++k) sum += expand.at(e, k) * at(pixel, k);
                wide[static_cast<size_t>(pixel * c.hidden + e)] = c.expand ? activate_exactly(c.activation, sum) : sum;
            }
        for (int64_t place = 0; place < out_pixels; ++place) {
            for (int64_t e = 0; e < c.hidden; ++e) {
                double sum = double{taps_bias[e]}, size = 0;
                for (int64_t tap = 0; tap < 9; ++tap) {
                    const int64_t row = place / out_width * c.stride + tap / 3 - 1, column = place % out_width * c.stride + tap % 3 - 1;
                    if (row >= 0 && row < c.height && column >= 0 && column < c.width) {
                        const double term =
                            double{taps[tap * taps_stride + e]} * wide[static_cast<size_t>((row * c.width + column) * c.hidden + e)];
                        sum += term, size += c.expand ? std::fabs(term) : 0.0;
                    }
                }
                filtered[static_cast<size_t>(e)] = activate_exactly(c.activation, sum);
                doubt[static_cast<size_t>(e)] = operand_rounding<T> * (0.15 * size + 1.1 * std::fabs(filtered[static_cast<size_t>(e)]));
            }
            for (int64_t n = 0; n < c.columns; ++n) {
                double sum = reduce.bias(n) + (c.residual ? at(place, n) : 0.0), size = std::fabs(sum), doubts = 0;
                for (int64_t e = 0; e < c.hidden; ++e) {
                    sum += reduce.at(n, e) * filtered[static_cast<size_t>(e)];
                    size += std::fabs(reduce.at(n, e) * filtered[static_cast<size_t>(e)]);
                    doubts += std::fabs(reduce.at(n, e)) * doubt[static_cast<size_t>(e)];
                }
                const double actual = value(y[(b * out_pixels + place) * c.columns + n]);
                CHECK(std::fabs(actual - sum) < 5e-6 * (1 + size) + doubts + rounding<T> * std::fabs(sum));
            }
        }
    }
}

template <class T>
void compare_every_part() {
    for (int stride : {1, 2})
        for (Activation activation : activations) {
            compare<T>({2, 5, 19, 7, 9, 10, stride, true, false, activation});
            compare<T>({2, 19, 19, 7, 8, 7, stride, false, false, activation});
        }
    compare<T>({2, 12, 24, 12, 6, 5, 1, true, true});
    compare<T>({2, 12, 12, 12, 6, 5, 1, false, true});
}

}  // namespace

TEST(inverted_residual_on_every_tail) {
    on_every_isa([] {
        for (int stride : {1, 2}) {
            for (int64_t height : {1, 2, 3, 5, 8})
                for (int64_t width : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17})
                    for (bool expand : {false, true}) compare<float>({1, 6, expand ? 10 : 6, 5, height, width, stride, expand});
            for (int64_t hidden : {1, 7, 8, 15, 16, 17, 31, 32, 33, 48, 65})
                for (int64_t columns : {1, 16, 33}) {
                    compare<float>({1, 3, hidden, columns, 4, 5, stride});
                    compare<float>({1, hidden, hidden, columns, 4, 5, stride, false});
                }
            for (int64_t channels : {1, 2, 15, 16, 17, 33}) compare<float>({2, channels, 20, channels, 5, 6, stride});
        }
    });
}

TEST(inverted_residual_with_every_part_of_its_formula) {
    on_every_isa([] {
        compare_every_part<float>();
        compare_every_part<bf16>();
        compare_every_part<f16>();
    });
}

TEST(inverted_residual_in_several_steps) {
    // Maps so wide that a band is walked a few rows at a time, and rows of one step are left for the next.
    on_every_isa([] {
        for (int stride : {1, 2}) {
            compare<float>({1, 3, 192, 5, 11, 80, stride});   // expanded rows: 5 at once
            compare<float>({1, 3, 130, 5, 14, 200, stride});  // 2 or 3
            compare<bf16>({2, 3, 256, 5, 8, 110, stride});    // one output row a step
            compare<float>({1, 2, 1000, 3, 5, 40, stride});
            compare<float>({1, 64, 64, 5, 9, 90, stride, false});
        }
        compare<float>({1, 9, 400, 9, 13, 33, 1, true, true});
        compare<float>({3, 4, 520, 3, 20, 9, 2});  // a stride that would share cache sets
    });
}

TEST(inverted_residual_refuses_what_it_cannot_do) {
    const auto status = [](const auto& change) {
        InvertedResidualProblem p{};
        p.height = p.width = p.channels = p.hidden = p.columns = p.stride = 1;  // and no image: nothing is read
        change(p);
        return inverted_residual(p, 1);
    };
    using Problem = InvertedResidualProblem;
    CHECK(status([](Problem&) {}) == Status::ok);
    CHECK(status([](Problem& p) { p.batch = -1; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.height = -1; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.width = -1; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.channels = p.hidden = -1; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.columns = -1; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.stride = 0; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.stride = 3; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.hidden = 2; }) == Status::bad_shape);  // no expansion
    CHECK(status([](Problem& p) { p.residual = true, p.stride = 2; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.residual = true, p.columns = 2; }) == Status::bad_shape);
    CHECK(status([](Problem& p) { p.dtype = static_cast<DType>(3); }) == Status::bad_dtype);
}
