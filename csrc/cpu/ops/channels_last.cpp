#include "cpu/ops/channels_last.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_FLOAT_TABLE(ChannelsLastKernels, channels_last)

namespace {

constexpr int64_t bytes_a_task = 32 * 1024, cache_line = 64;

// Whole cache lines of every plane.
int64_t pixels_a_task(const ChannelsLastProblem& p) {
    const int64_t line = cache_line / p.element_size, lines = bytes_a_task / (p.channels * cache_line);
    return line * (lines > 0 ? lines : 1);
}

}  // namespace

Status channels_last(const ChannelsLastProblem& p, int threads) {
    if (p.element_size != 1 && p.element_size != 2 && p.element_size != 4) return Status::bad_dtype;
    if (p.batch < 0 || p.channels < 0 || p.pixels < 0) return Status::bad_shape;
    if (p.channels == 0) return Status::ok;
    const auto kernel = channels_last_table.active().run[p.element_size / 2];  // 1, 2, 4: the same as log2
    const int64_t part = pixels_a_task(p), parts = (p.pixels + part - 1) / part, tasks = p.batch * parts;
    const int64_t bytes = 2 * p.batch * p.channels * p.pixels * p.element_size;
    parallel_for(tasks, threads_for(bytes, tasks, threads), [&](int64_t task) {
        const int64_t first = task % parts * part, last = first + part;
        kernel(p, task / parts, first, last < p.pixels ? last : p.pixels);
    });
    return Status::ok;
}

}  // namespace mvit
