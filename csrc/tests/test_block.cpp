// That block.h shows what it is for: a barrier that is missing.
#include "tests/block.h"

#include "cuda/primitives/device.cuh"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

constexpr int threads = 64;

// Whether every thread reads what its neighbour wrote before.
bool neighbours_meet(const BlockOrder& order, void (*barrier)()) {
    int shared[threads] = {}, seen[threads] = {};
    run_block(threads, 0, 0, order, [&] {
        const int i = cuda::thread_index();
        shared[i] = i + 1;
        barrier();
        seen[i] = shared[(i + 1) % threads];
    });
    for (int i = 0; i < threads; ++i)
        if (seen[i] != (i + 1) % threads + 1) return false;
    return true;
}

}  // namespace

TEST(block_with_every_barrier) {
    for (const BlockOrder& order : block_orders) CHECK(neighbours_meet(order, cuda::block_barrier));
}

// `make -C csrc races` wants these to be stopped by ThreadSanitizer.
TEST(block_with_a_missing_barrier) {
    CHECK(!neighbours_meet(block_orders[0], [] {}));
}
TEST(block_with_a_barrier_of_warps_alone) { CHECK(!neighbours_meet(block_orders[0], cuda::warp_barrier)); }
