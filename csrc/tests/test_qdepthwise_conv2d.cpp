// Every tail of channels and pixels against a plain loop in int64, with guard pages behind each buffer, and all ways to finish.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/ops/qdepthwise_conv2d.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

int64_t position(int64_t c) { return 16 * (c / 4 % 4) + 4 * (c % 64 / 16) + c % 4; }

// A layer with bytes as results: weights and zero-points at random or, where `extreme`, as large as they get.
struct Layer {
    int64_t channels;
    Guarded<QDepthwiseBlock> blocks;
    Guarded<int32_t> init;  // 7 rows, as QChannels
    std::vector<int64_t> z, bias, weight;
    int64_t padded() const { return (channels + 15) / 16 * 16; }

    Layer(int64_t channels, bool extreme)
        : channels(channels),
          blocks((channels + 63) / 64),
          init(7 * padded()),
          z(static_cast<size_t>(channels)),
          bias(z.size()),
          weight(9 * z.size()) {
        std::memset(blocks.data(), 0, static_cast<size_t>(blocks.size()) * sizeof(QDepthwiseBlock));
        std::memset(init.data(), 0, static_cast<size_t>(init.size()) * sizeof(int32_t));
        for (int64_t c = 0; c < channels; ++c) {
            const auto n = static_cast<size_t>(c);
            z[n] = extreme ? -1275 : random_int(-300, 300), bias[n] = random_int(-1000, 1000);
            for (size_t k = 0; k < 9; ++k) weight[9 * n + k] = extreme ? -127 : random_int(-127, 127);
            fill(c);
        }
    }

    QChannels rows() {
        auto floats = [&](int64_t i) { return reinterpret_cast<float*>(init.data() + i * padded()); };
        return {init.data(), floats(1), floats(2), floats(3), floats(4), floats(5), init.data() + 6 * padded()};
    }

    void fill(int64_t c) {
        const auto n = static_cast<size_t>(c);
        QDepthwiseBlock& b = blocks[c / 64];
        const int64_t at = position(c);
        for (int64_t rows = 0; rows < 4; ++rows)
            for (int64_t columns = 0; columns < 4; ++columns) {
                int64_t sum = bias[n];
                for (int64_t k = 0; k < 9; ++k) {
                    const int64_t ky = k / 3, kx = k % 3;
                    const bool out = (ky == 0 && rows & 1) || (ky == 2 && rows & 2) || (kx == 0 && columns & 1) || (kx == 2 && columns & 2);
                    if (!out) sum -= z[n] * weight[9 * n + static_cast<size_t>(k)];
                    b.weight[kx][at][ky] = static_cast<int8_t>(weight[9 * n + static_cast<size_t>(k)]);
                }
                b.init[rows][columns][at] = static_cast<int32_t>(sum);
            }
        const float scale = 1.0f / static_cast<float>(random_int(50, 400)), inverse = 20.0f;
        const int32_t zero = random_int(0, 255);
        const int32_t values[7] = {
            b.init[0][0][at], bits(scale), 0, bits(inverse), bits(static_cast<float>(-zero)), bits(static_cast<float>(255 - zero)), zero};
        for (int64_t i = 0; i < 7; ++i) init[i * padded() + c] = values[i];
        b.scale[at] = scale, b.inverse[at] = inverse;
        b.zero_point[32 * (c / 8 % 2) + 8 * (c % 64 / 16) + c % 8] = static_cast<int16_t>(zero);
        b.low[c % 64] = 0, b.high[c % 64] = 255;
    }

    static int32_t bits(float x) {
        int32_t i;
        std::memcpy(&i, &x, sizeof i);
        return i;
    }
};

// max(x, 0) + c2 x^2 + c1 |x| + c0 on the first segment, 0 elsewhere: enough to see that tables are read as they should.
float activated(float x, const float* segments) {
    const float size = std::fabs(x);
    const auto i = static_cast<int>(std::min({size * 4.0f, size * 2.0f + 8.0f, size + 16.0f, 31.0f}));
    const float e = (segments[64 + i] * size + segments[32 + i]) * size + segments[i];
    return std::max(x, 0.0f) + (size > 16.0f ? 0.0f : e);
}

