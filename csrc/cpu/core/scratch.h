// A buffer a thread, grown and kept: kernels need a few kilobytes of float32 and a call should not pay for malloc.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "cpu/core/parallel.h"
#include "cpu/core/types.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace mvit {

class Scratch {
  public:
    ~Scratch() { std::free(data_); }
    // At least `count` floats, 64-byte aligned; null when memory ran out. The content is undefined.
    float* floats(int64_t count) {
        if (count > capacity_) {
            std::free(data_);
            const int64_t bytes = (count * int64_t{sizeof(float)} + 63) / 64 * 64;
            data_ = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(bytes)));
            capacity_ = data_ ? count : 0;
        }
#if defined(__SANITIZE_ADDRESS__)
        // Who asks for too little is found out even where an earlier call has left more.
        if (data_) {
            ASAN_UNPOISON_MEMORY_REGION(data_, static_cast<size_t>(capacity_) * sizeof(float));
            ASAN_POISON_MEMORY_REGION(data_ + count, static_cast<size_t>(capacity_ - count) * sizeof(float));
        }
#endif
        return data_;
    }

  private:
    float* data_ = nullptr;
    int64_t capacity_ = 0;
};

inline Scratch& thread_scratch() {
    thread_local Scratch scratch;
    return scratch;
}

// Runs body(task, scratch of at least `count` floats) for every task; work as much as a copy of `bytes`. Throws std::bad_alloc.
template <class Body>
void parallel_tasks(int64_t tasks, int64_t bytes, int64_t count, int threads, const Body& body) {
    std::atomic<bool> no_memory{false};
    parallel_for(tasks, threads_for(bytes, tasks, threads), [&](int64_t task) {
        if (float* scratch = thread_scratch().floats(count)) {
            body(task, scratch);
        } else {
            no_memory.store(true, std::memory_order_relaxed);
        }
    });
    if (no_memory.load()) throw std::bad_alloc();
}

// The status of body(), which may run out of memory: no exception leaves the kernels.
template <class Body>
Status caught(const Body& body) {
    try {
        body();
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace mvit
