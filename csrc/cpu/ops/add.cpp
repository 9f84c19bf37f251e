#include "cpu/ops/add.h"

#include "cpu/core/isa.h"
#include "cpu/core/share.h"

namespace mvit {

MVIT_FLOAT_TABLE(AddKernels, add)

Status add(const AddProblem& p, int threads) {
    if (p.count < 0) return Status::bad_shape;
    if (!known(p.dtype)) return Status::bad_dtype;
    const auto kernel = add_table.active().run[static_cast<int>(p.dtype)];
    const int64_t bytes = (p.b ? 3 : 2) * p.count * element_size(p.dtype);
    share_run(p.count, bytes, threads, [&](int64_t first, int64_t count) { kernel(p, first, count); });
    return Status::ok;
}

}  // namespace mvit
