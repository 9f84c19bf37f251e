// Every tail of channels and many sizes against plain loops over the formula, at tolerance 0, and against interpolation in double
// precision, with guard pages behind each buffer.
#include <algorithm>
#include <cmath>

#include "cpu/ops/qresize.h"
#include "tests/check.h"
#include "tests/coordinates.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

void compare(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t out_height, int64_t out_width, bool align_corners) {
    Guarded<uint8_t> x(batch * height * width * channels), y(batch * out_height * out_width * channels);
    for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(i % 5 == 0 ? 255 : i * 89);
    CHECK(qresize({batch, channels, height, width, out_height, out_width, align_corners, x.data(), y.data()}, 2) == Status::ok);
    CHECK(y.canary_intact());
    for (int64_t i = 0; i < y.size(); ++i) {
        const int64_t c = i % channels, column = i / channels % out_width, row = i / channels / out_width % out_height;
        const int64_t image = i / channels / out_width / out_height;
        const double v = coordinate(row, height, out_height, align_corners), u = coordinate(column, width, out_width, align_corners);
        const int64_t top = std::min(static_cast<int64_t>(v), height - 1), left = std::min(static_cast<int64_t>(u), width - 1);
        const double down = v - static_cast<double>(top), right = u - static_cast<double>(left);
        const int64_t w_down = std::lrint(down * 2048), w_right = std::lrint(right * 2048);
        int64_t sum = 0;
        double exact = 0;
        for (int64_t k = 0; k < 4; ++k) {
            const int64_t s = std::min(top + k / 2, height - 1), t = std::min(left + k % 2, width - 1);
            const int64_t q = x[((image * height + s) * width + t) * channels + c];
            sum += q * (k / 2 ? w_down : 2048 - w_down) * (k % 2 ? w_right : 2048 - w_right);
            exact += static_cast<double>(q) * (k / 2 ? down : 1 - down) * (k % 2 ? right : 1 - right);
        }
        CHECK(y[i] == std::lrint(static_cast<float>(sum) * 0x1p-22f));
        CHECK(std::fabs(y[i] - exact) <= 0.625);
        if (height == out_height && width == out_width) CHECK(y[i] == x[i]);
    }
}

}  // namespace

TEST(qresize_on_every_tail) {
    on_every_isa([] {
        for (bool align_corners : {false, true}) {
            for (int64_t channels : {1, 3, 8, 15, 16, 17, 33}) {
                compare(2, channels, 7, 5, 8, 6, align_corners);
                compare(1, channels, 8, 6, 7, 5, align_corners);
            }
            for (int64_t size : {1, 2, 3, 9, 16})
                for (int64_t out : {1, 2, 3, 9, 16, 35}) compare(1, 2, size, out, out, size, align_corners);
            compare(1, 3, 6, 6, 6, 6, align_corners);
            compare(2, 70, 31, 31, 32, 32, align_corners);  // large enough for a parallel region
        }
    });
}

TEST(qresize_refuses_what_it_cannot_do) {
    CHECK(qresize({1, 1, 0, 1, 1, 1, false, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(qresize({1, 1, 1, 1, -1, 1, false, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(qresize({1, 1, 1, 1, 0, 1, false, nullptr, nullptr}, 1) == Status::ok);
}
