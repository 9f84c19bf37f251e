#include "cpu/core/crew.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "cpu/core/parallel.h"
#include "tests/check.h"

using namespace mvit;

namespace {

// With threads of OpenMP, and with own ones.
template <class Body>
void both_ways(const Body& body) {
    for (int milliseconds : {0, 60000, 0}) {
        Crew::expect_other_work(milliseconds);
        body();
    }
}

}  // namespace

TEST(a_crew_shares_tasks) {
    both_ways([] {
        for (int threads : {1, 2, 3, 5}) {
            Crew::with(threads, [&] {
                for (int64_t tasks : {0, 1, 2, 7, 1000}) {
                    std::vector<int> seen(static_cast<size_t>(tasks), 0);
                    parallel_for(tasks, 2, [&](int64_t task) { ++seen[static_cast<size_t>(task)]; });
                    for (int count : seen) CHECK(count == 1);
                }
            });
        }
    });
}

TEST(a_crew_does_one_job_after_another) {
    both_ways([] {
        for (int threads : {1, 2, 4, 100}) {
            Crew::with(threads, [&] {
                std::vector<int64_t> values(64, 0);
                for (int64_t round = 1; round <= 2000; ++round) {
                    parallel_for(64, 2, [&](int64_t i) { values[static_cast<size_t>(i)] += round; });
                    for (int64_t value : values) CHECK(value == round * (round + 1) / 2);
                }
            });
        }
    });
}

TEST(several_crews_at_once) {
    both_ways([] {
        std::vector<std::thread> leaders;
        std::atomic<int64_t> sum{0};
        for (int i = 0; i < 4; ++i)
            leaders.emplace_back([&] {
                for (int round = 0; round < 50; ++round)
                    Crew::with(3, [&] { parallel_for(10, 3, [&](int64_t task) { sum.fetch_add(task); }); });
            });
        for (std::thread& leader : leaders) leader.join();
        CHECK(sum.load() == 4 * 50 * 45);
    });
}

TEST(followers_come_after_a_pause) {
    both_ways([] {
        for (int round = 0; round < 3; ++round) {
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            std::atomic<int> threads_seen{0};
            Crew::with(2, [&] {
                parallel_for(2, 2, [&](int64_t) {
                    threads_seen.fetch_add(1);  // each waits for the other: both threads have come
                    while (threads_seen.load() < 2) std::this_thread::yield();
                });
            });
            CHECK(threads_seen.load() == 2);
        }
    });
}

TEST(what_a_crew_runs_is_serial_inside) {
    both_ways([] {
        Crew::with(3, [] {
            std::vector<int> counts(8, 0);
            parallel_for(8, 3, [&](int64_t task) {
                CHECK(Crew::led() == nullptr);
                parallel_for(10, 1, [&](int64_t) { ++counts[static_cast<size_t>(task)]; });
            });
            for (int count : counts) CHECK(count == 10);
            CHECK(Crew::led() != nullptr);
        });
        CHECK(Crew::led() == nullptr);
    });
}

TEST(small_work_is_worth_an_order_but_no_region) {
    CHECK(threads_for(100 * 1024, 8, 4) == 1);
    Crew::with(2, [] {
        CHECK(threads_for(100 * 1024, 8, 4) == 4);
        CHECK(threads_for(1024, 8, 4) == 1);
        CHECK(threads_for(100 * 1024, 1, 4) == 1);
    });
}

TEST(the_child_of_a_fork_has_crews_of_its_own) {
    Crew::with(2, [] { parallel_for(2, 2, [](int64_t) {}); });
    // Threads that other tests made may just be ending: a lock of the allocator that one of them held would stay locked in the child.
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        std::atomic<bool> followed{false};
        const auto leader = std::this_thread::get_id();
        for (int round = 0; round < 100 && !followed.load(); ++round)
            Crew::with(2, [&] {
                parallel_for(2, 2, [&](int64_t) {
                    if (std::this_thread::get_id() != leader) followed.store(true);
                    for (int tries = 0; !followed.load() && tries < 10; ++tries) std::this_thread::sleep_for(std::chrono::milliseconds(1));
                });
            });
        _exit(followed.load() ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
}

// Without a crew, too: a child that opened a region of OpenMP would wait forever for threads that only its parent has.
TEST(the_child_of_a_fork_shares_tasks) {
    parallel_for(2, 2, [](int64_t) {});  // OpenMP's threads are there
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        std::vector<int> seen(1000, 0);
        parallel_for(1000, 3, [&](int64_t task) { ++seen[static_cast<size_t>(task)]; });
        parallel_region(3, [&](const Team& team) {
            team.share(1000, [&](int64_t first, int64_t last) {
                for (int64_t task = first; task < last; ++task) ++seen[static_cast<size_t>(task)];
            });
            team.wait();
        });
        for (int count : seen)
            if (count != 2) _exit(1);
        _exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
}
