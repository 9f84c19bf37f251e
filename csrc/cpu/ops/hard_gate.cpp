#include "cpu/ops/hard_gate.h"

#include "cpu/core/isa.h"
#include "cpu/core/share.h"

namespace mvit {

MVIT_FLOAT_TABLE(HardGateKernels, hard_gate)

Status hard_gate(const HardGateProblem& p, int threads) {
    if (p.count < 0) return Status::bad_shape;
    if (!known(p.dtype)) return Status::bad_dtype;
    const auto kernel = hard_gate_table.active().run[static_cast<int>(p.dtype)];
    share_run(p.count, 3 * p.count * element_size(p.dtype), threads, [&](int64_t first, int64_t count) { kernel(p, first, count); });
    return Status::ok;
}

}  // namespace mvit
