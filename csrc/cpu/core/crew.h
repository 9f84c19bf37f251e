// Threads that stay together for a whole network. Leaving one OpenMP region and entering the next costs 2 to 5 us, which is more than many
// layers take; within a crew the others wait for the next piece of work in a loop, and giving it to them takes a fraction of a microsecond.
//
// One thread leads: it runs the plan, and wherever a kernel would open a parallel region (parallel.h) all share its tasks. Everything
// between is its own, so kernels need not know.
//
// Tasks are dealt in even runs, so that a thread meets the rows again that it wrote before; who is done takes from the runs of others.
// Nobody waits for a thread that has no core: the leader waits for tasks that were begun, not for threads that never came.
#pragma once

#include <atomic>
#include <cstdint>

namespace mvit {

class Crew {
  public:
    static constexpr int most = 64;  // threads

    explicit Crew(int size) : size_(size < most ? size : most) {}
    Crew(const Crew&) = delete;

    // The one that the calling thread leads, or null.
    static Crew* led();

    // Runs work() on the calling thread as the leader; the others are in follow() until it returns.
    template <class Work>
    void lead(const Work& work) {
        set_led(this);
        work();
        set_led(nullptr);
        over_.store(true, std::memory_order_release);
    }
    void follow(int index);

    // body(index) on all threads; returns when all are done.
    template <class Body>
    void gather(const Body& body) {
        give([](Crew&, const void* data, int index) { (*static_cast<const Body*>(data))(index); }, &body, true);
    }
    void barrier();  // inside of a body of gather, for all threads

    // body(task) for every task in [0, tasks), by whoever comes.
    template <class Body>
    void deal(int64_t tasks, const Body& body) {
        for (int i = 0; i < size_; ++i) {
            runs_[i].next.store(tasks * i / size_, std::memory_order_relaxed);
            runs_[i].end = tasks * (i + 1) / size_;
        }
        give([](Crew& crew, const void* data, int index) { crew.take_tasks(*static_cast<const Body*>(data), index); }, &body, false);
    }

    int size() const { return size_; }

  private:
    using Job = void (*)(Crew&, const void* body, int index);
    void give(Job job, const void* body, bool all);
    static void set_led(Crew* crew);

    template <class Body>
    void take_tasks(const Body& body, int index) {
        for (int i = 0; i < size_; ++i) {
            Run& run = runs_[index + i < size_ ? index + i : index + i - size_];
            for (int64_t task; (task = run.next.fetch_add(1, std::memory_order_relaxed)) < run.end;) body(task);
        }
    }

    const int size_;
    Job job_ = nullptr;
    const void* body_ = nullptr;
    // Each on a cache line of its own: one thread writes while another one waits for a different one.
    alignas(64) std::atomic<uint32_t> order_{0};  // odd while there is a job
    alignas(64) std::atomic<int> inside_{0};      // followers that are at a job, or are looking whether there is one
    alignas(64) std::atomic<int> done_{0};        // followers that have done their part of this job
    alignas(64) std::atomic<bool> over_{false};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    struct alignas(64) Run {
        std::atomic<int64_t> next;
        int64_t end;
    } runs_[most];
};

}  // namespace mvit
