#include "cpu/ops/qlookup.h"

#include "cpu/core/isa.h"
#include "cpu/core/share.h"

namespace mvit {

MVIT_INTEGER_TABLE(QLookupKernels, qlookup)

Status qlookup(const QLookupProblem& p, int threads) {
    if (p.count < 0) return Status::bad_shape;
    const QLookupKernels& kernels = qlookup_table.active();
    share_run(p.count, 2 * p.count, threads, [&](int64_t first, int64_t count) { kernels.run(p.table, p.x + first, p.y + first, count); });
    return Status::ok;
}

}  // namespace mvit
