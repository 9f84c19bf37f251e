// Threads that stay together for a whole network. Leaving one OpenMP region and entering the next costs 2 to 5 us, which is more than many
// layers take; a crew's threads wait for the next piece of work in a loop, and giving it to them takes a fraction of a microsecond.
//
// One thread leads: it runs the plan, and wherever a kernel would open a parallel region (parallel.h) all share its tasks. Everything
// between is its own, so kernels need not know. The others are the OpenMP threads of the calling one, those that torch's ops use too:
// they spin for some milliseconds after every region, and threads of our own would have to share the cores with them.
//
// Tasks are dealt in even runs, so that a thread meets the rows again that it wrote before; who is done takes from the runs of others.
// Nobody waits for a thread that has no core: the leader waits for tasks that were begun, not for threads that never came, until the
// network is done. On a machine with other work that is the difference between a little slower and many times as slow.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>

namespace mvit {

class Crew {
  public:
    static constexpr int most = 64;  // threads

    // Runs work() on the calling thread, which leads a crew of `threads` meanwhile, or fewer where there are no more.
    template <class Work>
    static void with(int threads, const Work& work) {
        Crew crew;
#pragma omp parallel num_threads(possible(threads))
        {
            if (const int index = omp_get_thread_num(); index > 0) {
                crew.follow(index);
            } else {
                crew.size_ = omp_get_num_threads();
                set_led(&crew);
                work();
                set_led(nullptr);
                crew.over_.store(true, std::memory_order_release);
            }
        }
    }

    // The one that the calling thread leads, or null.
    static Crew* led();

    // body(task) for every task in [0, tasks), by whoever comes; returns when all are done. What body calls is serial.
    template <class Body>
    void deal(int64_t tasks, const Body& body) {
        for (int i = 0; i < size_; ++i) {
            runs_[i].next.store(tasks * i / size_, std::memory_order_relaxed);
            runs_[i].end = tasks * (i + 1) / size_;
        }
        give([](Crew& crew, const void* data, int index) { crew.take_tasks(*static_cast<const Body*>(data), index); }, &body);
    }

  private:
    using Job = void (*)(Crew&, const void* body, int index);
    static int possible(int threads);
    static void set_led(Crew* crew);
    void give(Job job, const void* body);
    void follow(int index);

    template <class Body>
    void take_tasks(const Body& body, int index) {
        for (int i = 0; i < size_; ++i) {
            Run& run = runs_[index + i < size_ ? index + i : index + i - size_];
            for (int64_t task; (task = run.next.fetch_add(1, std::memory_order_relaxed)) < run.end;) body(task);
        }
    }

    int size_ = 1;
    Job job_ = nullptr;
    const void* body_ = nullptr;
    // Each on a cache line of its own: one thread writes while another one waits for a different one.
    alignas(64) std::atomic<uint32_t> order_{0};  // odd while there is a job
    alignas(64) std::atomic<int> inside_{0};      // followers that are at a job, or are looking whether there is one
    alignas(64) std::atomic<bool> over_{false};
    struct alignas(64) Run {
        std::atomic<int64_t> next;
        int64_t end;
    } runs_[most];
};

}  // namespace mvit
