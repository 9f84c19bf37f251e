#include "cpu/ops/qavg_pool.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_INTEGER_TABLE(QAvgPoolKernels, qavg_pool)

namespace {

constexpr int64_t channels_a_task = 128;  // whole cache lines of x, several of them side by side

bool sums_fit(const QAvgPoolProblem& p) {
    const int64_t z = p.zero_point, most = z > 127 ? z : 255 - z;
    return p.pixels <= INT32_MAX / most;
}

}  // namespace

Status qavg_pool(const QAvgPoolProblem& p, int threads) {
    if (p.batch < 0 || p.channels < 0 || p.pixels < 1) return Status::bad_shape;
    if (!sums_fit(p) || !writable(p.out.zero_point)) return Status::overflow;
    const QAvgPoolKernels& kernels = qavg_pool_table.active();
    const int64_t planes = p.batch * p.channels, bytes = planes * p.pixels;
    if (p.channels_last) {
        const int64_t blocks = (p.channels + channels_a_task - 1) / channels_a_task;
        parallel_for(p.batch * blocks, threads_for(bytes, p.batch * blocks, threads), [&](int64_t task) {
            const int64_t first = task % blocks * channels_a_task, last = first + channels_a_task;
            kernels.channels_last(p, task / blocks, first, last < p.channels ? last : p.channels);
        });
    } else {
        parallel_region(threads_for(bytes, planes, threads), [&](const Team& team) {
            team.share(planes, [&](int64_t first, int64_t last) { kernels.channels_first(p, first, last); });
        });
    }
    return Status::ok;
}

}  // namespace mvit
