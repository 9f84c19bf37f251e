#include "cpu/ops/ceiling.h"

#include <cmath>

#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

TEST(ceilings_are_positive_numbers) {
    on_every_isa([] {
        for (int threads : {0, 1, 2}) {
            for (const double rate : {fma_gflops(threads), bf16_gflops(threads), dot_gops(threads)})
                CHECK(std::isfinite(rate) && rate > 0.0);
        }
    });
}
