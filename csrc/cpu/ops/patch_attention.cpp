#include "cpu/ops/patch_attention.h"

#include <atomic>
#include <numbers>

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_FLOAT_TABLE(PatchAttentionKernels, patch_attention)

namespace {

Status check(const PatchAttentionProblem& p) {
    if (p.batch < 0 || p.dim < 0 || p.height < 0 || p.width < 0) return Status::bad_shape;
    if (p.heads < 1 || p.dim % p.heads != 0 || p.patch_h < 1 || p.patch_w < 1) return Status::bad_shape;
    if (p.height % p.patch_h != 0 || p.width % p.patch_w != 0) return Status::bad_shape;
    if (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) return Status::bad_dtype;
    return Status::ok;
}

PatchAttentionBackwardScratch backward_layout_of(int64_t depth, int64_t pixels) {
    const int64_t block = at_most(pixels, patch_attention_backward_keys), all = panels(pixels) * panel;
    PatchAttentionBackwardScratch s{};
    Places place;
    s.channels = round_up(depth, 16);
    s.key_stride = key_row_stride(s.channels);
    s.value_stride = scratch_stride(block);
    s.row_stride = scratch_stride(depth);
    s.queries = place(all * s.channels);
    s.dys = place(all * s.channels);
    s.query_rows = place(all * panels(depth) * panel);
    s.dy_rows = place(all * panels(depth) * panel);
    s.dqueries = place(all * s.channels);
    s.scores = place(block * panel);
    s.dp = place(block * panel);
    s.keys = place(block * s.key_stride);
    s.values = place(block * s.key_stride);
    s.keys_across = place(s.channels * s.value_stride);
    s.dkeys = place(block * s.row_stride);
    s.dvalues = place(block * s.row_stride);
    s.tops = place(all);
    s.sums = place(all);
    s.means = place(all);
    s.times = place(panel);
    s.zeros = place(panel);
    s.size = place.size;
    return s;
}

struct Geometry {
    int64_t columns, pixels, phases, sequences, depth;  // of a phase; of an image; in all; of a head
};

Geometry geometry_of(const PatchAttentionProblem& p) {
    const int64_t columns = p.width / p.patch_w, phases = p.patch_h * p.patch_w;
    return {columns, p.height / p.patch_h * columns, phases, p.batch * phases * p.heads, p.dim / p.heads};
}

bool is_empty(const PatchAttentionProblem& p) { return p.batch == 0 || p.dim == 0 || p.height == 0 || p.width == 0; }

// Runs the kernel on `queries` queries after another of every phase and head; products: of N^2 c.
template <class Layouts>
Status run(const PatchAttentionProblem& p, const Geometry& g, void (*kernel)(const PatchAttentionTask&), int64_t queries, int64_t products,
           int64_t scratch, const Layouts& layouts, int threads) {
    const int64_t element = p.dtype == DType::f32 ? 4 : 2, pieces = (g.pixels + queries - 1) / queries, tasks = g.sequences * pieces;
    const int64_t bytes = products * g.sequences * g.pixels * (g.pixels + 32) * g.depth / 8;  // of a copy that takes about as long
    std::atomic<bool> no_memory{false};
    parallel_for(tasks, threads_for(bytes, tasks, threads), [&](int64_t index) {
        const int64_t piece = index % pieces, head = index / pieces % p.heads;
        const int64_t phase = index / pieces / p.heads % g.phases, image = index / pieces / p.heads / g.phases;
        PatchAttentionTask task{};
        task.scratch = thread_scratch().floats(scratch);
        if (!task.scratch) {
            no_memory.store(true, std::memory_order_relaxed);
            return;
        }
        const auto start = [&](const void* data, const int64_t* stride, int64_t part) {
            const int64_t pixel = image * stride[0] + phase / p.patch_w * stride[1] + phase % p.patch_w * stride[2];
            return data ? static_cast<char*>(const_cast<void*>(data)) + (pixel + part * p.dim + head * g.depth) * element : nullptr;
        };
        task.q = start(p.qkv, p.qkv_stride, 0), task.k = start(p.qkv, p.qkv_stride, 1), task.v = start(p.qkv, p.qkv_stride, 2);
        task.y = start(p.y, p.y_stride, 0);
        task.dq = start(p.dqkv, p.dqkv_stride, 0), task.dk = start(p.dqkv, p.dqkv_stride, 1), task.dv = start(p.dqkv, p.dqkv_stride, 2);
        task.qkv_row = p.patch_h * p.qkv_stride[1], task.qkv_column = p.patch_w * p.qkv_stride[2];
        task.y_row = p.patch_h * p.y_stride[1], task.y_column = p.patch_w * p.y_stride[2];
        task.dqkv_row = p.patch_h * p.dqkv_stride[1], task.dqkv_column = p.patch_w * p.dqkv_stride[2];
        task.columns = g.columns, task.pixels = g.pixels, task.depth = g.depth;
        task.begin = piece * queries, task.end = at_most(task.begin + queries, g.pixels);
        task.scale = static_cast<float>(static_cast<double>(p.scale) * std::numbers::log2e), task.dscale = p.scale;
        layouts(task);
        kernel(task);
    });
    return no_memory.load() ? Status::out_of_memory : Status::ok;
}

}  // namespace

Status patch_attention(const PatchAttentionProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (is_empty(p)) return Status::ok;
    const Geometry g = geometry_of(p);
    const int64_t queries = queries_a_task(g.sequences, g.pixels);
    const AttentionScratch layout = attention_scratch(g.depth, g.depth, g.pixels, queries);
    const auto kernel = patch_attention_table.active().forward[static_cast<int>(p.dtype)];
    return run(p, g, kernel, queries, 2, layout.size, [&](PatchAttentionTask& task) { task.layout = &layout; }, threads);
}

Status patch_attention_backward(const PatchAttentionProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (is_empty(p)) return Status::ok;
    const Geometry g = geometry_of(p);
    const PatchAttentionBackwardScratch layout = backward_layout_of(g.depth, g.pixels);
    const auto kernel = patch_attention_table.active().backward[static_cast<int>(p.dtype)];
    // dk and dv sum over all queries, so a phase and head is one task.
    return run(p, g, kernel, g.pixels, 5, layout.size, [&](PatchAttentionTask& task) { task.backward_layout = &layout; }, threads);
}

}  // namespace mvit
