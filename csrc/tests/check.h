// The smallest test framework that does: TEST(name) { CHECK(condition); }, and buffers whose end is the end of readable memory.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/core/isa.h"
#include "cpu/core/types.h"

namespace mvit::tests {

struct Test {
    const char* name;
    void (*run)();
};

inline std::vector<Test>& registry() {
    static std::vector<Test> tests;
    return tests;
}

struct Register {
    Register(const char* name, void (*run)()) { registry().push_back({name, run}); }
};

#define TEST(name)                                                          \
    static void test_##name();                                              \
    static const mvit::tests::Register register_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(condition)                                                                                      \
    do {                                                                                                      \
        if (!(condition)) {                                                                                   \
            std::printf("%s:%d: failed on %s: %s\n", __FILE__, __LINE__, isa_name(isa_active()), #condition); \
            std::exit(1);                                                                                     \
        }                                                                                                     \
    } while (0)

// `count` elements that end where the next page can be neither read nor written, and begin after 64 canary bytes.
template <class T>
class Guarded {
  public:
    explicit Guarded(int64_t count) : count_(count) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        const size_t bytes = static_cast<size_t>(count) * sizeof(T);
        const size_t body = (bytes + 64 + page - 1) / page * page;
        size_ = body + page;
        base_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED || mprotect(base_ + body, page, PROT_NONE) != 0) std::abort();
        data_ = reinterpret_cast<T*>(base_ + body - bytes);
        std::memset(reinterpret_cast<char*>(data_) - 64, 0x5A, 64);
    }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    ~Guarded() { munmap(base_, size_); }

    T* data() { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    int64_t size() const { return count_; }
    bool canary_intact() const {
        const char* p = reinterpret_cast<const char*>(data_) - 64;
        for (int i = 0; i < 64; ++i)
            if (p[i] != 0x5A) return false;
        return true;
    }

  private:
    int64_t count_;
    size_t size_;
    char* base_;
    T* data_;
};

inline const char* only_isa = nullptr;
inline bool runs_on(Isa isa) { return !only_isa || isa == Isa::scalar || std::strcmp(isa_name(isa), only_isa) == 0; }

template <class Body>
void on_every_isa(const Body& body) {
    const Isa before = isa_active();
    for (int level = 0; level < isa_count; ++level)
        if (runs_on(static_cast<Isa>(level)) && isa_set(static_cast<Isa>(level))) body();
    isa_set(before);
}

inline float random_float() {
    static std::mt19937 generator(1);
    static std::normal_distribution<float> normal;
    return normal(generator);
}

inline int random_int(int low, int high) {
    static std::mt19937 generator(2);
    return std::uniform_int_distribution<int>(low, high)(generator);
}

}  // namespace mvit::tests
