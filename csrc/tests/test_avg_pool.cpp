// Every tail of channels and pixels, in every float type, against a sum in double precision, with guard pages behind each buffer.
#include "cpu/ops/avg_pool.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

template <class T>
void compare(int64_t batch, int64_t pixels, int64_t channels) {
    Guarded<T> x(batch * pixels * channels), y(batch * channels), alone(y.size());
    fill(x, 3.0f);
    CHECK(avg_pool({dtype_of<T>, batch, pixels, channels, x.data(), y.data()}, 2) == Status::ok);
    CHECK(avg_pool({dtype_of<T>, batch, pixels, channels, x.data(), alone.data()}, 1) == Status::ok);
    CHECK(y.canary_intact() && same_bits(y, alone));
    for (int64_t i = 0; i < y.size(); ++i) {
        double exact = 0.0, size = 0.0;
        for (int64_t j = 0; j < pixels; ++j) {
            const double v = value(x[(i / channels * pixels + j) * channels + i % channels]) / static_cast<double>(pixels);
            exact += v;
            size += std::fabs(v);
        }
        // Half of the longest chain of additions, and the rounding of the result.
        const double chain = static_cast<double>(pixels < 16 ? pixels : 16) + std::log2(static_cast<double>(pixels));
        CHECK(std::fabs(value(y[i]) - exact) <= 0x1p-24 * (0.5 * chain + 2) * size + rounding<T> * std::fabs(exact) + least_rounding<T>);
    }
}

template <class T>
void compare_all() {
    for (int64_t channels : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 130})
        for (int64_t pixels : {1, 2, 15, 16, 17, 49, 64, 300}) compare<T>(2, pixels, channels);
    compare<T>(1, 5000, 20);
    compare<T>(3, 256, 320);  // large enough for a parallel region
}

}  // namespace

TEST(avg_pool_on_every_tail) {
    on_every_isa([] {
        compare_all<float>();
        compare_all<bf16>();
        compare_all<f16>();
    });
}

TEST(avg_pool_has_the_same_bits_everywhere) {
    Guarded<float> x(300 * 70), first(70), y(70);
    fill(x);
    const AvgPoolProblem p{DType::f32, 1, 300, 70, x.data(), y.data()};
    on_every_isa([&] {
        CHECK(avg_pool(p, 1) == Status::ok);
        if (isa_active() == Isa::scalar) std::memcpy(first.data(), y.data(), sizeof(float) * 70);
        CHECK(same_bits(first, y));
    });
}

TEST(avg_pool_refuses_what_it_cannot_do) {
    CHECK(avg_pool({DType::f32, 1, 0, 1, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(avg_pool({DType::f32, -1, 1, 1, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(avg_pool({static_cast<DType>(3), 0, 1, 1, nullptr, nullptr}, 1) == Status::bad_dtype);
    CHECK(avg_pool({DType::f32, 0, 1, 1, nullptr, nullptr}, 1) == Status::ok);
}
