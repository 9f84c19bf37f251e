// Every tail of channels and many sizes, in every float type, against interpolation in double precision, with guard pages behind each
// buffer.
#include <algorithm>

#include "cpu/ops/resize.h"
#include "tests/coordinates.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

template <class T>
void compare(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t out_height, int64_t out_width, bool align_corners) {
    Guarded<T> x(batch * height * width * channels), y(batch * out_height * out_width * channels), alone(y.size());
    fill(x);
    ResizeProblem p{dtype_of<T>, batch, channels, height, width, out_height, out_width, align_corners, x.data(), y.data()};
    CHECK(resize(p, 2) == Status::ok);
    p.y = alone.data();
    CHECK(resize(p, 1) == Status::ok);
    CHECK(y.canary_intact() && same_bits(y, alone));
    for (int64_t i = 0; i < y.size(); ++i) {
        const int64_t c = i % channels, column = i / channels % out_width, row = i / channels / out_width % out_height;
        const int64_t image = i / channels / out_width / out_height;
        const double v = coordinate(row, height, out_height, align_corners), u = coordinate(column, width, out_width, align_corners);
        const int64_t top = std::min(static_cast<int64_t>(v), height - 1), left = std::min(static_cast<int64_t>(u), width - 1);
        const double down = v - static_cast<double>(top), right = u - static_cast<double>(left);
        double exact = 0, size = 0;
        for (int64_t k = 0; k < 4; ++k) {
            const int64_t s = std::min(top + k / 2, height - 1), t = std::min(left + k % 2, width - 1);
            const double term =
                value(x[((image * height + s) * width + t) * channels + c]) * (k / 2 ? down : 1 - down) * (k % 2 ? right : 1 - right);
            exact += term;
            size += std::fabs(term);
        }
        // A weight, a product and three sums; the rounding of the result, and of a subnormal float16.
        CHECK(std::fabs(value(y[i]) - exact) <= 5 * 0x1p-24 * size + rounding<T> * std::fabs(exact) + least_rounding<T>);
        if (height == out_height && width == out_width) CHECK(value(y[i]) == value(x[i]));
    }
}

template <class T>
void compare_all() {
    for (bool align_corners : {false, true}) {
        for (int64_t channels : {1, 3, 8, 15, 16, 17, 33}) {
            compare<T>(2, channels, 7, 5, 8, 6, align_corners);
            compare<T>(1, channels, 8, 6, 7, 5, align_corners);
        }
        for (int64_t size : {1, 2, 3, 9, 16})
            for (int64_t out : {1, 2, 3, 9, 16, 35}) compare<T>(1, 2, size, out, out, size, align_corners);
        compare<T>(1, 3, 6, 6, 6, 6, align_corners);
        compare<T>(2, 70, 15, 15, 16, 16, align_corners);  // large enough for a parallel region
    }
}

}  // namespace

TEST(resize_on_every_tail) {
    on_every_isa([] {
        compare_all<float>();
        compare_all<bf16>();
        compare_all<f16>();
    });
}

TEST(resize_refuses_what_it_cannot_do) {
    CHECK(resize({DType::f32, 1, 1, 0, 1, 1, 1, false, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(resize({DType::f32, 1, 1, 1, 1, -1, 1, false, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(resize({static_cast<DType>(3), 1, 1, 1, 1, 1, 1, false, nullptr, nullptr}, 1) == Status::bad_dtype);
    CHECK(resize({DType::f32, 1, 1, 1, 1, 0, 1, false, nullptr, nullptr}, 1) == Status::ok);
}
