// Every tail against a double-precision loop over the formula, with guard pages behind each tensor.
#include <cmath>

#include "cpu/ops/layer_norm.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

void compare(int64_t rows, int64_t channels) {
    Guarded<float> x(rows * channels), y(x.size()), dy(x.size()), dx(x.size());
    Guarded<float> weight(channels), bias(channels), dweight(channels), dbias(channels);
    for (int64_t i = 0; i < x.size(); ++i) {
        x[i] = 10.0f + random_float();
        dy[i] = random_float();
    }
    for (int64_t c = 0; c < channels; ++c) {
        weight[c] = random_float();
        bias[c] = random_float();
    }
    LayerNormProblem p{};
    p.dtype = DType::f32;
    p.rows = rows;
    p.channels = channels;
    p.eps = 1e-3f;
    p.weight = weight.data();
    p.bias = bias.data();
    p.x = x.data();
    p.y = y.data();
    p.dy = dy.data();
    p.dx = dx.data();
    p.dweight = dweight.data();
    p.dbias = dbias.data();
    CHECK(layer_norm(p, 2) == Status::ok);
    CHECK(layer_norm_backward(p, 2) == Status::ok);
    CHECK(y.canary_intact() && dx.canary_intact() && dweight.canary_intact() && dbias.canary_intact());

    const double count = static_cast<double>(channels);
    std::vector<double> sum_dweight(static_cast<size_t>(channels)), sum_dbias(sum_dweight.size());
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t first = row * channels;
        double mean = 0, variance = 0, s1 = 0, s2 = 0;
        for (int64_t c = 0; c < channels; ++c) mean += double{x[first + c]} / count;
        for (int64_t c = 0; c < channels; ++c) variance += (double{x[first + c]} - mean) * (double{x[first + c]} - mean) / count;
        const double inverse = 1 / std::sqrt(variance + double{p.eps});
        const auto normal = [&](int64_t c) { return (double{x[first + c]} - mean) * inverse; };
        for (int64_t c = 0; c < channels; ++c) {
            const double g = double{dy[first + c]}, scaled = g * double{weight[c]};
            CHECK(std::fabs(double{y[first + c]} - (normal(c) * double{weight[c]} + double{bias[c]})) < 1e-4);
            s1 += scaled / count;
            s2 += scaled * normal(c) / count;
            sum_dweight[static_cast<size_t>(c)] += g * normal(c);
            sum_dbias[static_cast<size_t>(c)] += g;
        }
        for (int64_t c = 0; c < channels; ++c) {
            const double expected = (double{dy[first + c]} * double{weight[c]} - s1 - normal(c) * s2) * inverse;
            CHECK(std::fabs(double{dx[first + c]} - expected) < 1e-4 * (1 + inverse));
        }
    }
    for (int64_t c = 0; c < channels; ++c) {
        CHECK(std::fabs(double{dweight[c]} - sum_dweight[static_cast<size_t>(c)]) < 1e-3);
        CHECK(std::fabs(double{dbias[c]} - sum_dbias[static_cast<size_t>(c)]) < 1e-3);
    }
}

}  // namespace

TEST(layer_norm_on_every_tail) {
    on_every_isa([] {
        for (int64_t rows : {1, 3, 4, 6, 33})
            for (int64_t channels : {1, 2, 7, 8, 9, 15, 16, 17, 33, 63, 64, 65, 144}) compare(rows, channels);
        compare(2, 9000);   // three tiles a row
        compare(300, 144);  // large enough for a parallel region
    });
}

TEST(layer_norm_refuses_negative_sizes) {
    LayerNormProblem p{};
    p.rows = -1;
    CHECK(layer_norm(p, 1) == Status::bad_shape);
    p.rows = 0;
    CHECK(layer_norm(p, 1) == Status::ok);
}
