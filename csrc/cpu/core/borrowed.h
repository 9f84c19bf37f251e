// Memory for the length of a call, from a stack that each thread keeps: a network of a hundred layers should not pay a hundred times for
// malloc. What does not fit comes from malloc, once: the stack grows when it is empty again.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>

namespace mvit {

class BorrowedStack {
  public:
    ~BorrowedStack() { std::free(data_); }

    // Null where memory ran out. `size` is a multiple of 64.
    char* take(int64_t size) {
        if (depth_ == 0 && needed_ > size_) {
            std::free(data_);
            data_ = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(needed_)));
            size_ = data_ ? needed_ : 0;
        }
        ++depth_;
        used_ += size;
        if (used_ <= size_) return data_ + used_ - size;
        auto* memory = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(size)));
        if (memory && used_ > needed_) needed_ = used_;  // what there never was is not kept
        return memory;
    }
    // In the reverse order of take.
    void give(char* memory, int64_t size) {
        if (used_ > size_) std::free(memory);
        used_ -= size;
        --depth_;
    }

  private:
    char* data_ = nullptr;
    int64_t size_ = 0, used_ = 0, needed_ = 0, depth_ = 0;
};

inline BorrowedStack& borrowed_stack() {
    thread_local BorrowedStack stack;
    return stack;
}

// `count` values that begin as whatever was there. Throws std::bad_alloc.
template <class T>
class Borrowed {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 64);

  public:
    explicit Borrowed(int64_t count) : bytes_((count * int64_t{sizeof(T)} + 63) / 64 * 64) {
        if (bytes_ == 0) return;
        data_ = reinterpret_cast<T*>(borrowed_stack().take(bytes_));
        if (data_) return;
        borrowed_stack().give(nullptr, bytes_);
        throw std::bad_alloc();
    }
    Borrowed(const Borrowed&) = delete;
    ~Borrowed() {
        if (data_) borrowed_stack().give(reinterpret_cast<char*>(data_), bytes_);
    }
    T* data() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

  private:
    const int64_t bytes_;
    T* data_ = nullptr;
};

}  // namespace mvit
