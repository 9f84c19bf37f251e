// Every tail in every float type against double precision, with guard pages behind each buffer; and the same function at the end of
// products, depthwise convolutions and inverted residuals, whose results are the bits of what these give without it.
#include "cpu/ops/depthwise_conv2d.h"
#include "cpu/ops/dynamic_relu.h"
#include "cpu/ops/gemm.h"
#include "cpu/ops/inverted_residual.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

double clip(double x) { return std::fmin(std::fmax(x, -1.0), 1.0); }

template <class T>
void compare(int64_t batch, int64_t pixels, int64_t channels) {
    Guarded<T> x(batch * pixels * channels), u(batch * 2 * channels), y(x.size()), alone(x.size());
    fill(x, 0.0f, 3.0f), fill(u);
    CHECK(dynamic_relu({dtype_of<T>, batch, pixels, channels, x.data(), u.data(), y.data()}, 2) == Status::ok);
    CHECK(dynamic_relu({dtype_of<T>, batch, pixels, channels, x.data(), u.data(), alone.data()}, 1) == Status::ok);
    CHECK(y.canary_intact() && same_bits(y, alone));
    for (int64_t i = 0; i < x.size(); ++i) {
        const int64_t row = i / channels / pixels * 2 * channels, c = i % channels;
        const double a = 1.0 + clip(value(u[row + c])), d = clip(value(u[row + channels + c])), at = value(x[i]);
        const double exact = std::fmax(a * at, d * at);
        CHECK(std::fabs(value(y[i]) - exact) <= 3 * 0x1p-24 * 2 * std::fabs(at) + rounding<T> * std::fabs(exact) + 0x1p-25);
    }
    CHECK(dynamic_relu({dtype_of<T>, batch, pixels, channels, x.data(), u.data(), x.data()}, 1) == Status::ok);
    CHECK(same_bits(x, y));
}

template <class T>
void compare_all() {
    for (int64_t channels : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 48, 65})
        for (int64_t pixels : {1, 2, 5}) compare<T>(2, pixels, channels);
    compare<T>(1, 900, 96);  // large enough for a parallel region
}

// What a product gives, and that by way of slopes.
void product(int64_t groups, int64_t rows, int64_t depth, int64_t columns) {
    Guarded<float> a(groups * rows * depth), u(groups * 2 * columns), plain(groups * rows * columns), y(plain.size());
    Weight weight(columns, depth);
    fill(a), fill(u);
    GemmProblem p{};
    p.groups = groups, p.rows = rows, p.depth = depth, p.columns = columns;
    p.a = a.data(), p.a_stride = depth, p.weight = weight.data(), p.bias = weight.bias_data();
    p.y = plain.data(), p.y_stride = columns;
    CHECK(gemm(p, 2) == Status::ok);
    CHECK(dynamic_relu({DType::f32, groups, rows, columns, plain.data(), u.data(), plain.data()}, 1) == Status::ok);
    p.y = y.data(), p.slopes = u.data();
    CHECK(gemm(p, 2) == Status::ok);
    CHECK(y.canary_intact() && same_bits(y, plain));
}

void depthwise(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t stride) {
    const int64_t padded = (channels + 15) / 16 * 16, pixels = ((height - 1) / stride + 1) * ((width - 1) / stride + 1);
    Guarded<float> x(batch * height * width * channels), u(batch * 2 * channels), weight(9 * padded), bias(padded);
    Guarded<float> plain(batch * pixels * channels), y(plain.size());
    fill(x), fill(u), fill(weight), fill(bias);
    DepthwiseConv2dProblem p{};
    p.batch = batch, p.height = height, p.width = width, p.channels = channels, p.stride = stride;
    p.x = x.data(), p.image_stride = height * width * channels, p.row_stride = width * channels, p.pixel_stride = channels;
    p.weight = weight.data(), p.weight_stride = padded, p.bias = bias.data(), p.y = plain.data();
    CHECK(depthwise_conv2d(p, 2) == Status::ok);
    CHECK(dynamic_relu({DType::f32, batch, pixels, channels, plain.data(), u.data(), plain.data()}, 1) == Status::ok);
    p.y = y.data(), p.slopes = u.data();
    CHECK(depthwise_conv2d(p, 2) == Status::ok);
    CHECK(y.canary_intact() && same_bits(y, plain));
}

