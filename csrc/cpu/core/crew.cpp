#include "cpu/core/crew.h"

#include <pthread.h>
#include <sched.h>

namespace mvit {

namespace {

thread_local Crew* led_crew = nullptr;

// OpenMP's threads do not live on in the child of a fork, and libgomp would wait for them forever: there, the leader is alone.
std::atomic<bool> in_child{false};
[[maybe_unused]] const int told_of_forks = pthread_atfork(nullptr, nullptr, [] { in_child.store(true); });

// Returns when ready(). A thread that waits long gives its core away: it may be the one that others need.
template <class Ready>
void spin(const Ready& ready) {
    for (int tries = 0; !ready(); ++tries) {
        if (tries < 2000) {  // about 0.1 ms: longer than any gap between two layers
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

int Crew::possible(int threads) { return threads < 1 || in_child.load(std::memory_order_relaxed) ? 1 : threads < most ? threads : most; }

// Opening and closing a job, and entering it, are sequentially consistent: either the leader sees a follower inside, or the follower sees
// that the job is closed.
void Crew::give(Job job, const void* body) {
    job_ = job;
    body_ = body;
    order_.fetch_add(1);
    led_crew = nullptr;
    job(*this, body, 0);
    led_crew = this;
    order_.fetch_add(1);
    spin([&] { return inside_.load() == 0; });
}

void Crew::follow(int index) {
    for (uint32_t seen = 0;;) {
        uint32_t order = 0;
        spin([&] {
            order = order_.load(std::memory_order_acquire);
            return (order != seen && order % 2 == 1) || over_.load(std::memory_order_acquire);
        });
        if (order == seen || order % 2 == 0) return;
        inside_.fetch_add(1);
        if (order_.load() == order) job_(*this, body_, index);
        inside_.fetch_sub(1);
        seen = order;
    }
}

}  // namespace mvit
