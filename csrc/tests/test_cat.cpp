// Rows of every length against a plain loop, with guard pages behind each buffer.
#include "cpu/ops/cat.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

void compare(int64_t rows, int64_t a_bytes, int64_t b_bytes) {
    Guarded<uint8_t> a(rows * a_bytes), b(rows * b_bytes), y(rows * (a_bytes + b_bytes));
    for (int64_t i = 0; i < a.size(); ++i) a[i] = static_cast<uint8_t>(i * 37 + 1);
    for (int64_t i = 0; i < b.size(); ++i) b[i] = static_cast<uint8_t>(i * 89 + 2);
    CHECK(cat({rows, a_bytes, b_bytes, a.data(), b.data(), y.data()}, 2) == Status::ok);
    CHECK(y.canary_intact());
    for (int64_t row = 0, i = 0; row < rows; ++row) {
        for (int64_t j = 0; j < a_bytes; ++j) CHECK(y[i++] == a[row * a_bytes + j]);
        for (int64_t j = 0; j < b_bytes; ++j) CHECK(y[i++] == b[row * b_bytes + j]);
    }
}

}  // namespace

TEST(cat_on_every_tail) {
    on_every_isa([] {
        for (int64_t a : {0, 1, 3, 48, 63, 64, 65, 127, 200, 512})
            for (int64_t b : {0, 1, 20, 64, 100, 257}) compare(5, a, b);
        compare(1, 10000, 9);
        compare(0, 4, 4);
        compare(1000, 96, 160);  // large enough for a parallel region
    });
}

TEST(cat_refuses_negative_sizes) {
    CHECK(cat({-1, 1, 1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(cat({1, -1, 1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(cat({1, 1, -1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape);
}
