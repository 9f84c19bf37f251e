// Every tail of pixels and some numbers of channels: the bytes of quantize, channels last, with guard pages behind each buffer.
#include <limits>

#include "cpu/ops/quantize.h"
#include "cpu/ops/quantize_image.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

void compare(int64_t batch, int64_t channels, int64_t pixels, float scale, int32_t zero_point, int bits) {
    const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    const float special[] = {infinity, -infinity, nan, -0.0f, 1e-42f, 3e38f};
    const int64_t count = batch * channels * pixels;
    Guarded<float> x(count);
    Guarded<uint8_t> y(count), expected(count);
    for (int64_t i = 0; i < count; ++i) {
        x[i] = scale * (static_cast<float>(i * 37 % 560) * 0.5f - static_cast<float>(zero_point));
        if (i % 11 == 7) x[i] = special[i / 11 % 6];
    }
    CHECK(quantize_image({batch, channels, pixels, scale, zero_point, bits, x.data(), y.data()}, 2) == Status::ok);
    CHECK(quantize({DType::f32, 1, 1, count, &scale, &zero_point, false, false, bits, x.data(), expected.data()}, 1) == Status::ok);
    CHECK(y.canary_intact());
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t i = 0; i < pixels; ++i) CHECK(y[(b * pixels + i) * channels + c] == expected[(b * channels + c) * pixels + i]);
}

}  // namespace

TEST(quantize_image_on_every_tail) {
    on_every_isa([] {
        for (int64_t channels : {1, 2, 3, 4, 7})
            for (int64_t pixels = 1; pixels <= 140; ++pixels) compare(2, channels, pixels, 0.017f, 114, pixels % 2 ? 8 : 6);
        for (int32_t zero_point : {0, -5, 300, -(1 << 20), 1 << 20}) compare(1, 3, 100, 0.5f, zero_point, 8);
        compare(2, 3, 20011, 0.017f, 114, 8);  // large enough for a parallel region
    });
}

TEST(quantize_image_refuses_what_it_cannot_do) {
    CHECK(quantize_image({1, 3, -1, 1.0f, 0, 8, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(quantize_image({0, 3, 1, 1.0f, 0, 7, nullptr, nullptr}, 1) == Status::bad_dtype);
    CHECK(quantize_image({0, 3, 1, 1.0f, (1 << 20) + 1, 8, nullptr, nullptr}, 1) == Status::overflow);
    CHECK(quantize_image({0, 3, 1, 1.0f, 0, 8, nullptr, nullptr}, 1) == Status::ok);
}
