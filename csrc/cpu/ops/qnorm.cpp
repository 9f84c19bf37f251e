#include "cpu/ops/qnorm.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_INTEGER_TABLE(QNormKernels, qnorm)

namespace {

constexpr int64_t bytes_of_a_task = 32 * 1024;  // a few microseconds

Status check(const QNormProblem& p) {
    if (p.rows < 0 || p.norm.depth < 0 || (p.norm.sums && p.rows > 0 && p.norm.group_rows <= 0)) return Status::bad_shape;
    return Status::ok;
}

}  // namespace

Status qnorm(const QNormProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.rows == 0 || p.norm.depth == 0) return Status::ok;
    const QNormKernels& kernels = qnorm_table.active();
    const int64_t row_bytes = 3 * p.norm.depth, height = bytes_of_a_task / row_bytes + 1, tasks = (p.rows + height - 1) / height;
    parallel_for(tasks, threads_for(p.rows * row_bytes, tasks, threads), [&](int64_t task) {
        const int64_t row = task * height;
        kernels.rows(p, row, p.rows - row < height ? p.rows - row : height);
    });
    return Status::ok;
}

}  // namespace mvit
