#include "cpu/ops/cat.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/ops/patches.h"

namespace mvit {

MVIT_FLOAT_TABLE(PatchesKernels, patches)

namespace {

constexpr int64_t bytes_a_task = 8 * 1024;  // what a wrote is still in the first cache when b comes

}  // namespace

Status cat(const CatProblem& p, int threads) {
    if (p.rows < 0 || p.a_bytes < 0 || p.b_bytes < 0) return Status::bad_shape;
    const auto move = patches_table.active().move;
    const int64_t row = p.a_bytes + p.b_bytes, height = row < bytes_a_task ? bytes_a_task / (row > 0 ? row : 1) : 1;
    const int64_t tasks = (p.rows + height - 1) / height;
    parallel_for(tasks, threads_for(2 * p.rows * row, tasks, threads), [&](int64_t task) {
        const int64_t first = task * height, count = p.rows - first < height ? p.rows - first : height;
        char* y = static_cast<char*>(p.y) + first * row;
        move(static_cast<const char*>(p.a) + first * p.a_bytes, p.a_bytes, y, row, count, p.a_bytes);
        move(static_cast<const char*>(p.b) + first * p.b_bytes, p.b_bytes, y + p.a_bytes, row, count, p.b_bytes);
    });
    return Status::ok;
}

}  // namespace mvit
