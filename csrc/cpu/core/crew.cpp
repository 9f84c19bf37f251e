#include "cpu/core/crew.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mvit {

namespace {

constexpr int tries_awake = 2000;  // of a thread without work, about 0.1 ms: longer than any gap between two layers

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds late{300};  // of a thread, to come: more than waking it takes
// Milliseconds that a machine is believed to have other work, once it was seen. Something that takes a core now and then makes one thread
// in thousands late, a process that keeps it about half of them: each late one makes it four times as long, each other one half.
constexpr int least_believed = 8, most_believed = 512;

thread_local Crew* led_crew = nullptr;
std::atomic<Clock::rep> crowded_until{0};
std::atomic<int> believed{least_believed};

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

Clock::rep now() { return Clock::now().time_since_epoch().count(); }

std::mutex idle_lock;

// Never destroyed: followers of crews outlive the end of main.
std::vector<Crew*>& idle_crews() {
    static auto* crews = new std::vector<Crew*>;
    return *crews;
}

// Threads do not live on in the child of a fork. It makes crews of its own, and never asks for OpenMP's, for which libgomp would wait
// forever.
std::atomic<bool> in_child{false};
[[maybe_unused]] const int told_of_forks = pthread_atfork([] { idle_lock.lock(); }, [] { idle_lock.unlock(); },
                                                          [] {
                                                              idle_crews().clear();
                                                              in_child.store(true);
                                                              idle_lock.unlock();
                                                          });

}  // namespace

Crew* Crew::led() { return led_crew; }
void Crew::set_led(Crew* crew) { led_crew = crew; }

int Crew::possible(int threads) { return threads < 1 ? 1 : threads < most ? threads : most; }

bool Crew::in_child_of_fork() { return in_child.load(std::memory_order_relaxed); }

bool Crew::crowded() { return in_child_of_fork() || now() < crowded_until.load(std::memory_order_relaxed); }

void Crew::close() {
    closed_at_ = now();
    over_.store(true, std::memory_order_release);
}

void Crew::joined() const {
    const int before = believed.load(std::memory_order_relaxed);
    if (now() - closed_at_ <= Clock::duration(late).count()) {
        if (before > least_believed) believed.store(before / 2, std::memory_order_relaxed);
        return;
    }
    expect_other_work(before);
    if (before < most_believed) believed.store(4 * before < most_believed ? 4 * before : most_believed, std::memory_order_relaxed);
}

void Crew::expect_other_work(int milliseconds) {
    crowded_until.store(now() + Clock::duration(std::chrono::milliseconds(milliseconds)).count(), std::memory_order_relaxed);
}

Crew& Crew::take(int size) {
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
            sched_yield();  // a task that was begun waits for a core: perhaps for this one
        }
}

void Crew::follow(int index) {
    for (uint32_t seen = 0;;) {
        uint32_t order = order_.load(std::memory_order_acquire);
        for (int tries = 0; order == seen || order % 2 == 0; order = order_.load(std::memory_order_acquire)) {
            if (over_.load(std::memory_order_acquire)) return;
            if (tries < tries_awake) {
                ++tries;
                pause();
            } else if (borrowed_) {
                sched_yield();
            } else {
                asleep_.fetch_add(1);
                order_.wait(order);
                asleep_.fetch_sub(1);
                tries = 0;
            }
        }
        inside_.fetch_add(1);
        if (order_.load() == order) job_(*this, body_, index);
        inside_.fetch_sub(1);
        seen = order;
    }
}

}  // namespace mvit
