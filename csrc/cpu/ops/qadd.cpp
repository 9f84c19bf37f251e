#include "cpu/ops/qadd.h"

#include "cpu/core/isa.h"
#include "cpu/core/share.h"

namespace mvit {

MVIT_INTEGER_TABLE(QAddKernels, qadd)

Status qadd(const QAddProblem& p, int threads) {
    if (p.count < 0) return Status::bad_shape;
    if (!writable(p.out.zero_point)) return Status::overflow;
    const int activation = static_cast<int>(p.activation);
    if (activation < 0 || activation > 2) return Status::bad_dtype;
    const auto kernel = qadd_table.active().run[activation];
    share_run(p.count, 3 * p.count, threads, [&](int64_t first, int64_t count) { kernel(p, first, count); });
    return Status::ok;
}

}  // namespace mvit
