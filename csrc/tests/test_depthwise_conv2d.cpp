// Every tail of channels and pixels against a double-precision loop over the formula, with guard pages behind each tensor.
#include <algorithm>
#include <cmath>

#include "cpu/ops/depthwise_conv2d.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

void compare(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t stride) {
    const int64_t out_height = (height - 1) / stride + 1, out_width = (width - 1) / stride + 1, padded = (channels + 15) / 16 * 16;
    Guarded<float> x(batch * height * width * channels), weight(9 * padded), bias(padded);
    Guarded<float> y(batch * out_height * out_width * channels);
    for (Guarded<float>* each : {&x, &weight, &bias})
        for (int64_t i = 0; i < each->size(); ++i) (*each)[i] = random_float();
    DepthwiseConv2dProblem p{};
    p.batch = batch, p.height = height, p.width = width, p.channels = channels, p.stride = stride;
    p.x = x.data();
    p.image_stride = height * width * channels, p.row_stride = width * channels, p.pixel_stride = channels;
    p.weight = weight.data(), p.weight_stride = padded, p.bias = bias.data();
    p.activation = Activation::relu;
    p.y = y.data();
    CHECK(depthwise_conv2d(p, 2) == Status::ok);
    CHECK(y.canary_intact());
    for (int64_t i = 0; i < y.size(); ++i) {
        const int64_t c = i % channels, column = i / channels % out_width, row = i / channels / out_width % out_height;
        double sum = double{bias[c]};
        for (int64_t k = 0; k < 9; ++k) {
            const int64_t v = row * stride + k / 3 - 1, u = column * stride + k % 3 - 1;
            if (v < 0 || v >= height || u < 0 || u >= width) continue;
            const int64_t image = i / channels / out_width / out_height;
            sum += double{x[((image * height + v) * width + u) * channels + c]} * double{weight[k * padded + c]};
        }
        CHECK(std::fabs(double{y[i]} - std::max(sum, 0.0)) < 1e-5);
    }
}

}  // namespace

TEST(depthwise_conv2d_on_every_tail) {
    on_every_isa([] {
        for (int64_t stride : {1, 2}) {
            for (int64_t channels : {1, 3, 8, 16, 17, 33})
                for (int64_t height : {1, 2, 3, 6})
                    for (int64_t width : {1, 2, 3, 4, 5, 8, 9, 12, 17}) compare(2, height, width, channels, stride);
            compare(1, 40, 30, 70, stride);  // large enough for a parallel region
        }
    });
}

TEST(depthwise_conv2d_refuses_what_it_cannot_do) {
    DepthwiseConv2dProblem p{};
    p.stride = 3;
    CHECK(depthwise_conv2d(p, 1) == Status::bad_shape);
    p.stride = 1;
    CHECK(depthwise_conv2d(p, 1) == Status::ok);
    p.channels = 17, p.weight_stride = 17;
    CHECK(depthwise_conv2d(p, 1) == Status::bad_layout);
}
