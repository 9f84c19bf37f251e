#include "cpu/ops/qgemm.h"

#include <atomic>

#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_ISA_TABLE(QGemmKernels, qgemm)

namespace {

constexpr int64_t products_of_a_task = 1 << 20;  // some microseconds: little to lose at the end, much more than a task costs
constexpr int64_t rows_at_most = 384;            // rows and the columns that they meet stay in the second cache
constexpr int64_t tasks_wanted = 8;              // few rows: the columns are cut too
constexpr int64_t large_weight = 256 * 1024;     // bytes: a part of the second cache
constexpr int64_t rows_of_large = 96;            // that a large weight meets at once at least

bool row_zero_points_fit(const QGemmProblem& p) {
    int64_t most = 255;
    for (int64_t m = 0; m < p.rows; ++m) {
        const int64_t z = p.epilogue.row_zero_point[m], distance = z > 127 ? z : 255 - z;
        most = distance > most ? distance : most;
    }
    return p.weight.largest * most <= INT32_MAX;
}

Status check(const QGemmProblem& p) {
    if (p.rows < 0) return Status::bad_shape;
    if (!known(p.epilogue.type)) return Status::bad_dtype;
    if ((p.epilogue.table && p.epilogue.type != QType::u8) || !slopes_fit(p.epilogue)) return Status::bad_dtype;
    if (p.epilogue.curve && (p.epilogue.type != QType::u8 || !p.epilogue.plain || p.epilogue.residual)) return Status::bad_dtype;
    if (p.norm && p.norm->depth != p.weight.depth) return Status::bad_shape;
    if (p.collected && p.epilogue.type != QType::i16) return Status::bad_dtype;
    if (p.collected && (p.groups < 0 || (p.groups == 0 ? p.rows > 0 : p.rows % p.groups != 0))) return Status::bad_shape;
    if (p.epilogue.row_zero_point && !row_zero_points_fit(p)) return Status::overflow;
    return Status::ok;
}

// Adds the sums of a block of y to those of the groups that it lies in.
void collect(const QGemmProblem& p, const QGemmKernels& kernels, const QGemmBlock& b) {
    const int64_t first = b.panel_begin * qpanel, last = b.panel_end * qpanel;
    const int64_t columns = (last < p.weight.columns ? last : p.weight.columns) - first, end = b.row + b.rows;
    const int64_t group_rows = p.rows / p.groups;
    for (int64_t row = b.row; row < end;) {
        const int64_t group = row / group_rows, beyond = (group + 1) * group_rows, stop = beyond < end ? beyond : end;
        int64_t sums[2];
        const auto* y = static_cast<const int16_t*>(p.epilogue.y) + row * p.epilogue.y_stride + first;
        kernels.sums(y, p.epilogue.y_stride, stop - row, columns, sums);
        for (int i = 0; i < 2; ++i) std::atomic_ref(p.collected[2 * group + i]).fetch_add(sums[i], std::memory_order_relaxed);
        row = stop;
    }
}

void run(const QGemmProblem& p, int threads) {
    const QGemmKernels& kernels = qgemm_table.active();
    const QWeight& w = p.weight;
    const int64_t panels = qpanels(w.columns), depth = w.depth > 0 ? w.depth : 1;
    const int64_t enough = round_up(products_of_a_task / (depth * panels * qpanel) + 1, kernels.height);
    const int64_t share = round_up((p.rows + threads - 1) / (threads > 0 ? threads : 1), kernels.height);
    // A weight beyond the second cache is read once a block: taller blocks, of which each thread meets its own part of the columns.
    const bool large = depth * panels * qpanel > large_weight && p.rows > kernels.height;
    const int64_t least = round_up(large ? rows_of_large : 1, kernels.height), some = enough > least ? enough : least;
    const int64_t most = some < rows_at_most ? some : rows_at_most, whole = round_up(p.rows, kernels.height);
    const int64_t height = large ? (most < whole ? most : whole) : most < share ? most : share;
    const int64_t blocks = (p.rows + height - 1) / height;
    const int64_t few = threads > 1 ? (tasks_wanted + blocks - 1) / blocks : 1;
    const int64_t pieces = large && (p.norm || few < threads) ? threads : few;  // rows are normalised anew for each piece
    const int64_t width = round_up((panels + pieces - 1) / pieces, qgroup), ranges = (panels + width - 1) / width;
    const int64_t bytes = kernels.scratch(p, height < p.rows ? height : p.rows);

    parallel_tasks(blocks * ranges, p.rows * depth * panels * qpanel / 32, bytes / int64_t{sizeof(float)}, threads,
                   [&](int64_t task, float* scratch) {
                       const int64_t row = (large ? task % blocks : task / ranges) * height;
                       const int64_t begin = (large ? task / blocks : task % ranges) * width;
                       const int64_t end = begin + width < panels ? begin + width : panels;
                       const QGemmBlock block{&p, row, p.rows - row < height ? p.rows - row : height, begin, end, scratch};
                       kernels.block(block);
                       if (p.collected) collect(p, kernels, block);
                   });
}

}  // namespace

Status qgemm(const QGemmProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    for (int64_t i = 0; p.collected && i < 2 * p.groups; ++i) p.collected[i] = 0;
    if (p.rows == 0 || p.weight.columns == 0) return Status::ok;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