int byte(float x, int zero) {
    const float low = static_cast<float>(-zero), high = static_cast<float>(255 - zero);
    return static_cast<int>(std::nearbyint(std::min(std::max(x, low), high))) + zero;
}

void compare(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t stride, bool extreme = false) {
    const int64_t out_height = (height - 1) / stride + 1, out_width = (width - 1) / stride + 1;
    Layer layer(channels, extreme);
    Guarded<uint8_t> x(batch * height * width * channels), y(batch * out_height * out_width * channels), other(y.size()), table(256);
    Guarded<int32_t> sums(y.size());
    Guarded<float> segments(96);
    for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(extreme ? 255 : random_int(0, 255));
    for (int64_t i = 0; i < 96; ++i) segments[i] = random_float() / static_cast<float>(1 + 8 * (i / 32));
    for (int64_t i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(255 - i);

    QDepthwiseConv2dProblem p{};
    p.batch = batch, p.height = height, p.width = width, p.channels = channels, p.stride = stride;
    p.x = x.data();
    p.image_stride = height * width * channels, p.row_stride = width * channels, p.pixel_stride = channels;
    p.blocks = layer.blocks.data();
    QEpilogue& e = p.epilogue;
    e.channels = layer.rows();
    e.y_stride = channels;

    e.type = QType::i32, e.y = sums.data();
    CHECK(qdepthwise_conv2d(p, 2) == Status::ok);
    CHECK(sums.canary_intact());
    for (int64_t i = 0; i < sums.size(); ++i) {
        const int64_t c = i % channels, column = i / channels % out_width, row = i / channels / out_width % out_height;
        const auto n = static_cast<size_t>(c);
        int64_t sum = layer.bias[n];
        for (int64_t k = 0; k < 9; ++k) {
            const int64_t v = row * stride + k / 3 - 1, u = column * stride + k % 3 - 1, image = i / channels / out_width / out_height;
            if (v < 0 || v >= height || u < 0 || u >= width) continue;
            sum += (x[((image * height + v) * width + u) * channels + c] - layer.z[n]) * layer.weight[9 * n + static_cast<size_t>(k)];
        }
        CHECK(sums[i] == sum);
    }

    // Bytes: the epilogue and narrow steps, plain and behind segments.
    e.type = QType::u8, e.segments = segments.data();
    for (const QActivation activation : {QActivation::none, QActivation::segments})
        for (const bool narrow : {false, true}) {
            Guarded<uint8_t>& to = narrow ? y : other;
            e.activation = activation, e.plain = activation == QActivation::none, p.narrow = narrow, e.y = to.data();
            e.table = narrow ? table.data() : nullptr;
            CHECK(qdepthwise_conv2d(p, 2) == Status::ok);
            CHECK(to.canary_intact());
            for (int64_t i = 0; i < to.size(); ++i) {
                const QChannels at = e.channels.from(i % channels);
                float v = static_cast<float>(sums[i]) * *at.scale;
                if (activation == QActivation::segments) v = activated(v, segments.data()) * *at.inverse;
                CHECK(to[i] == (narrow ? 255 - byte(v, *at.zero_point) : byte(v, *at.zero_point)));
            }
        }

    // By way of slopes, which each image has of its own.
    Guarded<float> slopes(batch * 2 * channels);
    for (int64_t i = 0; i < slopes.size(); ++i) slopes[i] = random_float();
    e.activation = QActivation::none, e.plain = false, e.table = nullptr, p.narrow = false, e.y = y.data();
    e.slopes = slopes.data(), e.slope_columns = channels, e.slope_rows = out_height * out_width;
    CHECK(qdepthwise_conv2d(p, 2) == Status::ok);
    CHECK(y.canary_intact());
    for (int64_t i = 0; i < y.size(); ++i) {
        const QChannels at = e.channels.from(i % channels);
        const float* u = slopes.data() + i / channels / e.slope_rows * 2 * channels + i % channels;
        const float a = 1.0f + std::min(std::max(u[0], -1.0f), 1.0f), d = std::min(std::max(u[channels], -1.0f), 1.0f);
        const float v = static_cast<float>(sums[i]) * *at.scale;
        CHECK(y[i] == byte(std::max(a * v, d * v) * *at.inverse, *at.zero_point));
    }
}

// Several filters for each channel are those of a map in which it stands several times.
void compare_repeated(int64_t height, int64_t width, int64_t channels, int64_t times, int64_t stride) {
    const int64_t all = channels * times, out = ((height - 1) / stride + 1) * ((width - 1) / stride + 1) * all;
    Layer layer(all, false);
    Guarded<uint8_t> x(2 * height * width * channels), repeated(x.size() * times), y(2 * out), expected(y.size());
    for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(random_int(0, 255));
    for (int64_t i = 0; i < repeated.size(); ++i) repeated[i] = x[i / times];
    QDepthwiseConv2dProblem p{};
    p.batch = 2, p.height = height, p.width = width, p.channels = all, p.stride = stride, p.blocks = layer.blocks.data();
    p.epilogue.channels = layer.rows(), p.epilogue.type = QType::u8, p.epilogue.plain = true, p.epilogue.y_stride = all;
    p.x = repeated.data(), p.image_stride = height * width * all, p.row_stride = width * all, p.pixel_stride = all;
    p.epilogue.y = expected.data();
    CHECK(qdepthwise_conv2d(p, 1) == Status::ok);
    p.x = x.data(), p.image_stride /= times, p.row_stride /= times, p.pixel_stride /= times, p.multiplier = times;
    p.epilogue.y = y.data();
    for (int threads : {1, 3}) CHECK(qdepthwise_conv2d(p, threads) == Status::ok && y.canary_intact());
    for (int64_t i = 0; i < y.size(); ++i) CHECK(y[i] == expected[i]);
}

}  // namespace

