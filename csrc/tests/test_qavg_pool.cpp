// Every tail of channels and pixels against plain loops over the formula, at tolerance 0, with guard pages behind each buffer.
#include <algorithm>
#include <cmath>

#include "cpu/ops/qavg_pool.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

void compare(int64_t batch, int64_t channels, int64_t pixels, bool channels_last, int32_t zero_point) {
    Guarded<uint8_t> x(batch * channels * pixels), bytes(batch * channels);
    Guarded<float> floats(batch * channels);
    for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(i % 3 == 0 ? 255 : i * 37);
    const float scale = 0.37f / static_cast<float>(pixels);
    QAvgPoolProblem p{batch, channels, pixels, channels_last, x.data(), zero_point, scale, true, {}, floats.data()};
    CHECK(qavg_pool(p, 2) == Status::ok);
    const int32_t out = 20 + static_cast<int32_t>(0.37f * static_cast<float>(zero_point));
    p.floats = false, p.out = qbyte(1.0f, out, 8), p.y = bytes.data();
    CHECK(qavg_pool(p, 2) == Status::ok);
    CHECK(floats.canary_intact() && bytes.canary_intact());
    for (int64_t i = 0; i < batch * channels; ++i) {
        int64_t sum = -pixels * zero_point;
        for (int64_t j = 0; j < pixels; ++j)
            sum += channels_last ? x[(i / channels * pixels + j) * channels + i % channels] : x[i * pixels + j];
        const float t = static_cast<float>(sum) * scale;
        CHECK(floats[i] == t);
        CHECK(bytes[i] == std::clamp<int64_t>(static_cast<int64_t>(std::nearbyint(t)) + out, 0, 255));
    }
}

}  // namespace

TEST(qavg_pool_on_every_tail) {
    on_every_isa([] {
        for (bool channels_last : {false, true}) {
            for (int64_t channels : {1, 3, 15, 16, 17, 63, 64, 65, 130, 200})
                for (int64_t pixels : {1, 2, 7, 16, 49, 64, 67, 131}) compare(2, channels, pixels, channels_last, 131);
            compare(1, 5, 64, channels_last, 1000000);
            compare(1, 20, 16, channels_last, -1000000);
            compare(3, 300, 256, channels_last, 0);  // large enough for a parallel region
        }
    });
}

TEST(qavg_pool_refuses_what_it_cannot_do) {
    QAvgPoolProblem p{};
    CHECK(qavg_pool(p, 1) == Status::bad_shape);
    p.pixels = INT32_MAX / 255;
    CHECK(qavg_pool(p, 1) == Status::ok);
    p.pixels += 1;
    CHECK(qavg_pool(p, 1) == Status::overflow);
    p.pixels = 1, p.zero_point = INT32_MIN;
    CHECK(qavg_pool(p, 1) == Status::overflow);
    p.zero_point = INT32_MAX, p.out.zero_point = -(1 << 20) - 1;
    CHECK(qavg_pool(p, 1) == Status::overflow);
}
