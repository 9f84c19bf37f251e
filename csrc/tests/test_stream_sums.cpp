#include "cpu/ops/stream_sums.h"

#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

TEST(sums_of_a_stream) {
    on_every_isa([] {
        for (int64_t count : {0, 1, 15, 16, 31, 33, 1000, 200'000})
            for (int threads : {1, 3}) {
                Guarded<int16_t> x(count);
                int64_t sum = 0, squares = 0, sums[2] = {-1, -1};
                for (int64_t i = 0; i < count; ++i) {
                    x[i] = static_cast<int16_t>(i % 7 == 0 ? -32768 : random_int(-32768, 32767));
                    sum += x[i];
                    squares += int64_t{x[i]} * x[i];
                }
                CHECK(stream_sums({count, x.data(), sums}, threads) == Status::ok);
                CHECK(sums[0] == sum && sums[1] == squares);
            }
    });
    int64_t sums[2];
    CHECK(stream_sums({-1, nullptr, sums}, 1) == Status::bad_shape);
}
