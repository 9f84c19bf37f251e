// Every tail against a double-precision loop over the formula, with guard pages behind each tensor.
#include <cmath>

#include "cpu/ops/separable_attention.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch, dim, height, width, patch_h, patch_w;
    bool channels_last;
};

int64_t channels(const Case& c) { return 1 + 2 * c.dim; }

void set_strides(const Case& c, int64_t count, Tensor4* t) {
    const int64_t last[] = {count * c.height * c.width, 1, c.width * count, count};
    const int64_t first[] = {count * c.height * c.width, c.height * c.width, c.width, 1};
    for (int i = 0; i < 4; ++i) t->stride[i] = c.channels_last ? last[i] : first[i];
}

int64_t index(const Tensor4& t, int64_t b, int64_t channel, int64_t y, int64_t x) {
    return b * t.stride[0] + channel * t.stride[1] + y * t.stride[2] + x * t.stride[3];
}

// The phase of a position: the row of (B, C, P, N), or the place inside its patch.
int64_t phase_of(const Case& c, int64_t y, int64_t x) { return c.patch_h == 0 ? y : y % c.patch_h * c.patch_w + x % c.patch_w; }

void compare(const Case& c) {
    const int64_t phases = c.patch_h == 0 ? c.height : c.patch_h * c.patch_w, pixels = c.height * c.width;
    Guarded<float> qkv(c.batch * channels(c) * pixels), y(c.batch * c.dim * pixels), dy(y.size()), dqkv(qkv.size());
    for (int64_t i = 0; i < qkv.size(); ++i) qkv[i] = random_float();
    SeparableAttentionProblem p{DType::f32, c.batch, c.dim, {c.height, c.width}, c.patch_h, c.patch_w, {}, {}, {}};
    set_strides(c, channels(c), &p.qkv);
    set_strides(c, c.dim, &p.y);
    set_strides(c, channels(c), &p.dqkv);
    p.qkv.data = qkv.data();
    p.y.data = y.data();
    p.dqkv.data = dqkv.data();
    CHECK(separable_attention(p, 2) == Status::ok);
    CHECK(y.canary_intact());

    const auto at = [&](int64_t b, int64_t channel, int64_t row, int64_t column) {
        return double{qkv[index(p.qkv, b, channel, row, column)]};
    };
    const auto each_position = [&](int64_t phase, const auto& body) {
        for (int64_t row = 0; row < c.height; ++row)
            for (int64_t column = 0; column < c.width; ++column)
                if (phase_of(c, row, column) == phase) body(row, column);
    };
    for (int64_t i = 0; i < dy.size(); ++i) dy[i] = random_float();
    p.y.data = dy.data();
    CHECK(separable_attention_backward(p, 2) == Status::ok);
    CHECK(dqkv.canary_intact());

    const auto near = [](double actual, double expected) { return std::fabs(actual - expected) < 1e-4 * (1 + std::fabs(expected)); };
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t phase = 0; phase < phases; ++phase) {
            const auto q = [&](int64_t row, int64_t column) { return at(b, 0, row, column); };
            const auto k = [&](int64_t channel, int64_t row, int64_t column) { return at(b, 1 + channel, row, column); };
            const auto v = [&](int64_t channel, int64_t row, int64_t column) { return at(b, 1 + c.dim + channel, row, column); };
            const auto g = [&](int64_t channel, int64_t row, int64_t column) { return double{dy[index(p.y, b, channel, row, column)]}; };
            const auto gradient = [&](int64_t channel, int64_t row, int64_t column) {
                return double{dqkv[index(p.dqkv, b, channel, row, column)]};
            };
            double sum = 0;
            each_position(phase, [&](int64_t row, int64_t column) { sum += std::exp(q(row, column)); });
            const auto s = [&](int64_t row, int64_t column) { return std::exp(q(row, column)) / sum; };
            std::vector<double> dcontext(static_cast<size_t>(c.dim));
            for (int64_t channel = 0; channel < c.dim; ++channel) {
                double context = 0;
                each_position(phase, [&](int64_t row, int64_t column) {
                    context += s(row, column) * k(channel, row, column);
                    dcontext[static_cast<size_t>(channel)] += g(channel, row, column) * std::fmax(v(channel, row, column), 0.0);
                });
                each_position(phase, [&](int64_t row, int64_t column) {
                    const double value = v(channel, row, column);
                    CHECK(near(double{y[index(p.y, b, channel, row, column)]}, std::fmax(value, 0.0) * context));
                    CHECK(near(gradient(1 + channel, row, column), s(row, column) * dcontext[static_cast<size_t>(channel)]));
                    CHECK(near(gradient(1 + c.dim + channel, row, column), value > 0 ? g(channel, row, column) * context : 0.0));
                });
            }
            const auto ds = [&](int64_t row, int64_t column) {
                double total = 0;
                for (int64_t channel = 0; channel < c.dim; ++channel)
                    total += dcontext[static_cast<size_t>(channel)] * k(channel, row, column);
                return total;
            };
            double mean = 0;
            each_position(phase, [&](int64_t row, int64_t column) { mean += s(row, column) * ds(row, column); });
            each_position(phase, [&](int64_t row, int64_t column) {
                CHECK(near(gradient(0, row, column), s(row, column) * (ds(row, column) - mean)));
            });
        }
}

}  // namespace

