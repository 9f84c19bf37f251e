#include "cpu/ops/qgemm.h"

#include <atomic>

#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_INTEGER_TABLE(QGemmKernels, qgemm)

namespace {

constexpr int64_t products_of_a_task = 1 << 20;  // some microseconds: little to lose at the end, much more than a task costs
constexpr int64_t rows_at_least = 96;            // that meet panels at once: a weight is read as often as there are blocks of rows
constexpr int64_t rows_at_most = 384;            // rows and the columns that they meet stay in the second cache
constexpr int64_t tasks_wanted = 8;              // few rows: the columns are cut too
constexpr int64_t large_weight = 256 * 1024;     // bytes: a part of the second cache
constexpr int64_t products_of_a_byte = 8;        // in the time that a byte is copied, unless there are as few rows to share a weight

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

// The first of [0, count) that part `i` of so many even ones has.
int64_t begin_of(int64_t i, int64_t parts, int64_t count) { return i * count / parts; }

void run(const QGemmProblem& p, int threads) {
    const QGemmKernels& kernels = qgemm_table.active();
    const QWeight& w = p.weight;
    const int64_t panels = qpanels(w.columns), depth = w.depth > 0 ? w.depth : 1, products = depth * panels * qpanel;
    // A weight beyond the second cache is read once a block: each thread meets its own part of the columns.
    const bool large = products > large_weight && p.rows > kernels.height;
    // As many rows as make a task long enough. But rows are normalised anew for each range of columns, and the fewer blocks of rows there
    // are the more ranges: tiles multiply too fast for that to pay.
    const int64_t speed = product_speed(), enough = speed * products_of_a_task / products + 1;
    const int64_t fewest = speed > 1 && !p.norm ? 2 * rows_at_least : rows_at_least;
    const int64_t some = enough > fewest && (speed == 1 || !p.norm) ? enough : fewest;
    const int64_t height = some < rows_at_most ? some : rows_at_most, needed = (p.rows + height - 1) / height;
    const bool cut = threads > 1 && p.rows >= 2 * kernels.height;
    const int64_t least = cut && needed < threads ? threads : needed;  // ranges of columns are rarely even
    const int64_t few = threads > 1 ? (tasks_wanted + least - 1) / least : 1, groups = (panels + qgroup - 1) / qgroup;
    const int64_t pieces = large && (p.norm || few < threads) ? threads : few;  // rows are normalised anew for each piece
    const int64_t ranges = pieces < groups ? pieces : groups;
    // As many tasks for each thread, if rows can be cut.
    const int64_t blocks = cut ? (round_up(least * ranges, threads) + ranges - 1) / ranges : least;
    const int64_t bytes = kernels.scratch(p, (p.rows + blocks - 1) / blocks);
    const int64_t work = p.rows * products / (p.rows < products_of_a_byte ? p.rows : products_of_a_byte) / speed;

    const auto one = [&](int64_t task, float* scratch) {
        const int64_t i = large ? task % blocks : task / ranges, j = large ? task / blocks : task % ranges;
        const int64_t row = begin_of(i, blocks, p.rows), rows = begin_of(i + 1, blocks, p.rows) - row;
        const QGemmBlock block{&p, row, rows, begin_of(j, ranges, panels), begin_of(j + 1, ranges, panels), scratch};
        if (rows == 0) return;  // more blocks than rows
        kernels.block(block);
        if (p.collected) collect(p, kernels, block);
    };
    const auto all = [&] { parallel_tasks(blocks * ranges, work, bytes / int64_t{sizeof(float)}, threads, one); };
    // Microseconds, while a thread that another process keeps from coming takes milliseconds: a crew doesn't wait for it.
    if (threads_for(work, blocks * ranges, threads) <= 1 || Crew::led()) return all();
    Status status = Status::ok;
    Crew::with(threads, [&] { status = caught(all); });
    if (status == Status::out_of_memory) throw std::bad_alloc();
}

}  // namespace

Status qgemm(const QGemmProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    for (int64_t i = 0; p.collected && i < 2 * p.groups; ++i) p.collected[i] = 0;
    if (p.rows == 0 || p.weight.columns == 0) return Status::ok;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
