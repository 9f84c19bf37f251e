// Every tail, layout and float type against plain loops over the formulas, at tolerance 0, with guard pages behind each buffer.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/ops/quantize.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

uint8_t byte_of(float x, float scale, int32_t zero_point, int bits) {
    const float t = x * static_cast<float>(1.0 / double{scale});
    if (t != t) return 0;
    const int64_t q = static_cast<int64_t>(std::nearbyint(std::fmin(std::fmax(t, -0x1p22f), 0x1p22f))) + zero_point;
    return static_cast<uint8_t>(std::clamp<int64_t>(q, 0, (1 << bits) - 1));
}

float real_of(uint8_t q, float scale, int32_t zero_point) { return static_cast<float>(int64_t{q} - zero_point) * scale; }

template <class T>
void compare(int64_t outer, int64_t channels, int64_t inner, bool of_channel, int bits) {
    const int64_t count = outer * channels * inner, values = of_channel ? channels : 1;
    Guarded<T> x(count), back(count);
    Guarded<uint8_t> q(count);
    Guarded<float> scale(values);
    Guarded<int32_t> zero_point(values), any(values);
    const int32_t outputs[] = {0, 128, -5, 300, -(1 << 20), 1 << 20}, inputs[] = {0, INT32_MIN, INT32_MAX, INT32_MIN + 100, 1 << 24, 77};
    for (int64_t c = 0; c < values; ++c) {
        scale[c] = 0.01f + 0.01f * static_cast<float>(c % 5);
        zero_point[c] = outputs[(c + count) % 6];
        any[c] = inputs[(c + count) % 6];
    }
    for (int64_t i = 0; i < count; ++i) {
        // Around the zero-point, so that no range is out of reach.
        const int64_t c = of_channel ? i / inner % channels : 0;
        const float special[] = {infinity, -infinity, nan, -0.0f, 1e-42f, 3e38f};
        const float x_i =
            i % 11 == 7 ? special[i / 11 % 6] : scale[c] * (static_cast<float>(i * 37 % 560) * 0.5f - static_cast<float>(zero_point[c]));
        from_float(x_i, &x[i]);
    }
    QuantizeProblem p{dtype_of<T>, outer,      channels, inner,    scale.data(), zero_point.data(),
                      of_channel,  of_channel, bits,     x.data(), q.data()};
    CHECK(quantize(p, 2) == Status::ok);
    CHECK(q.canary_intact());
    for (int64_t i = 0; i < count; ++i) {
        const int64_t c = of_channel ? i / inner % channels : 0;
        CHECK(q[i] == byte_of(to_float(x[i]), scale[c], zero_point[c], bits));
    }
    for (int64_t i = 0; i < count; ++i) q[i] = static_cast<uint8_t>(i * 37 + 5);
    p.zero_point = any.data(), p.from = q.data(), p.to = back.data();
    CHECK(dequantize(p, 2) == Status::ok);
    CHECK(back.canary_intact());
    for (int64_t i = 0; i < count; ++i) {
        const int64_t c = of_channel ? i / inner % channels : 0;
        T expected;
        from_float(real_of(q[i], scale[c], any[c]), &expected);
        CHECK(std::memcmp(&back[i], &expected, sizeof(T)) == 0);
    }
}

template <class T>
void compare_all() {
    for (int bits : {8, 6}) {
        for (int64_t count = 1; count <= 70; ++count) compare<T>(1, 1, count, false, bits);
        for (int64_t channels : {1, 2, 7, 8, 15, 16, 17, 33})
            for (int64_t inner : {1, 2, 9, 16, 35}) compare<T>(3, channels, inner, true, bits);
    }
    compare<T>(1, 1, 150001, false, 8);  // large enough for a parallel region
    compare<T>(300, 333, 1, true, 8);
    compare<T>(4, 50, 500, true, 8);
}

template <class T>
void compare_rows(int64_t rows, int64_t depth, int bits) {
    const int64_t stride = depth + 3;
    Guarded<T> x((rows - 1) * stride + depth);
    Guarded<uint8_t> q(rows * depth);
    Guarded<float> scale(rows);
    Guarded<int32_t> zero_point(rows);
    for (int64_t i = 0; i < x.size(); ++i) {
        const int64_t row = i / stride;
        float v = random_float();
        if (row % 8 == 1) v = 0.0f;
        if (row % 8 == 2) v = 5.0f;
        if (row % 8 == 3) v = -std::fabs(v);
        if (row % 8 == 4) v *= 1e-41f;
        if (row % 8 == 5) v = v < 0 ? -3.3e38f : 3.3e38f;
        if (row % 8 == 6) v = i % 5 == 0 ? nan : v + 100.0f;
        if (row % 8 == 7) v = i % 3 == 0 ? infinity : i % 7 == 0 ? -infinity : v;
        from_float(v, &x[i]);
    }
    CHECK(quantize_rows({dtype_of<T>, rows, depth, stride, bits, x.data(), q.data(), scale.data(), zero_point.data()}, 2) == Status::ok);
    CHECK(q.canary_intact() && scale.canary_intact() && zero_point.canary_intact());
    const int most = (1 << bits) - 1;
    for (int64_t r = 0; r < rows; ++r) {
        float low = 0, high = 0;
        for (int64_t k = 0; k < depth; ++k) {
            low = std::fmin(low, to_float(x[r * stride + k]));
            high = std::fmax(high, to_float(x[r * stride + k]));
        }
        const float step = static_cast<float>(1.0 / most);
        CHECK(scale[r] == std::fmax(high * step - low * step, 0x1p-100f));
        const float z = -low / scale[r];
        CHECK(zero_point[r] == (z != z ? 0 : std::clamp(static_cast<int>(std::nearbyint(z)), 0, most)));
        for (int64_t k = 0; k < depth; ++k) {
            const float v = to_float(x[r * stride + k]);
            CHECK(q[r * depth + k] == byte_of(v, scale[r], zero_point[r], bits));
            const double error = double{real_of(q[r * depth + k], scale[r], zero_point[r])} - double{v};
            if (std::isfinite(v) && std::isfinite(scale[r])) CHECK(std::fabs(error) <= 0.51 * double{scale[r]});
        }
    }
}

}  // namespace

TEST(quantize_on_every_tail_and_layout) {
    on_every_isa([] {
        compare_all<float>();
        compare_all<bf16>();
        compare_all<f16>();
    });
}

TEST(quantize_rows_of_every_kind) {
    on_every_isa([] {
        for (int bits : {8, 6})
            for (int64_t depth : {1, 2, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 129}) {
                compare_rows<float>(17, depth, bits);
                compare_rows<bf16>(9, depth, bits);
                compare_rows<f16>(9, depth, bits);
            }
        compare_rows<float>(600, 144, 8);  // large enough for a parallel region
    });
}

TEST(quantize_refuses_what_it_cannot_do) {
    const float scale = 1.0f;
    const int32_t far = (1 << 20) + 1;
    QuantizeProblem p{DType::f32, 0, 1, 1, &scale, &far, false, false, 8, nullptr, nullptr};
    CHECK(quantize(p, 1) == Status::overflow);
    CHECK(dequantize(p, 1) == Status::ok);
    p.bits = 7;
    CHECK(dequantize(p, 1) == Status::bad_dtype);
    p.outer = -1;
    CHECK(dequantize(p, 1) == Status::bad_shape);
    CHECK(quantize_rows({DType::f32, -1, 0, 0, 8, nullptr, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(quantize_rows({DType::f32, 0, 0, 0, 5, nullptr, nullptr, nullptr, nullptr}, 1) == Status::bad_dtype);
}
