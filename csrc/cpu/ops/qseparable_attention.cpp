#include "cpu/ops/qseparable_attention.h"

#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_INTEGER_TABLE(QSeparableAttentionKernels, qseparable_attention)

namespace {

constexpr int64_t channels_a_task = 128;        // enough to make up for computing the exponentials once a task
constexpr int64_t bytes_of_a_task = 32 * 1024;  // a few microseconds

bool empty(const QPhases& s) { return s.batch == 0 || s.dim == 0 || s.height == 0 || s.width == 0; }

Status check(const QPhases& s) {
    if (s.batch < 0 || s.dim < 0 || s.height < 0 || s.width < 0 || s.patch_h < 1 || s.patch_w < 1) return Status::bad_shape;
    if (s.height % s.patch_h != 0 || s.width % s.patch_w != 0) return Status::bad_shape;
    return Status::ok;
}

// 2^16 keeps 256 terms of e x in 32 bits; a sum of at least 1 can be divided by.
bool good_table(const int32_t* table) {
    for (int i = 0; i < 256; ++i)
        if (table[i] < 0 || table[i] > 1 << 16) return false;
    return table[0] > 0;
}

}  // namespace

Status qseparable_context(const QSeparableContextProblem& p, int threads) {
    const QPhases& s = p.size;
    if (const Status status = check(s); status != Status::ok) return status;
    if (!good_table(p.table)) return Status::overflow;
    if (empty(s)) return Status::ok;
    const int64_t blocks = (s.dim + channels_a_task - 1) / channels_a_task, tasks = s.batch * s.phases() * blocks;
    const int64_t scratch = s.height * s.width / s.phases() + 2 * 64;
    return caught([&] {
        parallel_tasks(tasks, s.batch * s.height * s.width * (s.dim + 1), scratch, threads, [&](int64_t task, float* scratch) {
            const int64_t begin = task % blocks * channels_a_task, end = begin + channels_a_task, phase = task / blocks % s.phases();
            qseparable_attention_table.active().context(p, task / blocks / s.phases(), phase, begin, end < s.dim ? end : s.dim, scratch);
        });
    });
}

Status qseparable_gate(const QSeparableGateProblem& p, int threads) {
    const QPhases& s = p.size;
    if (const Status status = check(s); status != Status::ok) return status;
    if (empty(s)) return Status::ok;
    const int64_t patch_bytes = 2 * s.patch_h * s.width * s.dim, height = (bytes_of_a_task / patch_bytes + 1) * s.patch_h;
    const int64_t blocks = (s.height + height - 1) / height, tasks = s.batch * blocks;
    return caught([&] {
        parallel_tasks(tasks, s.batch * s.height * s.width * s.dim * 2, s.phases() * s.dim, threads, [&](int64_t task, float* scratch) {
            const int64_t begin = task % blocks * height, end = begin + height;
            qseparable_attention_table.active().gate(p, task / blocks, begin, end < s.height ? end : s.height, scratch);
        });
    });
}

}  // namespace mvit