// An inverted residual and its three parts, one after another.
void block(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t hidden, int64_t columns, int stride) {
    const int64_t padded = depthwise_stride(hidden), pixels = height * width;
    const int64_t out = ((height - 1) / stride + 1) * ((width - 1) / stride + 1);
    Guarded<float> x(batch * pixels * channels), first(batch * 2 * hidden), second(first.size()), taps(9 * padded), bias(padded);
    Guarded<float> expanded(batch * pixels * hidden), filtered(batch * out * hidden), expected(batch * out * columns), y(expected.size());
    Weight expand(hidden, channels), reduce(columns, hidden);
    fill(x), fill(first), fill(second), fill(taps), fill(bias);
    InvertedResidualProblem p{};
    p.batch = batch, p.height = height, p.width = width, p.channels = channels, p.hidden = hidden, p.columns = columns, p.stride = stride;
    p.expand_weight = expand.data(), p.expand_bias = expand.bias_data(), p.depthwise_weight = taps.data(), p.depthwise_bias = bias.data();
    p.reduce_weight = reduce.data(), p.reduce_bias = reduce.bias_data();
    p.expand_slopes = first.data(), p.depthwise_slopes = second.data(), p.x = x.data(), p.y = y.data();
    for (int threads : {1, 3}) CHECK(inverted_residual(p, threads) == Status::ok && y.canary_intact());
    GemmProblem g{};
    g.groups = batch, g.rows = pixels, g.depth = channels, g.columns = hidden, g.a = x.data(), g.a_stride = channels;
    g.weight = expand.data(), g.bias = expand.bias_data(), g.slopes = first.data(), g.y = expanded.data(), g.y_stride = hidden;
    CHECK(gemm(g, 1) == Status::ok);
    DepthwiseConv2dProblem d{};
    d.batch = batch, d.height = height, d.width = width, d.channels = hidden, d.stride = stride;
    d.x = expanded.data(), d.image_stride = pixels * hidden, d.row_stride = width * hidden, d.pixel_stride = hidden;
    d.weight = taps.data(), d.weight_stride = padded, d.bias = bias.data(), d.slopes = second.data(), d.y = filtered.data();
    CHECK(depthwise_conv2d(d, 1) == Status::ok);
    GemmProblem r{};
    r.groups = batch, r.rows = out, r.depth = hidden, r.columns = columns, r.a = filtered.data(), r.a_stride = hidden;
    r.weight = reduce.data(), r.bias = reduce.bias_data(), r.y = expected.data(), r.y_stride = columns;
    CHECK(gemm(r, 1) == Status::ok);
    for (int64_t i = 0; i < y.size(); ++i) CHECK(std::fabs(y[i] - expected[i]) <= 1e-4f * (1.0f + std::fabs(expected[i])));
}

}  // namespace

TEST(dynamic_relu_on_every_tail) {
    on_every_isa([] {
        compare_all<float>();
        compare_all<bf16>();
        compare_all<f16>();
    });
}

TEST(dynamic_relu_at_the_end_of_products) {
    on_every_isa([] {
        for (int64_t columns : {1, 7, 16, 32, 33, 70}) product(3, 5, 17, columns);
        product(2, 300, 24, 64);
        for (int64_t channels : {1, 8, 16, 17, 33})
            for (int64_t stride : {1, 2}) depthwise(2, 5, 9, channels, stride);
        block(2, 9, 7, 12, 40, 16, 1);
        block(1, 28, 28, 16, 48, 24, 2);
    });
}

TEST(dynamic_relu_keeps_nan) {
    on_every_isa([] {
        Guarded<float> x(3 * 20), u(2 * 20), y(x.size());
        fill(x), fill(u);
        x[25] = std::nanf("");
        CHECK(dynamic_relu({DType::f32, 1, 3, 20, x.data(), u.data(), y.data()}, 1) == Status::ok);
        for (int64_t i = 0; i < y.size(); ++i) CHECK(std::isnan(y[i]) == (i == 25));
    });
}

TEST(dynamic_relu_refuses_what_it_cannot_do) {
    CHECK(dynamic_relu({DType::f32, -1, 1, 1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(dynamic_relu({DType::f32, 1, -1, 1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(dynamic_relu({DType::f32, 1, 1, -1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(dynamic_relu({static_cast<DType>(3), 1, 1, 0, nullptr, nullptr, nullptr}, 1) == Status::bad_dtype);
    CHECK(dynamic_relu({DType::f32, 1, 0, 1, nullptr, nullptr, nullptr}, 1) == Status::ok);
    const float u[2] = {};
    GemmProblem p{};
    p.slopes = u, p.activation = Activation::relu;
    CHECK(gemm(p, 1) == Status::bad_layout);
    DepthwiseConv2dProblem d{};
    d.stride = 1, d.slopes = u, d.activation = Activation::relu;
    CHECK(depthwise_conv2d(d, 1) == Status::bad_layout);
    InvertedResidualProblem r{};
    r.stride = 1, r.expand_slopes = u;  // without an expansion
    CHECK(inverted_residual(r, 1) == Status::bad_layout);
}
