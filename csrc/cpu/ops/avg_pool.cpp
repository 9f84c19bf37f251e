#include "cpu/ops/avg_pool.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_FLOAT_TABLE(AvgPoolKernels, avg_pool)

namespace {

constexpr int64_t channels_a_task = 64;  // four vectors side by side at most: whole cache lines of x

}  // namespace

Status avg_pool(const AvgPoolProblem& p, int threads) {
    if (p.batch < 0 || p.channels < 0 || p.pixels < 1) return Status::bad_shape;
    if (!known(p.dtype)) return Status::bad_dtype;
    const auto kernel = avg_pool_table.active().run[static_cast<int>(p.dtype)];
    const int64_t blocks = (p.channels + channels_a_task - 1) / channels_a_task, tasks = p.batch * blocks;
    const int64_t bytes = p.batch * p.pixels * p.channels * element_size(p.dtype);
    parallel_for(tasks, threads_for(bytes, tasks, threads), [&](int64_t task) {
        const int64_t first = task % blocks * channels_a_task, last = first + channels_a_task;
        kernel(p, task / blocks, first, last < p.channels ? last : p.channels);
    });
    return Status::ok;
}

}  // namespace mvit
