#include "cpu/core/crew.h"

#include <numeric>
#include <vector>

#include "cpu/core/parallel.h"
#include "tests/check.h"

using namespace mvit;

// Runs work() with a crew of `threads`, as a plan does.
template <class Work>
static void with_crew(int threads, const Work& work) {
    Crew crew(threads);
#pragma omp parallel num_threads(threads)
    {
        if (omp_get_thread_num() > 0) {
            crew.follow(omp_get_thread_num());
        } else {
            crew.lead(work);
        }
    }
}

TEST(a_crew_shares_tasks) {
    for (int threads : {1, 2, 3, 5}) {
        with_crew(threads, [&] {
            for (int64_t tasks : {0, 1, 2, 7, 1000}) {
                std::vector<int> seen(static_cast<size_t>(tasks), 0);
                parallel_for(tasks, 2, [&](int64_t task) { ++seen[static_cast<size_t>(task)]; });
                for (int count : seen) CHECK(count == 1);
            }
        });
    }
}

TEST(a_crew_waits_between_phases) {
    for (int threads : {1, 2, 4}) {
        with_crew(threads, [&] {
            for (int round = 0; round < 200; ++round) {
                std::vector<int> first(64, 0), second(64, 0);
                parallel_region(2, [&](const Team& team) {
                    team.share(64, [&](int64_t begin, int64_t end) {
                        for (int64_t i = begin; i < end; ++i) first[static_cast<size_t>(i)] = round;
                    });
                    team.wait();
                    const int sum = std::accumulate(first.begin(), first.end(), 0);
                    team.share(64, [&](int64_t begin, int64_t end) {
                        for (int64_t i = begin; i < end; ++i) second[static_cast<size_t>(i)] = sum;
                    });
                });
                for (int value : second) CHECK(value == 64 * round);
            }
        });
    }
}

TEST(what_a_crew_runs_is_serial_inside) {
    with_crew(3, [] {
        std::vector<int> counts(8, 0);
        parallel_for(8, 3, [&](int64_t task) {
            CHECK(Crew::led() == nullptr);
            parallel_for(10, 1, [&](int64_t) { ++counts[static_cast<size_t>(task)]; });
        });
        for (int count : counts) CHECK(count == 10);
        CHECK(Crew::led() != nullptr);
    });
    CHECK(Crew::led() == nullptr);
}

TEST(small_work_is_worth_an_order_but_no_region) {
    CHECK(threads_for(100 * 1024, 8, 4) == 1);
    with_crew(2, [] {
        CHECK(threads_for(100 * 1024, 8, 4) == 4);
        CHECK(threads_for(1024, 8, 4) == 1);
        CHECK(threads_for(100 * 1024, 1, 4) == 1);
    });
}
