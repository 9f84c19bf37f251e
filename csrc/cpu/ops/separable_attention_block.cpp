#include "cpu/ops/separable_attention_block.h"

#include <atomic>

#include "cpu/core/borrowed.h"
#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"
#include "cpu/ops/row_moments.h"

namespace mvit {

MVIT_FLOAT_TABLE(SeparableAttentionBlockKernels, separable_attention_block)

namespace {

using Problem = SeparableAttentionBlockProblem;

Status check(const Problem& p) {
    if (p.batch < 0 || p.dim < 0 || p.height < 0 || p.width < 0 || p.patch_h < 1 || p.patch_w < 1) return Status::bad_shape;
    if (p.height % p.patch_h != 0 || p.width % p.patch_w != 0) return Status::bad_shape;
    return known(p.dtype) ? Status::ok : Status::bad_dtype;
}

// Of the two products, as bytes of a copy that takes as long.
int64_t work(const Problem& p, int64_t images) { return images * p.height * p.width * p.dim * p.dim / 4; }

int64_t at_most(int64_t left, int64_t piece) { return left < piece ? left : piece; }

// Step by step, each by all threads.
void run_together(const Problem& p, int threads) {
    const SeparableAttentionBlockKernels& kernels = separable_attention_block_table.active();
    const int code = static_cast<int>(p.dtype);
    const int64_t positions = p.height * p.width, phases = p.patch_h * p.patch_w, row_bytes = p.dim * element_size(p.dtype);
    const int64_t stride = scratch_stride(p.dim), width = round_up(p.dim, panel);
    const auto row = [&](const void* data, int64_t image, int64_t position) {
        return const_cast<char*>(static_cast<const char*>(data)) + (image * positions + position) * row_bytes;
    };

    const Borrowed<Moments> own(p.moments ? 0 : p.batch);
    const Moments* moments = p.moments;
    if (!moments) {
        row_moments(p.dtype, p.x, p.batch, positions, p.dim, own.data(), threads);
        moments = own.data();
    }

    const int64_t patches = positions / phases, a_block = patches_a_block(phases), blocks = (patches + a_block - 1) / a_block;
    const Borrowed<Partial> partials(p.batch * blocks * phases);
    const Borrowed<float> sums(p.batch * blocks * phases * stride);
    parallel_tasks(p.batch * blocks, p.batch * positions * row_bytes, score_scratch(phases), threads, [&](int64_t task, float* scratch) {
        const int64_t image = task / blocks, first = task % blocks * a_block;
        kernels.scores[code]({row_source(row(p.x, image, 0), p.dim, p.dim, moments + image, p.eps), first,
                              at_most(patches - first, a_block), p.width, p.patch_h, p.patch_w, p.query, partials.data() + task * phases,
                              sums.data() + task * phases * stride, scratch});
    });

    const Borrowed<float> contexts(p.batch * phases * width);
    const int64_t ranges = at_most(panels(p.dim), 4), share = (panels(p.dim) + ranges - 1) / ranges;
    parallel_tasks(p.batch * ranges, p.batch * p.dim * p.dim * 4, phases * stride, threads, [&](int64_t task, float* scratch) {
        const int64_t image = task / ranges, begin = at_most(task % ranges * share, panels(p.dim));
        const RowSource source = row_source(nullptr, 0, 0, moments + image, p.eps);
        kernels.context({p.dim, phases, blocks, begin, at_most(begin + share, panels(p.dim)), source.mean.low, source.scale,
                         partials.data() + image * blocks * phases, sums.data() + image * blocks * phases * stride, p.key_weight,
                         p.key_bias, contexts.data() + image * phases * width, scratch});
    });

    const Cut cut = cut_rows(p.batch, positions, threads);
    const Borrowed<Statistics> tiles(p.collected ? p.batch * cut.tiles() : 0);
    parallel_tasks(cut.tasks(), work(p, p.batch), value_scratch(cut.height, p.dim), threads, [&](int64_t task, float* scratch) {
        const int64_t image = cut.group(task), first = cut.first(task);
        void* y = row(p.y, image, first);
        kernels.values[code]({row_source(row(p.x, image, first), p.dim, p.dim, moments + image, p.eps), first, cut.count(task), p.width,
                              p.patch_h, p.patch_w, p.value_weight, p.value_bias, p.out_weight, p.out_bias,
                              contexts.data() + image * phases * width, y, scratch});
        if (p.collected) gather_statistics(p.dtype, y, cut, task, p.dim, tiles.data());
    });
    if (p.collected) combine_groups(tiles.data(), cut, p.collected);
}

Problem images(const Problem& p, int64_t first, int64_t count) {
    const int64_t bytes = first * p.height * p.width * p.dim * element_size(p.dtype);
    Problem part = p;
    part.batch = count;
    part.x = static_cast<const char*>(p.x) + bytes;
    part.y = static_cast<char*>(p.y) + bytes;
    if (p.moments) part.moments = p.moments + first;
    if (p.collected) part.collected = p.collected + first;
    return part;
}

// As many images as all threads get equally many of go to one thread each, which finds them in its own cache after the first step and waits
// for nobody; the rest are shared. Not with weights of which that cache holds only two: step by step, the third is read once and is gone.
void run(const Problem& p, int threads) {
    const bool small = 3 * p.dim * p.dim * 4 <= 1024 * 1024;
    const int64_t team = threads > 1 ? threads : 1, alone = small ? p.batch / team * team : 0;
    std::atomic<bool> no_memory{false};
    parallel_for(alone, threads_for(work(p, alone), alone, threads), [&](int64_t image) {
        if (caught([&] { run_together(images(p, image, 1), 1); }) != Status::ok) no_memory.store(true, std::memory_order_relaxed);
    });
    if (no_memory.load()) throw std::bad_alloc();
    if (alone < p.batch) run_together(images(p, alone, p.batch - alone), threads);
}

}  // namespace

Status separable_attention_block(const Problem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.dim == 0 || p.height == 0 || p.width == 0) return Status::ok;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
