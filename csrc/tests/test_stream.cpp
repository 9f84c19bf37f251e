// Every tail and every int16 against plain loops over the formulas, at tolerance 0, with guard pages behind each buffer.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/ops/stream.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

int16_t int_of(float x, float scale) {
    const float t = x * static_cast<float>(1.0 / double{scale});
    return t != t ? int16_t{INT16_MIN} : static_cast<int16_t>(std::nearbyint(std::clamp(t, -32768.0f, 32767.0f)));
}

void compare(int64_t count, float scale) {
    const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    const float special[] = {infinity, -infinity, nan, -0.0f, 1e-42f, 3e38f, -nan};
    Guarded<float> x(count), back(count);
    Guarded<int16_t> q(count);
    for (int64_t i = 0; i < count; ++i)  // halves and more, beyond both ends
        x[i] = i % 11 == 7 ? special[i / 11 % 7] : scale * (static_cast<float>(i * 977 % 140000) * 0.5f - 35000.0f);
    CHECK(to_stream({count, scale, x.data(), q.data()}, 2) == Status::ok);
    CHECK(q.canary_intact());
    for (int64_t i = 0; i < count; ++i) CHECK(q[i] == int_of(x[i], scale));
    for (int64_t i = 0; i < count; ++i) q[i] = static_cast<int16_t>(i * 31 + count);
    CHECK(from_stream({count, scale, q.data(), back.data()}, 2) == Status::ok);
    CHECK(back.canary_intact());
    for (int64_t i = 0; i < count; ++i) CHECK(back[i] == static_cast<float>(q[i]) * scale);
}

}  // namespace

TEST(stream_on_every_tail) {
    on_every_isa([] {
        for (int64_t count = 0; count <= 70; ++count) compare(count, 0.0123f);
        for (float scale : {0.5f, 1.0f, 0.0007f, 1e-40f, 1e30f}) compare(1000, scale);
        compare(140000, 1.0f);  // every half, and large enough for a parallel region
    });
}

TEST(stream_refuses_a_negative_count) {
    CHECK(to_stream({-1, 1.0f, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(from_stream({-1, 1.0f, nullptr, nullptr}, 1) == Status::bad_shape);
}
