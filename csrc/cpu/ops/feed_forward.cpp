#include "cpu/ops/feed_forward.h"

#include <new>
#include "cpu/core/borrowed.h"
#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"
#include "cpu/ops/row_moments.h"

namespace mvit {

MVIT_FLOAT_TABLE(FeedForwardKernels, feed_forward)

namespace {

Status check(const FeedForwardProblem& p) {
    if (p.groups < 0 || p.rows < 0 || p.dim < 0 || p.hidden < 0) return Status::bad_shape;
    if (!known(p.dtype)) return Status::bad_dtype;
    if ((p.layer_norm || p.as_it_is) && p.moments) return Status::bad_shape;
    if (p.layer_norm && p.as_it_is) return Status::bad_shape;
    return Status::ok;
}

void run(const FeedForwardProblem& p, int threads) {
    const FeedForwardKernels& kernels = feed_forward_table.active();
    const Cut cut = cut_rows(p.groups, p.rows, threads);
    const int64_t row_bytes = p.dim * element_size(p.dtype);
    const bool computes = !p.layer_norm && !p.as_it_is && !p.moments;
    const Borrowed<Moments> own(computes ? p.groups : 0);
    const Moments* moments = p.moments;
    if (computes) {
        row_moments(p.dtype, p.x, p.groups, p.rows, p.dim, own.data(), threads);
        moments = own.data();
    }
    const Borrowed<Statistics> tiles(p.collected ? p.groups * cut.tiles() : 0);
    parallel_tasks(cut.tasks(), p.groups * p.rows * p.dim * p.hidden / 4, feed_forward_scratch(cut.height, p.dim, p.hidden), threads,
                   [&](int64_t task, float* scratch) {
                       const int64_t offset = (cut.group(task) * p.rows + cut.first(task)) * row_bytes;
                       RowSource source = row_source(static_cast<const char*>(p.x) + offset, p.dim, p.dim,
                                                     moments ? moments + cut.group(task) : nullptr, p.eps);
                       source.layer_norm = p.layer_norm;
                       void* y = static_cast<char*>(p.y) + offset;
                       kernels.block[static_cast<int>(p.dtype)](
                           {source, cut.count(task), p.hidden, p.weight1, p.bias1, p.weight2, p.bias2, p.activation, y, scratch});
                       if (p.collected) gather_statistics(p.dtype, y, cut, task, p.dim, tiles.data());
                   });
    if (p.collected) combine_groups(tiles.data(), cut, p.collected);
}

}  // namespace

Status feed_forward(const FeedForwardProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.groups == 0 || p.rows == 0 || p.dim == 0) return Status::ok;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