TEST(separable_attention_on_every_tail) {
    on_every_isa([] {
        for (bool channels_last : {false, true}) {
            for (int64_t width : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33})
                for (int64_t dim : {1, 3, 4, 9, 17}) compare({2, dim, 3, width, 0, 0, channels_last});
            for (int64_t width : {2, 6, 8, 10, 16, 18, 34})
                for (int64_t dim : {1, 5, 70}) compare({1, dim, 4, width, 2, 2, channels_last});
            compare({1, 3, 6, 12, 3, 4, channels_last});
            compare({1, 3, 4, 24, 2, 8, channels_last});
            compare({2, 70, 16, 16, 2, 2, channels_last});  // large enough for a parallel region
        }
        compare({1, 3, 4, 9, 2, 3, true});
    });
}

TEST(separable_attention_refuses_what_it_cannot_walk) {
    SeparableAttentionProblem p{DType::f32, 1, 1, {4, 9}, 2, 3, {}, {}, {}};
    CHECK(separable_attention(p, 1) == Status::bad_layout);  // all strides are 0
    p.size[0] = 3;
    CHECK(separable_attention(p, 1) == Status::bad_shape);
    p.batch = -1;
    CHECK(separable_attention(p, 1) == Status::bad_shape);
}

TEST(sixteen_bit_floats_survive_a_load_and_a_store) {
    // Through the kernel: with one position, s = 1 and y = relu(v) k. k = 1 passes v through one load and one store.
    on_every_isa([] {
        for (DType dtype : {DType::f16, DType::bf16}) {
            const int64_t count = 1 << 16;
            Guarded<uint16_t> qkv(3 * count), y(count);
            const uint16_t one = dtype == DType::f16 ? 0x3C00 : 0x3F80;
            for (int64_t i = 0; i < count; ++i) {
                qkv[3 * i] = 0;
                qkv[3 * i + 1] = one;
                qkv[3 * i + 2] = static_cast<uint16_t>(i);
            }
            SeparableAttentionProblem p{dtype, count, 1, {1, 1}, 0, 0, {}, {}, {}};
            p.qkv = {qkv.data(), {3, 1, 1, 1}};
            p.y = {y.data(), {1, 1, 1, 1}};
            CHECK(separable_attention(p, 1) == Status::ok);
            const int infinity = dtype == DType::f16 ? 0x7C00 : 0x7F80;
            for (int i = 0; i < count; ++i) {
                const bool negative = i >= 0x8000;
                const int magnitude = i & 0x7FFF;
                if (magnitude > infinity) {
                    CHECK((y[i] & 0x7FFF) > infinity);  // NaN stays NaN
                } else {
                    CHECK((y[i] & 0x7FFF) == (negative ? 0 : magnitude));
                }
            }
        }
    });
}
