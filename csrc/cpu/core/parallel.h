// Threads. Kernels of isa/ are serial; ops/ cuts the work into tasks. Whatever the cut, every value is the same chain of operations, so
// results are the same bits with any number of threads.
#pragma once

#include <cstdint>

#include "cpu/core/crew.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mvit {

// Below this many bytes touched, a second thread costs more than it saves: a fork and join is 2 to 5 us, an order to a crew 0.3.
inline constexpr int64_t bytes_worth_a_thread = 64 * 1024, bytes_worth_an_order = 8 * 1024;

// One thread or all of them: libgomp ends and starts threads whenever the size of the team changes from one region to the next.
inline int threads_for(int64_t bytes, int64_t tasks, int threads) {
    if (tasks <= 1 || threads <= 1 || bytes < 2 * bytes_worth_an_order) return 1;
    return bytes >= 2 * bytes_worth_a_thread || Crew::led() ? threads : 1;
}

// A thread of a parallel region with several phases: waiting for the others costs a fraction of leaving the region and entering the next.
struct Team {
    int index, size;

    // body(first, last) on this thread's run of [0, tasks).
    template <class Body>
    void share(int64_t tasks, const Body& body) const {
        const int64_t first = tasks * index / size, last = tasks * (index + 1) / size;
        if (first < last) body(first, last);
    }
    void wait() const {
#ifdef _OPENMP
        if (size > 1) {  // the leader of a crew, which is alone in such a region, must not wait for its followers
#pragma omp barrier
        }
#endif
    }
};

// Runs body(team) on every thread; of a crew, whose threads need not all come, on one, and in the child of a fork, too, where libgomp would
// wait for threads that are none of the child's.
template <class Body>
void parallel_region(int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && !Crew::led() && !Crew::in_child_of_fork()) {
#pragma omp parallel num_threads(threads)
        body(Team{omp_get_thread_num(), omp_get_num_threads()});
        return;
    }
#endif
    body(Team{0, 1});
}

// Runs body(task) for every task in [0, tasks).
template <class Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
    if (threads > 1) {
        if (Crew* crew = Crew::led()) return crew->deal(tasks, body);
        if (Crew::in_child_of_fork()) return Crew::with(threads, [&] { Crew::led()->deal(tasks, body); });
    }
    parallel_region(threads, [&](const Team& team) {
        team.share(tasks, [&](int64_t first, int64_t last) {
            for (int64_t task = first; task < last; ++task) body(task);
        });
    });
}

}  // namespace mvit
