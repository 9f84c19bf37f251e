// Every pair of bytes, every tail and activation against plain loops over the formulas, at tolerance 0, with guard pages behind each
// buffer.
#include <algorithm>
#include <cmath>

#include "cpu/ops/qadd.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Numbers {
    float scale;
    int32_t zero_point;
};

float real_of(uint8_t q, Numbers n) { return static_cast<float>(int64_t{q} - n.zero_point) * n.scale; }

// max(x, 0) + e(|x|) with a quadratic e on each of 32 segments, 0 from 16 on.
float by_segments(float x, const float* c) {
    const float size = std::fabs(x), positive = x < 0 ? 0.0f : x;
    const float line = std::fmin(std::fmin(size * 4.0f, size * 2.0f + 8.0f), size + 16.0f);
    const int i = line < 31.0f ? static_cast<int>(line) : 31;
    const float e = (c[64 + i] * size + c[32 + i]) * size + c[i];
    return size > 16.0f ? positive : positive + e;
}

void compare(int64_t count, Numbers a_numbers, Numbers b_numbers, Numbers out, int bits) {
    Guarded<uint8_t> a(count), b(count), y(count);
    Guarded<float> segments(96);
    for (int64_t i = 0; i < 96; ++i) segments[i] = 0.1f * random_float();
    for (int64_t i = 0; i < count; ++i) a[i] = static_cast<uint8_t>(i), b[i] = static_cast<uint8_t>(i / 256 + i % 7 * (count < 65536));
    for (int activation = 0; activation < 3; ++activation) {
        QAddProblem p{count,
                      a.data(),
                      b.data(),
                      y.data(),
                      qreal(a_numbers.scale, a_numbers.zero_point),
                      qreal(b_numbers.scale, b_numbers.zero_point),
                      static_cast<QActivation>(activation),
                      segments.data(),
                      qbyte(out.scale, out.zero_point, bits)};
        CHECK(qadd(p, 2) == Status::ok);
        CHECK(y.canary_intact());
        for (int64_t i = 0; i < count; ++i) {
            float t = real_of(a[i], a_numbers) + real_of(b[i], b_numbers);
            if (activation == 1) t = t < 0 ? 0.0f : t;
            if (activation == 2) t = by_segments(t, segments.data());
            t = t * static_cast<float>(1.0 / double{out.scale});
            const float clamped = std::fmin(std::fmax(t, -0x1p22f), 0x1p22f);
            const int64_t q = t != t ? INT64_MIN / 2 : static_cast<int64_t>(std::nearbyint(clamped)) + out.zero_point;
            CHECK(y[i] == std::clamp<int64_t>(q, 0, (1 << bits) - 1));
        }
    }
}

}  // namespace

TEST(qadd_of_every_pair_and_tail) {
    on_every_isa([] {
        compare(65536, {0.031f, 117}, {0.054f, 3}, {0.07f, 60}, 8);
        compare(65536, {0.031f, 300}, {0.7f, -900}, {0.9f, -700}, 6);
        compare(65536, {1e-4f, INT32_MIN}, {1e-4f, INT32_MAX}, {2.0f, 128}, 8);
        compare(65536, {1e-39f, 128}, {1e-38f, 10}, {1e-37f, 1 << 20}, 8);     // subnormal terms
        compare(65536, {0x1p126f, 128}, {0x1p126f, 127}, {0x1p100f, 128}, 8);  // infinities, and NaN as their difference
        compare(65536, {0.25f, 0}, {0.25f, 0}, {0.5f, 0}, 8);                  // ties
        for (int64_t count = 0; count <= 130; ++count) compare(count, {0.031f, 117}, {0.054f, 3}, {0.07f, 60}, 8);
    });
}

TEST(qadd_refuses_what_it_cannot_do) {
    QAddProblem p{};
    p.count = -1;
    CHECK(qadd(p, 1) == Status::bad_shape);
    p.count = 0;
    CHECK(qadd(p, 1) == Status::ok);
    p.activation = static_cast<QActivation>(3);
    CHECK(qadd(p, 1) == Status::bad_dtype);
    p.out.zero_point = (1 << 20) + 1;
    CHECK(qadd(p, 1) == Status::overflow);
}
