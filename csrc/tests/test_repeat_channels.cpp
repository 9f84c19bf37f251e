// Every tail of channels, size of elements and distance of pixels, with guard pages behind what is read; and depthwise convolutions that
// read repeated channels against those of maps that have them.
#include "cpu/ops/depthwise_conv2d.h"
#include "cpu/ops/repeat_channels.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

template <class T>
void compare(int64_t pixels, int64_t channels, int64_t times, int64_t gap) {
    const int64_t stride = channels + gap, all = channels * times;
    Guarded<T> from((pixels - 1) * stride + channels);
    std::vector<T> to(static_cast<size_t>(pixels * all) + 16);
    for (int64_t i = 0; i < from.size(); ++i) from[i] = static_cast<T>(random_int(0, 1 << 30));
    RepeatChannels(all, times, sizeof(T))(from.data(), stride * static_cast<int64_t>(sizeof(T)), pixels, to.data());
    for (int64_t i = 0; i < pixels * all; ++i) CHECK(to[static_cast<size_t>(i)] == from[i / all * stride + i % all / times]);
}

template <class T>
void compare_all() {
    for (int64_t channels : {1, 2, 3, 5, 8, 12, 16, 17, 33})
        for (int64_t times : {2, 3, 4, 6, 7, 40})
            for (int64_t pixels : {1, 2, 5}) compare<T>(pixels, channels, times, 0), compare<T>(pixels, channels, times, 3);
}

template <class T>
void filter(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t times, int64_t stride) {
    const int64_t all = channels * times, padded = (all + 15) / 16 * 16;
    const int64_t out = batch * ((height - 1) / stride + 1) * ((width - 1) / stride + 1) * all;
    Guarded<T> x(batch * height * width * channels), repeated(x.size() * times), y(out), expected(out);
    Guarded<float> weight(9 * padded), bias(padded);
    fill(x), fill(weight), fill(bias);
    for (int64_t i = 0; i < repeated.size(); ++i) repeated[i] = x[i / times];
    DepthwiseConv2dProblem p{};
    p.dtype = dtype_of<T>, p.batch = batch, p.height = height, p.width = width, p.channels = all, p.stride = stride;
    p.weight = weight.data(), p.weight_stride = padded, p.bias = bias.data(), p.activation = Activation::relu6;
    p.x = repeated.data(), p.image_stride = height * width * all, p.row_stride = width * all, p.pixel_stride = all, p.y = expected.data();
    CHECK(depthwise_conv2d(p, 1) == Status::ok);
    p.x = x.data(), p.image_stride /= times, p.row_stride /= times, p.pixel_stride /= times, p.y = y.data(), p.multiplier = times;
    for (int threads : {1, 2}) {
        CHECK(depthwise_conv2d(p, threads) == Status::ok);
        CHECK(y.canary_intact() && same_bits(y, expected));
    }
}

}  // namespace

TEST(repeat_channels_on_every_tail) {
    on_every_isa([] {
        compare_all<uint8_t>();
        compare_all<uint16_t>();
        compare_all<uint32_t>();
    });
}

TEST(depthwise_conv2d_of_repeated_channels) {
    on_every_isa([] {
        for (int64_t stride : {1, 2})
            for (int64_t channels : {1, 3, 8, 17})
                for (int64_t times : {2, 3, 6}) {
                    filter<float>(2, 5, 7, channels, times, stride);
                    filter<bf16>(1, 1, 4, channels, times, stride);
                }
        filter<float>(1, 60, 56, 12, 6, 2);  // several bands
        filter<f16>(2, 31, 30, 16, 4, 1);
    });
    DepthwiseConv2dProblem p{};
    p.stride = 1, p.channels = 7, p.multiplier = 2, p.weight_stride = 16;
    CHECK(depthwise_conv2d(p, 1) == Status::bad_shape);
}