TEST(qdepthwise_conv2d_on_every_tail) {
    on_every_isa([] {
        for (int64_t stride : {1, 2}) {
            for (int64_t channels : {1, 3, 16, 17, 24, 32, 33, 64, 65, 130})
                for (int64_t height : {1, 2, 3, 4})
                    for (int64_t width : {1, 2, 3, 4, 7, 17, 33}) compare(2, height, width, channels, stride);
            compare(1, 40, 40, 96, stride);           // large enough for a parallel region
            compare(1, 2, 131 * stride, 17, stride);  // more pixels than wait at once
            compare(1, 5, 7, 70, stride, true);
        }
    });
}

TEST(qdepthwise_conv2d_of_repeated_channels) {
    on_every_isa([] {
        for (int64_t stride : {1, 2})
            for (int64_t channels : {1, 3, 8, 17})
                for (int64_t times : {2, 3, 6}) compare_repeated(5, 7, channels, times, stride);
        compare_repeated(90, 80, 12, 6, 2);  // several bands
    });
}

TEST(qdepthwise_conv2d_refuses_what_it_cannot_do) {
    QDepthwiseConv2dProblem p{};
    p.stride = 3;
    CHECK(qdepthwise_conv2d(p, 1) == Status::bad_shape);
    p.stride = 1, p.epilogue.type = QType::u8, p.epilogue.plain = true;
    CHECK(qdepthwise_conv2d(p, 1) == Status::ok);
    p.narrow = true;
    CHECK(qdepthwise_conv2d(p, 1) == Status::ok);
    const uint8_t table[256] = {};
    p.epilogue.residual = table;
    CHECK(qdepthwise_conv2d(p, 1) == Status::bad_dtype);
    p.epilogue.residual = nullptr, p.narrow = false, p.epilogue.type = QType::f32, p.epilogue.table = table;
    CHECK(qdepthwise_conv2d(p, 1) == Status::bad_dtype);
    p.epilogue.table = nullptr, p.epilogue.type = static_cast<QType>(9);
    CHECK(qdepthwise_conv2d(p, 1) == Status::bad_dtype);
    const float scale = 1.0f;
    p.epilogue.type = QType::u8, p.epilogue.slopes = &scale;  // of plain bytes
    CHECK(qdepthwise_conv2d(p, 1) == Status::bad_dtype);
    p.epilogue.slopes = nullptr;
    p.epilogue.type = QType::f32, p.epilogue.row_scale = &scale;
    CHECK(qdepthwise_conv2d(p, 1) == Status::bad_layout);
}
