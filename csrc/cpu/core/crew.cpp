#include "cpu/core/crew.h"

#include <sched.h>

namespace mvit {

namespace {

thread_local Crew* led_crew = nullptr;

// Returns when ready(). A thread that waits long gives its core away: it may be the one that the others need.
template <class Ready>
void spin(const Ready& ready) {
    for (int tries = 0; !ready(); ++tries) {
        if (tries < 4096) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            sched_yield();
        }
    }
}

}  // namespace

Crew* Crew::led() { return led_crew; }
void Crew::set_led(Crew* crew) { led_crew = crew; }

// Opening and closing a job, and entering it, are sequentially consistent: either the leader sees a follower inside, or the follower sees
// that the job is closed.
void Crew::give(Job job, const void* body, bool all) {
    job_ = job;
    body_ = body;
    done_.store(0, std::memory_order_relaxed);
    order_.fetch_add(1);
    led_crew = nullptr;  // what a body calls is serial
    job(*this, body, 0);
    led_crew = this;
    if (all) spin([&] { return done_.load(std::memory_order_acquire) == size_ - 1; });
    order_.fetch_add(1);
    spin([&] { return inside_.load() == 0; });
}

void Crew::follow(int index) {
    if (index >= size_) return;
    for (uint32_t seen = 0;;) {
        uint32_t order = 0;
        spin([&] {
            order = order_.load(std::memory_order_acquire);
            return (order != seen && order % 2 == 1) || over_.load(std::memory_order_acquire);
        });
        if (order == seen || order % 2 == 0) return;  // over
        inside_.fetch_add(1);
        if (order_.load() == order) {
            seen = order;
            job_(*this, body_, index);
            done_.fetch_add(1, std::memory_order_release);
        }
        inside_.fetch_sub(1);
    }
}

void Crew::barrier() {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
    } else {
        spin([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }
}

}  // namespace mvit
