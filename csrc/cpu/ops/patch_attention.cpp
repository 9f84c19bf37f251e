#include "cpu/ops/patch_attention.h"

#include <atomic>
#include <numbers>

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_ISA_TABLE(PatchAttentionKernels, patch_attention)

namespace {

constexpr int64_t tasks_wanted = 16;  // few phases and heads: the queries are cut too

Status check(const PatchAttentionProblem& p) {
    if (p.batch < 0 || p.dim < 0 || p.height < 0 || p.width < 0) return Status::bad_shape;
    if (p.heads < 1 || p.dim % p.heads != 0 || p.patch_h < 1 || p.patch_w < 1) return Status::bad_shape;
    if (p.height % p.patch_h != 0 || p.width % p.patch_w != 0) return Status::bad_shape;
    if (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) return Status::bad_dtype;
    return Status::ok;
}

// Whole panels a task, about equally many. A query has the same bits in any cut.
int64_t queries_a_task(int64_t sequences, int64_t pixels) {
    const int64_t count = panels(pixels), fewest = (tasks_wanted + sequences - 1) / sequences;
    const int64_t most = patch_attention_queries / panel, pieces = (count + most - 1) / most;
    const int64_t wanted = pieces > fewest ? pieces : fewest < count ? fewest : count;
    return (count + wanted - 1) / wanted * panel;
}

PatchAttentionScratch layout_of(int64_t depth, int64_t pixels, int64_t queries) {
    PatchAttentionScratch s{};
    const auto place = [&](int64_t floats) {
        const int64_t start = s.size;
        s.size += floats;
        return start;
    };
    const int64_t block = pixels < patch_attention_keys ? pixels : patch_attention_keys, count = panels(queries);
    s.channels = round_up(depth, 16);
    s.key_stride = s.channels % 512 == 0 ? s.channels + 16 : s.channels;  // see scratch_stride
    s.value_stride = scratch_stride(block);
    s.queries = place(count * s.channels * panel);
    s.results = place(count * s.channels * panel);
    s.part = place(s.channels * panel);
    s.scores = place(block * panel);
    s.keys = place(block * s.key_stride);
    s.values = place(s.channels * s.value_stride);
    s.state = place((2 * count + 1) * panel);
    s.zeros = place(panel);
    return s;
}

}  // namespace

Status patch_attention(const PatchAttentionProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.dim == 0 || p.height == 0 || p.width == 0) return Status::ok;
    const auto kernel = patch_attention_table.active().forward[static_cast<int>(p.dtype)];
    const int64_t element = p.dtype == DType::f32 ? 4 : 2, depth = p.dim / p.heads;
    const int64_t rows = p.height / p.patch_h, columns = p.width / p.patch_w, pixels = rows * columns;
    const int64_t phases = p.patch_h * p.patch_w, sequences = p.batch * phases * p.heads;
    const int64_t queries = queries_a_task(sequences, pixels), pieces = (pixels + queries - 1) / queries;
    const int64_t bytes = sequences * pixels * (pixels + 32) * depth / 4;  // of a copy that takes about as long
    const PatchAttentionScratch layout = layout_of(depth, pixels, queries);
    const float scale = static_cast<float>(static_cast<double>(p.scale) * std::numbers::log2e);
    std::atomic<bool> no_memory{false};
    const int64_t tasks = sequences * pieces;
    parallel_for(tasks, threads_for(bytes, tasks, threads), [&](int64_t task) {
        const int64_t piece = task % pieces, head = task / pieces % p.heads;
        const int64_t phase = task / pieces / p.heads % phases, image = task / pieces / p.heads / phases;
        const int64_t y = phase / p.patch_w, x = phase % p.patch_w;
        float* buffer = thread_scratch().floats(layout.size);
        if (!buffer) {
            no_memory.store(true, std::memory_order_relaxed);
            return;
        }
        const auto offset = [&](const int64_t* stride) { return image * stride[0] + y * stride[1] + x * stride[2] + head * depth; };
        const char* q = static_cast<const char*>(p.qkv) + offset(p.qkv_stride) * element;
        const int64_t begin = piece * queries, end = begin + queries < pixels ? begin + queries : pixels;
        kernel({q, q + p.dim * element, q + 2 * p.dim * element, static_cast<char*>(p.y) + offset(p.y_stride) * element,
                p.patch_h * p.qkv_stride[1], p.patch_w * p.qkv_stride[2], p.patch_h * p.y_stride[1], p.patch_w * p.y_stride[2], columns,
                pixels, depth, begin, end, scale, buffer, &layout});
    });
    return no_memory.load() ? Status::out_of_memory : Status::ok;
}

}  // namespace mvit
