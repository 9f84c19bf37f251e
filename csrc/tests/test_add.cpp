// Every tail, float type and activation, with and without b, against double precision, with guard pages behind each buffer, in place too.
#include "cpu/ops/add.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

template <class T>
void compare(int64_t count, Activation activation, bool both) {
    Guarded<T> a(count), b(count), y(count);
    fill(a, 0.0f, 3.0f);
    fill(b);
    AddProblem p{dtype_of<T>, count, activation, a.data(), both ? b.data() : nullptr, y.data()};
    CHECK(add(p, 2) == Status::ok);
    CHECK(y.canary_intact());
    for (int64_t i = 0; i < count; ++i) {
        const double sum = value(a[i]) + (both ? value(b[i]) : 0.0), exact = activate_exactly(activation, sum);
        // Roundings in float32, of the result, and of a subnormal float16.
        const double few = activation == Activation::none || activation == Activation::relu ? 1 : 8;
        const double doubt = few * 0x1p-24 * std::fabs(sum) + activation_error<T>(activation, exact);
        CHECK(std::fabs(value(y[i]) - exact) <= doubt + rounding<T> * std::fabs(exact) + 0x1p-25);
    }
    p.y = a.data();
    CHECK(add(p, 1) == Status::ok);
    CHECK(a.canary_intact() && same_bits(a, y));
}

template <class T>
void compare_all() {
    for (Activation activation : activations)
        for (bool both : {true, false}) {
            for (int64_t count = 0; count <= 70; ++count) compare<T>(count, activation, both);
            compare<T>(100003, activation, both);  // large enough for a parallel region
        }
}

}  // namespace

TEST(add_on_every_tail) {
    on_every_isa([] {
        compare_all<float>();
        compare_all<bf16>();
        compare_all<f16>();
    });
}

TEST(add_keeps_nan) {
    on_every_isa([] {
        for (Activation activation : activations) {
            Guarded<float> a(20), y(20);
            fill_with(a, std::nanf(""));
            CHECK(add({DType::f32, 20, activation, a.data(), a.data(), y.data()}, 1) == Status::ok);
            for (int64_t i = 0; i < 20; ++i) CHECK(std::isnan(y[i]));
        }
    });
}

TEST(add_refuses_what_it_cannot_do) {
    CHECK(add({DType::f32, -1, Activation::none, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(add({static_cast<DType>(3), 0, Activation::none, nullptr, nullptr, nullptr}, 1) == Status::bad_dtype);
}
