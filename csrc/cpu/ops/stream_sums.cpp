#include "cpu/ops/stream_sums.h"

#include <atomic>

#include "cpu/core/isa.h"
#include "cpu/core/share.h"

namespace mvit {

MVIT_FLOAT_TABLE(StreamSumsKernels, stream_sums)

Status stream_sums(const StreamSumsProblem& p, int threads) {
    if (p.count < 0) return Status::bad_shape;
    p.sums[0] = p.sums[1] = 0;
    const auto run = stream_sums_table.active().run;
    share_run(p.count, 2 * p.count, threads, [&](int64_t first, int64_t count) {
        int64_t sums[2];
        run(p.x + first, count, sums);
        for (int i = 0; i < 2; ++i) std::atomic_ref(p.sums[i]).fetch_add(sums[i], std::memory_order_relaxed);
    });
    return Status::ok;
}

}  // namespace mvit
