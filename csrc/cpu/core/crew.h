// Threads that stay together for a whole network. Leaving one OpenMP region and entering the next costs 2 to 5 us, which is more than many
// layers take; a crew's threads wait for the next piece of work in a loop, and giving it to them takes a fraction of a microsecond.
//
// One thread leads: it runs the plan, and wherever a kernel would open a parallel region (parallel.h) all share its tasks. Everything
// between is its own, so kernels need not know.
//
// Tasks are dealt in even runs, so that a thread meets the rows again that it wrote before; who is done takes from the runs of others.
// The leader waits for tasks that were begun, not for threads that never came. On a machine with other work that is the difference between
// a little slower and many times as slow.
//
// Followers are the OpenMP threads of the leader, those that torch's ops use too: they spin for some milliseconds after every region, and
// threads of our own would have to share the cores with them. But a region ends when all its threads have come. Where one was late because
// another process had its core, the next crews have threads of their own, which nobody waits for.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>

namespace mvit {

class Crew {
  public:
    static constexpr int most = 64;  // threads
    static int possible(int threads);

    // Runs work() on the calling thread, which leads a crew of `threads` meanwhile, or fewer where there are no more. Neither it nor what
    // it deals may throw.
    template <class Work>
    static void with(int threads, const Work& work) {
        const int size = possible(threads);
        if (size > 1 && crowded()) {
            Crew& crew = take(size);
            crew.lead(work);
            give_back(crew);
            return;
        }
        Crew crew(1);
        crew.borrowed_ = true;
#pragma omp parallel num_threads(size)
        {
            if (const int index = omp_get_thread_num(); index > 0) {
                crew.follow(index);
            } else {
                crew.size_ = omp_get_num_threads();
                crew.lead(work);
                crew.close();
            }
        }
        crew.joined();
    }

    // The one that the calling thread leads, or null.
    static Crew* led();

    // Whether this process is one: crews have threads of their own, and nobody may open a region of OpenMP.
    static bool in_child_of_fork();

    // Crews of the next so many milliseconds have threads of their own. Late threads cause it; 0 ends it.
    static void expect_other_work(int milliseconds);

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
    explicit Crew(int size) : size_(size) {}

    template <class Work>
    void lead(const Work& work) {
        set_led(this);
        work();
        set_led(nullptr);
    }

    static void set_led(Crew* crew);

    // crowded: whether a thread came late not long ago. close: the work is done, followers may go; joined: they have.
    static bool crowded();
    void close();
    void joined() const;

    // A crew with threads of its own, which stay with it; made if none is idle.
    static Crew& take(int size);
    static void give_back(Crew& crew);

    void give(Job job, const void* body);
    void follow(int index);

    template <class Body>
    void take_tasks(const Body& body, int index) {
        for (int i = 0; i < size_; ++i) {
            Run& run = runs_[index + i < size_ ? index + i : index + i - size_];
            for (int64_t task; (task = run.next.fetch_add(1, std::memory_order_relaxed)) < run.end;) body(task);
        }
    }

    int size_;
    bool borrowed_ = false;  // followers are OpenMP's, and never sleep
    int64_t closed_at_ = 0;
    Job job_ = nullptr;
    const void* body_ = nullptr;
    // Each on a cache line of its own: one thread writes while another one waits for a different one.
    alignas(64) std::atomic<uint32_t> order_{0};  // odd while there is a job
    alignas(64) std::atomic<int> inside_{0};      // followers that are at a job, or are looking whether there is one
    alignas(64) std::atomic<int> asleep_{0};
    alignas(64) std::atomic<bool> over_{false};
    struct alignas(64) Run {
        std::atomic<int64_t> next;
        int64_t end;
    } runs_[most];
};

}  // namespace mvit
