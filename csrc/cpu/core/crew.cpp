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

void Crew::share(Job job, const void* body) {
    job_ = job;
    body_ = body;
    orders_.fetch_add(1, std::memory_order_release);
    Crew* outer = led_crew;
    led_crew = nullptr;  // what a body calls is serial
    job(body, 0);
    led_crew = outer;
    spin([&] { return done_.load(std::memory_order_acquire) == size_ - 1; });
    done_.store(0, std::memory_order_relaxed);
}

void Crew::follow(int index) {
    for (uint32_t seen = 0;;) {
        spin([&] { return orders_.load(std::memory_order_acquire) != seen; });
        ++seen;
        if (!job_) return;
        job_(body_, index);
        done_.fetch_add(1, std::memory_order_release);
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
