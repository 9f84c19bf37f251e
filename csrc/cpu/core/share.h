// How a run of elements that have nothing to do with each other is cut.
#pragma once

#include "cpu/core/parallel.h"

namespace mvit {

// Runs body(first, count) on the parts of [0, count), one a thread; `bytes` are touched in all. Parts begin at multiples of 64 elements, so
// that no two threads write to one cache line.
template <class Body>
void share_run(int64_t count, int64_t bytes, int threads, const Body& body) {
    const int64_t blocks = (count + 63) / 64;
    parallel_region(threads_for(bytes, blocks, threads), [&](const Team& team) {
        team.share(blocks, [&](int64_t first, int64_t last) { body(64 * first, (64 * last < count ? 64 * last : count) - 64 * first); });
    });
}

}  // namespace mvit
