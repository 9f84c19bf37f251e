#include "cpu/ops/gemm.h"

#include <atomic>
#include <new>
#include <vector>

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"
#include "cpu/ops/group_norm.h"

namespace mvit {

MVIT_ISA_TABLE(GemmKernels, gemm)
MVIT_ISA_TABLE(GroupNormKernels, group_norm)

namespace {

constexpr int64_t rows_a_task = 64;  // enough for the weights to be worth loading
constexpr int64_t tasks_wanted = 8;  // few rows: the columns are cut too

Status check(const GemmProblem& p) {
    if (p.groups < 0 || p.rows < 0 || p.depth < 0 || p.second_depth < 0 || p.columns < 0) return Status::bad_shape;
    if (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) return Status::bad_dtype;
    if (p.layer_norm && (p.second_depth > 0 || p.depth == 0 || p.moments)) return Status::bad_shape;
    if (p.moments && p.second_depth > 0) return Status::bad_shape;
    if (p.collected && p.y_stride != p.columns) return Status::bad_layout;
    return Status::ok;
}

void run(const GemmProblem& p, int threads) {
    const GemmKernels& kernels = gemm_table.active();
    const GroupNormKernels& norm = group_norm_table.active();
    const int code = static_cast<int>(p.dtype);
    const int64_t element = p.dtype == DType::f32 ? 4 : 2, depth = p.depth + p.second_depth;
    const int64_t blocks = (p.rows + rows_a_task - 1) / rows_a_task, height = (p.rows + blocks - 1) / blocks, all = p.groups * blocks;
    const int64_t pieces = (tasks_wanted + all - 1) / all, width = (panels(p.columns) + pieces - 1) / pieces;
    const int64_t ranges = (panels(p.columns) + width - 1) / width;
    const int64_t bytes = p.groups * p.rows * depth * p.columns / 8;  // of a copy that takes about as long

    std::vector<Statistics> parts(p.collected ? static_cast<size_t>(all) : 0);
    std::atomic<bool> no_memory{false};
    const auto at = [&](const void* data, int64_t offset) {
        return data ? const_cast<char*>(static_cast<const char*>(data)) + offset * element : nullptr;
    };
    parallel_for(all * ranges, threads_for(bytes, all * ranges, threads), [&](int64_t task) {
        const int64_t range = task % ranges, part = task / ranges, group = part / blocks, first = part % blocks * height;
        const int64_t row = group * p.rows + first, rows = p.rows - first < height ? p.rows - first : height;
        const int64_t begin = range * width, end = begin + width < panels(p.columns) ? begin + width : panels(p.columns);
        float* scratch = thread_scratch().floats(gemm_scratch(rows, depth));
        if (!scratch) {
            no_memory.store(true, std::memory_order_relaxed);
            return;
        }
        RowSource source = row_source(at(p.a, row * p.a_stride), p.a_stride, p.depth, p.moments ? p.moments + group : nullptr, p.eps);
        source.layer_norm = p.layer_norm;
        source.second = at(p.second, row * p.second_stride);
        source.second_stride = p.second_stride;
        source.second_depth = p.second_depth;
        void* y = at(p.y, row * p.y_stride);
        kernels.block[code]({source, rows, p.columns, begin, end, p.weight, p.bias, p.activation, at(p.residual, row * p.residual_stride),
                             p.residual_stride, y, p.y_stride, scratch});
        if (p.collected && ranges == 1) parts[static_cast<size_t>(part)] = norm.statistics[code](y, rows * p.columns);
    });
    if (no_memory.load()) throw std::bad_alloc();
    for (int64_t part = 0; p.collected && ranges > 1 && part < all; ++part) {  // few rows: not worth another parallel region
        const int64_t first = part % blocks * height, rows = p.rows - first < height ? p.rows - first : height;
        parts[static_cast<size_t>(part)] = norm.statistics[code](at(p.y, (part / blocks * p.rows + first) * p.columns), rows * p.columns);
    }
    for (int64_t group = 0; p.collected && group < p.groups; ++group) p.collected[group] = combine(parts.data() + group * blocks, blocks);
}

}  // namespace

Status gemm(const GemmProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.groups == 0 || p.rows == 0 || p.columns == 0) return Status::ok;
    try {
        run(p, threads);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace mvit
