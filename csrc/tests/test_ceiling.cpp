#include "cpu/ops/ceiling.h"

#include <cmath>

#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

TEST(the_ceiling_is_a_positive_number) {
    on_every_isa([] {
        for (int threads : {0, 1, 2}) {
            const double gflops = fma_gflops(threads);
            CHECK(std::isfinite(gflops) && gflops > 0.0);
        }
    });
}
