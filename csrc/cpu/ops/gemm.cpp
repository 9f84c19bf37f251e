#include "cpu/ops/gemm.h"

#include "cpu/core/borrowed.h"
#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"
#include "cpu/ops/dynamic_relu.h"
#include "cpu/ops/row_moments.h"

namespace mvit {

MVIT_FLOAT_TABLE(GemmKernels, gemm)

namespace {

constexpr int64_t tasks_wanted = 8;  // few rows: the columns are cut too
// Weights that leave no room in the second cache for anything else are taken a part at a time, each by all rows.
constexpr int64_t large_weight = 1 << 20, large_part = 1 << 19;  // bytes

Status check(const GemmProblem& p) {
    if (p.groups < 0 || p.rows < 0 || p.depth < 0 || p.second_depth < 0 || p.columns < 0) return Status::bad_shape;
    if (!known(p.dtype)) return Status::bad_dtype;
    if (p.layer_norm && (p.second_depth > 0 || p.depth == 0 || p.moments)) return Status::bad_shape;
    if (p.moments && p.second_depth > 0) return Status::bad_shape;
    if (p.collected && p.y_stride != p.columns) return Status::bad_layout;
    if (p.slopes && (p.activation != Activation::none || p.residual)) return Status::bad_layout;
    return Status::ok;
}

void run(const GemmProblem& p, int threads) {
    const GemmKernels& kernels = gemm_table.active();
    const int code = static_cast<int>(p.dtype);
    const int64_t depth = p.depth + p.second_depth;
    const Cut cut = cut_rows(p.groups, p.rows, 1);  // 64 rows, whatever the threads: the columns give them work where rows are few
    const int64_t bytes = panels(p.columns) * panel * depth * (p.dtype == DType::bf16 ? 2 : 4);
    const bool large = bytes > large_weight && cut.tasks() > 1;
    const int64_t fewest = large ? (bytes + large_part - 1) / large_part : 1, few = (tasks_wanted + cut.tasks() - 1) / cut.tasks();
    const int64_t pieces = few > fewest ? few : fewest, width = (panels(p.columns) + pieces - 1) / pieces;
    const int64_t ranges = (panels(p.columns) + width - 1) / width;
    const auto at = [&](const void* data, int64_t offset) {
        return data ? const_cast<char*>(static_cast<const char*>(data)) + offset * element_size(p.dtype) : nullptr;
    };
    const auto rows_of_y = [&](int64_t block) { return at(p.y, (cut.group(block) * p.rows + cut.first(block)) * p.y_stride); };

    const DynamicSlopes slopes(p.dtype, p.slopes, p.groups, p.columns);
    const Borrowed<Statistics> tiles(p.collected ? p.groups * cut.tiles() : 0);
    // Of few rows what takes time is reading the weight.
    const int64_t rows = p.groups * p.rows, work = (rows > 8 ? rows : 8) * depth * p.columns / 8;
    parallel_tasks(cut.tasks() * ranges, work, gemm_scratch(cut.height, depth, width * panel), threads, [&](int64_t task, float* scratch) {
        const int64_t block = large ? task % cut.tasks() : task / ranges, begin = (large ? task / cut.tasks() : task % ranges) * width;
        const int64_t end = begin + width < panels(p.columns) ? begin + width : panels(p.columns);
        const int64_t group = cut.group(block), row = group * p.rows + cut.first(block);
        RowSource source = row_source(at(p.a, row * p.a_stride), p.a_stride, p.depth, p.moments ? p.moments + group : nullptr, p.eps);
        source.layer_norm = p.layer_norm;
        source.second = at(p.second, row * p.second_stride);
        source.second_stride = p.second_stride;
        source.second_depth = p.second_depth;
        kernels.block[code]({source, cut.count(block), p.columns, begin, end, p.weight, p.bias, p.activation, slopes.of(group),
                             at(p.residual, row * p.residual_stride), p.residual_stride, rows_of_y(block), p.y_stride, scratch});
        if (p.collected && ranges == 1) gather_statistics(p.dtype, rows_of_y(block), cut, block, p.columns, tiles.data());
    });
    if (!p.collected) return;
    for (int64_t block = 0; ranges > 1 && block < cut.tasks(); ++block)  // few beside the columns: not worth another parallel region
        gather_statistics(p.dtype, rows_of_y(block), cut, block, p.columns, tiles.data());
    combine_groups(tiles.data(), cut, p.collected);
}

}  // namespace

Status gemm(const GemmProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.groups == 0 || p.rows == 0 || p.columns == 0) return Status::ok;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
