// Every tail against a double-precision loop over the formula, with guard pages behind each tensor.
#include <cmath>

#include "cpu/ops/group_norm.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

void compare(int64_t batch, int64_t channels, int64_t positions, bool channels_last) {
    const int64_t count = channels * positions;
    Guarded<float> x(batch * count), y(batch * count), dy(batch * count), dx(batch * count);
    Guarded<float> weight(channels), bias(channels), dweight(channels), dbias(channels);
    for (int64_t i = 0; i < x.size(); ++i) {
        x[i] = 10.0f + random_float();
        dy[i] = random_float();
    }
    for (int64_t c = 0; c < channels; ++c) {
        weight[c] = random_float();
        bias[c] = random_float();
    }
    GroupNormProblem p{};
    p.dtype = DType::f32;
    p.channels_last = channels_last;
    p.batch = batch;
    p.channels = channels;
    p.positions = positions;
    p.eps = 1e-3f;
    p.weight = weight.data();
    p.bias = bias.data();
    p.x = x.data();
    p.y = y.data();
    p.dy = dy.data();
    p.dx = dx.data();
    p.dweight = dweight.data();
    p.dbias = dbias.data();
    CHECK(group_norm(p, 2) == Status::ok);
    CHECK(group_norm_backward(p, 2) == Status::ok);
    CHECK(y.canary_intact() && dx.canary_intact() && dweight.canary_intact() && dbias.canary_intact());

    const auto channel_of = [&](int64_t i) { return channels_last ? i % channels : i / positions; };
    std::vector<double> sum_dweight(static_cast<size_t>(channels)), sum_dbias(sum_dweight.size());
    for (int64_t image = 0; image < batch; ++image) {
        const int64_t first = image * count;
        double mean = 0, variance = 0, s1 = 0, s2 = 0;
        for (int64_t i = 0; i < count; ++i) mean += double{x[first + i]} / static_cast<double>(count);
        for (int64_t i = 0; i < count; ++i)
            variance += (double{x[first + i]} - mean) * (double{x[first + i]} - mean) / static_cast<double>(count);
        const double inverse = 1 / std::sqrt(variance + double{p.eps});
        const auto normal = [&](int64_t i) { return (double{x[first + i]} - mean) * inverse; };
        for (int64_t i = 0; i < count; ++i) {
            const double g = double{dy[first + i]}, scaled = g * double{weight[channel_of(i)]};
            CHECK(std::fabs(double{y[first + i]} - (normal(i) * double{weight[channel_of(i)]} + double{bias[channel_of(i)]})) < 1e-4);
            s1 += scaled / static_cast<double>(count);
            s2 += scaled * normal(i) / static_cast<double>(count);
            sum_dweight[static_cast<size_t>(channel_of(i))] += g * normal(i);
            sum_dbias[static_cast<size_t>(channel_of(i))] += g;
        }
        for (int64_t i = 0; i < count; ++i) {
            const double expected = (double{dy[first + i]} * double{weight[channel_of(i)]} - s1 - normal(i) * s2) * inverse;
            CHECK(std::fabs(double{dx[first + i]} - expected) < 1e-4 * (1 + inverse));
        }
    }
    for (int64_t c = 0; c < channels; ++c) {
        CHECK(std::fabs(double{dweight[c]} - sum_dweight[static_cast<size_t>(c)]) < 1e-3);
        CHECK(std::fabs(double{dbias[c]} - sum_dbias[static_cast<size_t>(c)]) < 1e-3);
    }
}

}  // namespace

TEST(group_norm_on_every_tail) {
    on_every_isa([] {
        for (bool channels_last : {false, true}) {
            for (int64_t channels : {1, 3, 7, 8, 9, 16, 17, 33, 65})
                for (int64_t positions : {1, 4, 15, 16, 17, 70, 129}) compare(2, channels, positions, channels_last);
            compare(1, 5, 5000, channels_last);
            compare(2, 40, 900, channels_last);  // large enough for a parallel region
        }
    });
}

TEST(group_norm_refuses_negative_sizes) {
    GroupNormProblem p{};
    p.batch = -1;
    CHECK(group_norm(p, 1) == Status::bad_shape);
    p.batch = 0;
    CHECK(group_norm(p, 1) == Status::ok);
}
