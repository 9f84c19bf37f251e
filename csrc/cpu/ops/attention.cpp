#include "cpu/ops/attention.h"

#include <numbers>

#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_FLOAT_TABLE(AttentionKernels, attention)

namespace {

Status check(const AttentionProblem& p) {
    if (p.batch < 0 || p.queries < 0 || p.keys < 0 || p.depth < 0 || p.value_depth < 0 || p.heads < 1) return Status::bad_shape;
    if (p.bias && p.bias_stride != round_up(p.queries, panel)) return Status::bad_layout;
    if (p.mix_bias && !p.mix_weights) return Status::bad_layout;
    if ((p.mix_scores || p.mix_weights) && p.heads > most_mixed_heads) return Status::bad_shape;
    if (p.keys == 0 && p.batch * p.queries * p.value_depth > 0) return Status::bad_shape;
    return known(p.dtype) ? Status::ok : Status::bad_dtype;
}

MixedScratch mixed_scratch(const AttentionProblem& p) {
    MixedScratch s{};
    Places place;
    s.channels = round_up(p.depth, 16);
    s.value_channels = round_up(p.value_depth, 16);
    s.key_stride = key_row_stride(s.channels);
    s.value_stride = scratch_stride(p.keys);
    s.query = place(panel * s.channels);
    s.scores = place(p.heads * p.keys * panel);
    s.keys = place(p.keys * s.key_stride);
    s.values = place(s.value_channels * s.value_stride);
    s.result = place(panel * s.value_channels);
    s.shares = place(p.heads * panel);
    s.ones = place(panel);
    s.zeros = place(panel);
    s.size = place.size;
    return s;
}

void run(const AttentionProblem& p, int threads) {
    const AttentionKernels& kernels = attention_table.active();
    const auto dtype = static_cast<int>(p.dtype);
    // Of a copy that takes about as long.
    const int64_t bytes = p.batch * p.heads * p.queries * p.keys * (p.depth + p.value_depth + 64) / 8;
    AttentionTask all{};
    all.problem = &p;
    all.scale = static_cast<float>(static_cast<double>(p.scale) * std::numbers::log2e);
    if (p.mix_scores || p.mix_weights) {
        const MixedScratch layout = mixed_scratch(p);
        const int64_t pieces = panels(p.queries);
        parallel_tasks(p.batch * pieces, bytes, layout.size, threads, [&](int64_t index, float* scratch) {
            AttentionTask task = all;
            task.image = index / pieces, task.begin = index % pieces * panel, task.end = at_most(task.begin + panel, p.queries);
            task.scratch = scratch, task.mixed = &layout;
            kernels.mixed[dtype](task);
        });
        return;
    }
    const int64_t queries = queries_a_task(p.batch * p.heads, p.queries), pieces = (p.queries + queries - 1) / queries;
    const AttentionScratch layout = attention_scratch(p.depth, p.value_depth, p.keys, at_most(queries, p.queries));
    parallel_tasks(p.batch * p.heads * pieces, bytes, layout.size, threads, [&](int64_t index, float* scratch) {
        AttentionTask task = all;
        task.image = index / pieces / p.heads, task.head = index / pieces % p.heads;
        task.begin = index % pieces * queries, task.end = at_most(task.begin + queries, p.queries);
        task.scratch = scratch, task.layout = &layout;
        kernels.alone[dtype](task);
    });
}

}  // namespace

Status attention(const AttentionProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch * p.queries * p.value_depth == 0) return Status::ok;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
