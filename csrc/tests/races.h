// What block.cpp tells ThreadSanitizer where the tests are built with it (`make -C csrc races`): that fibers are threads, and that barriers
// alone order what they read and write. So a barrier that is missing is found in any order of turns, not only in one whose result shows it.
// Built otherwise, all of this is nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateBenignRaceSized(const char* file, int line, const volatile void* begin, size_t bytes, const char* why);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace mvit::tests::races {

#if defined(__SANITIZE_THREAD__)

inline constexpr bool are_looked_for = true;
inline void* this_thread() { return __tsan_get_current_fiber(); }
inline void* new_thread() { return __tsan_create_fiber(0); }
inline void turn_to(void* thread) { __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync); }
// What was done before leave(place) is ordered before what follows enter(place).
inline void leave(void* place) { __tsan_release(place); }
inline void enter(void* place) { __tsan_acquire(place); }
// Bytes that several threads may write, the same.
inline void allow(const void* begin, int64_t bytes) {
    AnnotateBenignRaceSized(__FILE__, __LINE__, begin, static_cast<size_t>(bytes), "written twice, the same");
}

// The emulator's own reads and writes while one lives, which are no thread's of a GPU.
class Unseen {
  public:
    Unseen() {
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    ~Unseen() {
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    }
    Unseen(const Unseen&) = delete;
    Unseen& operator=(const Unseen&) = delete;
};

#else

inline constexpr bool are_looked_for = false;
inline void* this_thread() { return nullptr; }
inline void* new_thread() { return nullptr; }
inline void turn_to(void*) {}
inline void leave(void*) {}
inline void enter(void*) {}
inline void allow(const void*, int64_t) {}
struct Unseen {
    Unseen() {}
    ~Unseen() {}
};

#endif

}  // namespace mvit::tests::races
