// How a run of elements that have nothing to do with each other is cut.
#pragma once

#include "cpu/core/parallel.h"

namespace mvit {

// Runs body(first, count) on the parts of [0, count), one a thread, or a few where threads of a crew may come late; `bytes` are touched in
// all. Parts begin at multiples of 64 elements, so that no two threads write to one cache line.
template <class Body>
void share_run(int64_t count, int64_t bytes, int threads, const Body& body) {
    const int64_t blocks = (count + 63) / 64;
    const int64_t some = threads_for(bytes, blocks, threads), parts = Crew::led() ? 4 * some : some;
    parallel_for(parts, static_cast<int>(some), [&](int64_t part) {
        const int64_t first = 64 * (blocks * part / parts), last = 64 * (blocks * (part + 1) / parts);
        if (first < last) body(first, (last < count ? last : count) - first);
    });
}

}  // namespace mvit
