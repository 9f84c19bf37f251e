// A block of a GPU's threads on the processor: what cuda/primitives/ declares where nvcc does not compile it. Kernels run here as they are
// written, so that their addresses, predicates and the order of their copies and barriers are tested without a GPU.
//
// Threads are fibers that take turns: each runs until it waits for its warp or its block. What does not depend on the order is right; so
// every block runs in several orders, and copies to shared memory happen at once or as late as a wait allows: a barrier that is missing
// shows as a result that changes, a wait that is missing as poison. A place that is overwritten too early shows where copies happen at
// once. Built with ThreadSanitizer, every read or write that a barrier should have ordered is found, whether it shows in a result or not
// (races.h).
//
// What a warp's instructions compute is written here from the PTX ISA, not from the maps that kernels use. The speed of a GPU, its compiler
// and whatever the PTX ISA leaves open are not tested by this.
#pragma once

#include <cstdint>
#include <functional>

namespace mvit::tests {

// forward, backward: a warp goes as far as it can before the next one, or the one before it, has its turn.
struct BlockOrder {
    enum Turns { forward, backward, shuffled } turns;
    bool late_copies;
};

inline constexpr BlockOrder block_orders[] = {
    {BlockOrder::forward, true}, {BlockOrder::backward, false}, {BlockOrder::shuffled, true}, {BlockOrder::shuffled, false}};

// kernel() in each of `threads` threads of the block (x, y).
void run_block(int threads, int64_t x, int y, const BlockOrder& order, const std::function<void()>& kernel);

// Of each of the blocks (x, 0), (x + 1, 0), .. of a cluster.
void run_cluster(int blocks, int threads, int64_t x, const BlockOrder& order, const std::function<void()>& kernel);

}  // namespace mvit::tests
