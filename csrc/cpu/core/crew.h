// Threads that stay together for a whole network. Leaving one OpenMP region and entering the next costs 2 to 5 us, which is more than many
// layers take; within a crew the others wait for the next piece of work in a loop, and giving it to them takes a fraction of a microsecond.
//
// One thread leads: it runs the plan, and wherever a kernel would open a parallel region (parallel.h) all share its tasks. Everything
// between is its own, so kernels need not know.
#pragma once

#include <atomic>
#include <cstdint>

namespace mvit {

class Crew {
  public:
    explicit Crew(int size) : size_(size) {}
    Crew(const Crew&) = delete;

    // The one that the calling thread leads, or null.
    static Crew* led();

    // Runs work() on the calling thread as the leader; the others are in follow() until it returns.
    template <class Work>
    void lead(const Work& work) {
        set_led(this);
        work();
        set_led(nullptr);
        job_ = nullptr;
        orders_.fetch_add(1, std::memory_order_release);
    }
    void follow(int index);

    // body(index) on all threads; returns when all are done.
    template <class Body>
    void share(const Body& body) {
        share([](const void* data, int index) { (*static_cast<const Body*>(data))(index); }, &body);
    }
    void barrier();  // inside of a body, for all threads

    int size() const { return size_; }

  private:
    using Job = void (*)(const void* body, int index);
    void share(Job job, const void* body);
    static void set_led(Crew* crew);

    const int size_;
    Job job_ = nullptr;
    const void* body_ = nullptr;
    // Each on a cache line of its own: one thread writes while another one waits for a different one.
    alignas(64) std::atomic<uint32_t> orders_{0};
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace mvit
