#include "cpu/ops/separable_attention.h"

#include <atomic>

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_FLOAT_TABLE(SeparableAttentionKernels, separable_attention)

namespace {

// Where the sequences of an image start and how each is walked; see Tensor4 for the two shapes.
struct Geometry {
    bool channels_last;
    int64_t outer, inner;   // sequences of an image
    int64_t rows, columns;  // positions of one
    int phases;             // interleaved along its columns
};

struct Walk {
    int64_t outer, inner;  // strides from sequence to sequence
    Strides position;
};

constexpr int64_t channels_a_task = 64;  // enough to make up for computing the softmax once a task

// Leaves no rows where there is nothing to do.
Status geometry_of(const SeparableAttentionProblem& p, bool backward, Geometry* out) {
    const bool map = p.patch_h > 0;
    const int64_t height = p.size[0], width = p.size[1];
    if (p.batch < 0 || p.dim < 0 || height < 0 || width < 0 || p.patch_h < 0 || p.patch_w < 0 || map != (p.patch_w > 0))
        return Status::bad_shape;
    if (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) return Status::bad_dtype;
    if (p.batch == 0 || height == 0 || width == 0 || (p.dim == 0 && !backward)) {
        *out = {};
        return Status::ok;
    }
    if (map && (height % p.patch_h != 0 || width % p.patch_w != 0)) return Status::bad_shape;

    // The stride of an axis of one element says nothing. An axis of none (y, where dim is 0) is never walked.
    const Tensor4* tensors[] = {&p.qkv, &p.y, &p.dqkv};
    const int64_t channels[] = {1 + 2 * p.dim, p.dim, 1 + 2 * p.dim};
    bool first = true, last = true;
    for (int i = 0; i < (backward ? 3 : 2); ++i) {
        if (channels[i] == 0) continue;
        first = first && (tensors[i]->stride[3] == 1 || width == 1);
        last = last && (tensors[i]->stride[1] == 1 || channels[i] == 1);
    }
    first = first && (p.patch_w <= 2 || p.patch_w == 4 || p.patch_w == 8);
    if (!first && !last) return Status::bad_layout;

    if (!map) {
        *out = {!first, 1, height, 1, width, 1};
    } else if (first) {
        *out = {false, 1, p.patch_h, height / p.patch_h, width, static_cast<int>(p.patch_w)};
    } else {
        *out = {true, p.patch_h, p.patch_w, height / p.patch_h, width / p.patch_w, 1};
    }
    return Status::ok;
}

Walk walk_of(const Tensor4& t, const SeparableAttentionProblem& p, const Geometry& geometry) {
    if (p.patch_h == 0) return {0, t.stride[2], {t.stride[1], 0, t.stride[3]}};
    const int64_t row = p.patch_h * t.stride[2];
    if (!geometry.channels_last) return {0, t.stride[2], {t.stride[1], row, 1}};
    return {t.stride[2], t.stride[3], {1, row, p.patch_w * t.stride[3]}};
}

void* at(const Tensor4& t, DType dtype, int64_t element) {
    return t.data ? static_cast<char*>(t.data) + element * (dtype == DType::f32 ? 4 : 2) : nullptr;
}

template <class Kernel>
Status run(const SeparableAttentionProblem& p, const Geometry& geometry, Kernel kernel, int64_t blocks, int threads) {
    const Walk qkv = walk_of(p.qkv, p, geometry), y = walk_of(p.y, p, geometry), dqkv = walk_of(p.dqkv, p, geometry);
    const int64_t sequences = geometry.outer * geometry.inner;
    const int64_t channels_per_block = (p.dim + blocks - 1) / blocks;
    const int64_t tasks = p.batch * sequences * blocks;
    const int64_t bytes = p.batch * p.size[0] * p.size[1] * (1 + 3 * p.dim) * (p.dtype == DType::f32 ? 4 : 2);
    const int64_t scratch = separable_attention_scratch(p.dim, geometry.rows, geometry.columns);
    std::atomic<bool> no_memory{false};
    parallel_for(tasks, threads_for(bytes, tasks, threads), [&](int64_t task) {
        const int64_t block = task % blocks, sequence = task / blocks % sequences, image = task / blocks / sequences;
        const int64_t outer = sequence / geometry.inner, inner = sequence % geometry.inner;
        const auto start = [&](const Tensor4& t, const Walk& walk) {
            return at(t, p.dtype, image * t.stride[0] + outer * walk.outer + inner * walk.inner);
        };
        const int64_t begin = block * channels_per_block, end = begin + channels_per_block;
        float* buffer = thread_scratch().floats(scratch);
        if (!buffer) {
            no_memory.store(true, std::memory_order_relaxed);
            return;
        }
        kernel(SeparableAttentionSequence{start(p.qkv, qkv), start(p.y, y), start(p.dqkv, dqkv), p.dim, geometry.rows, geometry.columns,
                                          geometry.phases, qkv.position, y.position, dqkv.position, begin, end < p.dim ? end : p.dim,
                                          buffer});
    });
    return no_memory.load() ? Status::out_of_memory : Status::ok;
}

}  // namespace

Status separable_attention(const SeparableAttentionProblem& p, int threads) {
    Geometry geometry;
    if (const Status status = geometry_of(p, false, &geometry); status != Status::ok) return status;
    if (geometry.rows == 0) return Status::ok;
    const SeparableAttentionKernels& kernels = separable_attention_table.active();
    const auto& kernel = geometry.channels_last ? kernels.forward_channels_last : kernels.forward_channels_first;
    return run(p, geometry, kernel[static_cast<int>(p.dtype)], (p.dim + channels_a_task - 1) / channels_a_task, threads);
}

Status separable_attention_backward(const SeparableAttentionProblem& p, int threads) {
    Geometry geometry;
    if (const Status status = geometry_of(p, true, &geometry); status != Status::ok) return status;
    if (geometry.rows == 0) return Status::ok;
    const SeparableAttentionKernels& kernels = separable_attention_table.active();
    const auto& kernel = geometry.channels_last ? kernels.backward_channels_last : kernels.backward_channels_first;
    // dq sums over all channels, so a sequence is one task.
    return run(p, geometry, kernel[static_cast<int>(p.dtype)], 1, threads);
}

}  // namespace mvit
