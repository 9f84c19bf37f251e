// A buffer a thread, grown and kept: kernels need a few kilobytes of float32 and a call should not pay for malloc.
#pragma once

#include <cstdint>
#include <cstdlib>

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

}  // namespace mvit
