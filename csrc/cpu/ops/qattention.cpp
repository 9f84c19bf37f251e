#include "cpu/ops/qattention.h"

#include "cpu/core/attention_scratch.h"
#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_INTEGER_TABLE(QAttentionKernels, qattention)

namespace {

// The largest |q - zero_point| of a byte q.
int64_t farthest(int64_t zero_point) { return zero_point > 127 ? zero_point : 255 - zero_point; }

Status check(const QAttentionProblem& p) {
    if (p.batch < 0 || p.queries < 0 || p.keys < 0 || p.depth < 0 || p.value_depth < 0 || p.heads < 1) return Status::bad_shape;
    if (p.heads > qattention_most_heads && (p.mix || p.mix_weights)) return Status::bad_shape;
    if (p.bias && p.bias_stride != round_up(p.queries, panel)) return Status::bad_layout;
    if (p.shift && !p.mix_weights) return Status::bad_layout;
    constexpr int64_t exact = (1 << 24) - 1;
    if (!writable(p.q_zero_point) || !writable(p.k_zero_point) || !writable(p.v_zero_point)) return Status::overflow;
    if (p.depth * farthest(p.q_zero_point) > exact / farthest(p.k_zero_point)) return Status::overflow;
    if (qattention_block(p.keys) * 255 * farthest(p.v_zero_point) > exact) return Status::overflow;
    if (p.keys > exact / 255 || p.keys * 255 * farthest(p.v_zero_point) > INT32_MAX) return Status::overflow;
    return writable(p.out.zero_point) ? Status::ok : Status::overflow;
}

QAttentionScratch layout_of(const QAttentionProblem& p, int64_t heads) {
    const int64_t channels = round_up(p.depth, 16), value_channels = round_up(p.value_depth, 16);
    QAttentionScratch s{};
    Places place;
    s.key_stride = key_row_stride(channels);
    const int64_t block = qattention_block(p.keys);
    s.value_stride = scratch_stride(block);
    s.query = place(panel * channels);
    s.scores = place(heads * p.keys * panel);
    s.keys = place(block * s.key_stride);
    s.values = place(value_channels * s.value_stride);
    s.result = place(panel * value_channels);
    s.sums = place(panel * value_channels);
    s.factors = place(heads * panel);
    s.table = place(256);
    s.zeros = place(panel);
    s.size = place.size;
    return s;
}

void run(const QAttentionProblem& p, int threads) {
    const auto kernel = qattention_table.active().run;
    const int64_t together = p.mix || p.mix_weights ? p.heads : 1, groups = p.heads / together, pieces = panels(p.queries);
    const QAttentionScratch layout = layout_of(p, together);
    const int64_t bytes = p.batch * p.heads * p.queries * p.keys * (p.depth + p.value_depth + 64) / 8;  // of a copy that takes as long
    parallel_tasks(p.batch * groups * pieces, bytes, layout.size, threads, [&](int64_t index, float* scratch) {
        QAttentionTask task{};
        task.problem = &p, task.scratch = scratch, task.layout = &layout;
        task.image = index / pieces / groups, task.first_head = index / pieces % groups * together;
        task.last_head = task.first_head + together;
        task.begin = index % pieces * panel, task.end = at_most(task.begin + panel, p.queries);
        kernel(task);
    });
}

}  // namespace

Status qattention(const QAttentionProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch * p.queries * p.value_depth == 0) return Status::ok;
    if (p.keys == 0) return Status::bad_shape;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
