#include "cpu/ops/qwinograd.h"

#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_INTEGER_TABLE(QWinogradKernels, qwinograd)

namespace {

constexpr int64_t most_tiles = 36, fewest_tiles = 6, whole_tiles = 6;  // of a block; what register tiles divide
constexpr int64_t most_bytes = 512 * 1024;                             // of its matrices: a part of the second cache
constexpr int64_t largest_sum = 1 << 18;                               // of |w|: see ops/qwinograd.h

void run(const QConv2dProblem& p, int threads) {
    const QWinogradKernels& kernels = qwinograd_table.active();
    const int64_t tiles = p.batch * qwinograd_tiles(p.height) * qwinograd_tiles(p.width), all = qpanels(p.weight.columns);
    const int64_t fitting = most_bytes / (qtile_positions * (qwinograd_pairs(p) * 4 + qgroup * qpanel * 4));
    const int64_t most = fitting < fewest_tiles ? fewest_tiles : fitting < most_tiles ? fitting / whole_tiles * whole_tiles : most_tiles;
    const int64_t needed = (tiles + most - 1) / most, wanted = needed == 1 ? 1 : round_up(needed, threads);
    const int64_t even = (tiles + wanted - 1) / wanted, height = even < fewest_tiles ? fewest_tiles : even;
    const int64_t blocks = (tiles + height - 1) / height;
    // Few blocks: each thread has a part of the columns, and transforms the input for itself.
    const int64_t pieces = blocks >= threads ? 1 : (threads + blocks - 1) / blocks, groups = (all + pieces - 1) / pieces;
    const int64_t ranges = (all + groups - 1) / groups;
    parallel_tasks(blocks * ranges, tiles * 16 * p.weight.depth * all * qpanel / 64,
                   qwinograd_scratch(p, height) / int64_t{sizeof(float)} + 1, threads, [&](int64_t task, float* scratch) {
                       const int64_t first = task / ranges * height, begin = task % ranges * groups;
                       const int64_t end = begin + groups < all ? begin + groups : all;
                       kernels.block({&p, first, tiles - first < height ? tiles - first : height, begin, end, scratch});
                   });
}

}  // namespace

Status check_qwinograd(const QConv2dProblem& p) {
    const int64_t fewest = qwinograd_table.active().fewest_channels;
    if (p.kernel != 3 || p.stride != 1 || !p.filtered) return Status::bad_shape;
    if (p.x.channels < fewest || (p.second.channels > 0 && p.second.channels < fewest)) return Status::bad_shape;
    return p.weight.largest < largest_sum ? Status::ok : Status::overflow;
}

Status qwinograd(const QConv2dProblem& p, int threads) {
    return caught([&] { run(p, threads > 0 ? threads : 1); });
}

}  // namespace mvit
