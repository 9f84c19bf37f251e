#include "cpu/ops/winograd.h"

#include <atomic>

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_FLOAT_TABLE(WinogradKernels, winograd)

namespace {

constexpr int64_t most_tiles = 64;                 // enough for the weights to be worth loading
constexpr int64_t transformed_bytes = 256 * 1024;  // of a block: a part of the second cache
constexpr int64_t tasks_wanted = 4;                // few tiles: the columns are cut too, though each range transforms the input anew

}  // namespace

Status winograd(const Conv2dProblem& p, int threads) {
    const auto kernel = winograd_table.active().block[static_cast<int>(p.dtype)];
    const int64_t channels = p.x.channels + p.second.channels, tiles = p.batch * ((p.height + 1) / 2) * ((p.width + 1) / 2);
    const EvenCut cut = cut_evenly(tiles, 16 * scratch_stride(channels) * int64_t{sizeof(float)}, transformed_bytes, most_tiles);
    const int64_t halves = (p.columns + half_panel - 1) / half_panel, pieces = ranges_of(halves, cut.blocks, tasks_wanted);
    const int64_t bytes = 2 * tiles * channels * p.columns;  // of a copy that takes about as long

    std::atomic<bool> no_memory{false};
    parallel_for(cut.blocks * pieces, threads_for(bytes, cut.blocks * pieces, threads), [&](int64_t task) {
        const int64_t piece = task % pieces, first = task / pieces * cut.height;
        const int64_t some = tiles - first < cut.height ? tiles - first : cut.height;
        if (float* scratch = thread_scratch().floats(winograd_scratch(some, channels))) {
            kernel({first, some, halves * piece / pieces, halves * (piece + 1) / pieces, scratch, p});
        } else {
            no_memory.store(true, std::memory_order_relaxed);
        }
    });
    return no_memory.load() ? Status::out_of_memory : Status::ok;
}

}  // namespace mvit
