#include "cpu/ops/qpatch_attention.h"

#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_INTEGER_TABLE(QPatchAttentionKernels, qpatch_attention)

namespace {

constexpr int64_t tasks_wanted = 16;   // few phases and heads: the queries are cut too
constexpr int64_t most_queries = 768;  // of a task; keys and values are packed once for all of them
constexpr int64_t least_queries = 48;

int64_t farther_end(int64_t zero_point) {
    const int64_t above = 255 - zero_point, size = zero_point < 0 ? -zero_point : zero_point;
    return above > size ? above : size;
}

Status check(const QPatchAttentionProblem& p) {
    if (p.batch < 0 || p.dim < 0 || p.height < 0 || p.width < 0) return Status::bad_shape;
    if (p.heads < 1 || p.dim % p.heads != 0 || p.patch_h < 1 || p.patch_w < 1) return Status::bad_shape;
    if (p.height % p.patch_h != 0 || p.width % p.patch_w != 0) return Status::bad_shape;
    const int64_t pixels = p.height / p.patch_h * (p.width / p.patch_w), depth = p.dim / p.heads;
    // Zero-points beyond 2^20 are refused elsewhere and below alike: nothing here exceeds 64 bits.
    const auto fits = [](int64_t terms, int64_t zero_point) {
        return writable(static_cast<int32_t>(zero_point)) && terms < int64_t{1} << 24 && terms * 255 * farther_end(zero_point) < INT32_MAX;
    };
    if (!fits(depth, p.q_zero_point) || !fits(pixels, p.v_zero_point) || p.table[0] == 0) return Status::overflow;
    return Status::ok;
}

int64_t queries_a_task(int64_t sequences, int64_t pixels) {
    const int64_t fewest = (tasks_wanted + sequences - 1) / sequences, most = (pixels + least_queries - 1) / least_queries;
    const int64_t pieces = (pixels + most_queries - 1) / most_queries, enough = fewest < most ? fewest : most;
    const int64_t wanted = pieces > enough ? pieces : enough;
    return (pixels + wanted - 1) / wanted;
}

}  // namespace

Status qpatch_attention(const QPatchAttentionProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.dim == 0 || p.height == 0 || p.width == 0) return Status::ok;
    const int64_t columns = p.width / p.patch_w, pixels = p.height / p.patch_h * columns, depth = p.dim / p.heads;
    const int64_t phases = p.patch_h * p.patch_w, sequences = p.batch * phases * p.heads;
    const int64_t queries = queries_a_task(sequences, pixels), pieces = (pixels + queries - 1) / queries;
    const QPatchAttentionKernels& kernels = qpatch_attention_table.active();
    const int64_t scratch = (kernels.scratch(pixels, depth) + 3) / 4;
    const int64_t bytes = sequences * pixels * (pixels + 64) * depth / 12;  // of a copy that takes about as long
    return caught([&] {
        parallel_tasks(sequences * pieces, bytes, scratch, threads, [&](int64_t index, float* memory) {
            const int64_t piece = index % pieces, head = index / pieces % p.heads;
            const int64_t phase = index / pieces / p.heads % phases, image = index / pieces / p.heads / phases;
            const auto start = [&](auto* data, const int64_t* stride) {
                return data + image * stride[0] + phase / p.patch_w * stride[1] + phase % p.patch_w * stride[2] + head * depth;
            };
            QPatchAttentionTask task{};
            task.problem = &p;
            task.q = start(p.qkv, p.qkv_stride), task.k = task.q + p.dim, task.v = task.k + p.dim;
            task.y = start(p.y, p.y_stride);
            task.qkv_row = p.patch_h * p.qkv_stride[1], task.qkv_column = p.patch_w * p.qkv_stride[2];
            task.y_row = p.patch_h * p.y_stride[1], task.y_column = p.patch_w * p.y_stride[2];
            task.columns = columns, task.pixels = pixels, task.depth = depth;
            task.begin = piece * queries, task.end = task.begin + queries < pixels ? task.begin + queries : pixels;
            task.scratch = memory;
            kernels.attend(task);
        });
    });
}

}  // namespace mvit
