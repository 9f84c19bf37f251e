// Every tail of channels and maps, in every float type, against a loop in double precision, with guard pages behind each buffer.
#include "cpu/ops/pool_mixer.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

// body(index) for every neighbour of a pixel, itself too, in a dense map whose first element is `first`.
template <class Body>
void each_neighbour(int64_t first, int64_t height, int64_t width, int64_t channels, int64_t y, int64_t x, const Body& body) {
    for (int64_t i = y - 1; i <= y + 1; ++i)
        for (int64_t j = x - 1; j <= x + 1; ++j)
            if (i >= 0 && i < height && j >= 0 && j < width) body(first + (i * width + j) * channels);
}

template <class T>
void compare(int64_t batch, int64_t height, int64_t width, int64_t channels) {
    Guarded<T> x(batch * height * width * channels), y(x.size()), alone(x.size());
    Guarded<float> scale(channels);
    fill(x, 3.0f), fill(scale);
    CHECK(pool_mixer({dtype_of<T>, batch, height, width, channels, x.data(), scale.data(), y.data()}, 2) == Status::ok);
    CHECK(pool_mixer({dtype_of<T>, batch, height, width, channels, x.data(), scale.data(), alone.data()}, 1) == Status::ok);
    CHECK(y.canary_intact() && same_bits(y, alone));
    for (int64_t i = 0; i < x.size(); ++i) {
        const int64_t c = i % channels, column = i / channels % width, row = i / channels / width % height;
        double sum = 0.0, size = 0.0, count = 0.0;
        each_neighbour(i / channels / width / height * height * width * channels + c, height, width, channels, row, column,
                       [&](int64_t at) {
                           sum += value(x[at]);
                           size += std::fabs(value(x[at]));
                           count += 1.0;
                       });
        const double own = value(x[i]), factor = value(scale[c]), exact = own + factor * (sum / count - own);
        const double all = std::fabs(own) + std::fabs(factor) * (size / count + std::fabs(own));
        CHECK(std::fabs(value(y[i]) - exact) <= 8 * 0x1p-24 * all + rounding<T> * std::fabs(exact) + 0x1p-25);
    }
}

template <class T>
void compare_all() {
    for (int64_t channels : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 48, 65, 130})
        for (int64_t height : {1, 2, 3, 5})
            for (int64_t width : {1, 2, 3, 4, 7}) compare<T>(2, height, width, channels);
    compare<T>(1, 28, 28, 96);  // large enough for a parallel region
}

}  // namespace

TEST(pool_mixer_on_every_tail) {
    on_every_isa([] {
        compare_all<float>();
        compare_all<bf16>();
        compare_all<f16>();
    });
}

TEST(pool_mixer_keeps_nan_to_the_neighbours) {
    on_every_isa([] {
        Guarded<float> x(5 * 6 * 3), y(x.size()), scale(3);
        fill(x), fill_with(scale, 0.5f);
        std::vector<bool> reached(static_cast<size_t>(x.size()));
        for (int64_t row : {0, 3}) {
            const int64_t column = row == 0 ? 5 : 2;
            x[(row * 6 + column) * 3 + 1] = std::nanf("");
            each_neighbour(1, 5, 6, 3, row, column, [&](int64_t at) { reached[static_cast<size_t>(at)] = true; });
        }
        CHECK(pool_mixer({DType::f32, 1, 5, 6, 3, x.data(), scale.data(), y.data()}, 1) == Status::ok);
        for (int64_t i = 0; i < y.size(); ++i) CHECK(std::isnan(y[i]) == reached[static_cast<size_t>(i)]);
    });
}

TEST(pool_mixer_refuses_what_it_cannot_do) {
    CHECK(pool_mixer({DType::f32, -1, 1, 1, 1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(pool_mixer({DType::f32, 1, -1, 1, 1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(pool_mixer({DType::f32, 1, 1, -1, 1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(pool_mixer({DType::f32, 1, 1, 1, -1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(pool_mixer({static_cast<DType>(3), 1, 1, 1, 0, nullptr, nullptr, nullptr}, 1) == Status::bad_dtype);
    CHECK(pool_mixer({DType::f32, 0, 1, 1, 1, nullptr, nullptr, nullptr}, 1) == Status::ok);
    CHECK(pool_mixer({DType::f32, 1, 0, 1, 1, nullptr, nullptr, nullptr}, 1) == Status::ok);
    CHECK(pool_mixer({DType::f32, 1, 1, 1, 0, nullptr, nullptr, nullptr}, 1) == Status::ok);
}
