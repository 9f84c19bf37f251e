#include "cpu/core/crew.h"

#include <pthread.h>

#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mvit {

namespace {

constexpr int tries_awake = 2000;  // of a follower without work, about 0.1 ms: longer than any gap between two layers

thread_local Crew* led_crew = nullptr;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

std::mutex idle_lock;

// Never destroyed: followers of crews outlive the end of main.
std::vector<Crew*>& idle_crews() {
    static auto* crews = new std::vector<Crew*>;
    return *crews;
}

// Threads do not live on in the child of a fork: it makes crews of its own.
void forget_crews_in_children() {
    static const int once = pthread_atfork([] { idle_lock.lock(); }, [] { idle_lock.unlock(); },
                                           [] {
                                               idle_crews().clear();
                                               idle_lock.unlock();
                                           });
    static_cast<void>(once);
}

}  // namespace

Crew* Crew::led() { return led_crew; }
void Crew::set_led(Crew* crew) { led_crew = crew; }

Crew& Crew::take(int threads) {
    forget_crews_in_children();
    const int size = threads < 1 ? 1 : threads < most ? threads : most;
    {
        const std::lock_guard<std::mutex> lock(idle_lock);
        std::vector<Crew*>& idle = idle_crews();
        for (size_t i = idle.size(); i-- > 0;)
            if (idle[i]->size_ == size) {
                Crew* crew = idle[i];
                idle.erase(idle.begin() + static_cast<std::ptrdiff_t>(i));
                return *crew;
            }
    }
    auto* crew = new Crew(size);
    try {
        for (int i = 1; i < size; ++i) std::thread([crew, i] { crew->follow(i); }).detach();
    } catch (const std::system_error&) {  // no more threads to be had: those that there are take all tasks
    }
    return *crew;
}

void Crew::give_back(Crew& crew) {
    const std::lock_guard<std::mutex> lock(idle_lock);
    idle_crews().push_back(&crew);
}

// Opening and closing a job, and entering it, are sequentially consistent: either the leader sees a follower inside, or the follower sees
// that the job is closed. Likewise, a follower that falls asleep is seen, or sees the order.
void Crew::give(Job job, const void* body) {
    job_ = job;
    body_ = body;
    order_.fetch_add(1);
    if (asleep_.load() > 0) order_.notify_all();
    led_crew = nullptr;
    job(*this, body, 0);
    led_crew = this;
    order_.fetch_add(1);
    for (int tries = 0; inside_.load() > 0; ++tries)
        if (tries < tries_awake) {
            pause();
        } else {
            std::this_thread::yield();  // a task that was begun waits for a core: perhaps for this one
        }
}

void Crew::follow(int index) {
    for (uint32_t seen = 0;;) {
        uint32_t order = order_.load(std::memory_order_acquire);
        for (int tries = 0; order == seen || order % 2 == 0; order = order_.load(std::memory_order_acquire)) {
            if (++tries < tries_awake) {
                pause();
                continue;
            }
            asleep_.fetch_add(1);
            order_.wait(order);
            asleep_.fetch_sub(1);
            tries = 0;
        }
        inside_.fetch_add(1);
        if (order_.load() == order) job_(*this, body_, index);
        inside_.fetch_sub(1);
        seen = order;
    }
}

}  // namespace mvit
