// Every tail in every float type against double precision, with guard pages behind each buffer, in place too.
#include "cpu/ops/hard_gate.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

template <class T>
void compare(int64_t count) {
    Guarded<T> x(count), u(count), y(count);
    fill(x), fill(u, 0.0f, 4.0f);
    CHECK(hard_gate({dtype_of<T>, count, x.data(), u.data(), y.data()}, 2) == Status::ok);
    CHECK(y.canary_intact());
    for (int64_t i = 0; i < count; ++i) {
        const double exact = value(x[i]) * std::fmin(std::fmax(value(u[i]) + 3.0, 0.0), 6.0) / 6.0;
        CHECK(std::fabs(value(y[i]) - exact) <= 4 * 0x1p-24 * std::fabs(value(x[i])) + rounding<T> * std::fabs(exact) + 0x1p-25);
    }
    CHECK(hard_gate({dtype_of<T>, count, x.data(), u.data(), x.data()}, 1) == Status::ok);
    CHECK(same_bits(x, y));
}

template <class T>
void compare_all() {
    for (int64_t count = 0; count <= 70; ++count) compare<T>(count);
    compare<T>(100003);  // large enough for a parallel region
}

}  // namespace

TEST(hard_gate_on_every_tail) {
    on_every_isa([] {
        compare_all<float>();
        compare_all<bf16>();
        compare_all<f16>();
    });
}

TEST(hard_gate_keeps_nan) {
    on_every_isa([] {
        Guarded<float> x(40), u(40), y(40);
        fill(x), fill(u);
        x[3] = u[21] = std::nanf("");
        CHECK(hard_gate({DType::f32, 40, x.data(), u.data(), y.data()}, 1) == Status::ok);
        for (int64_t i = 0; i < 40; ++i) CHECK(std::isnan(y[i]) == (i == 3 || i == 21));
    });
}

TEST(hard_gate_refuses_what_it_cannot_do) {
    CHECK(hard_gate({DType::f32, -1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(hard_gate({static_cast<DType>(3), 0, nullptr, nullptr, nullptr}, 1) == Status::bad_dtype);
}
