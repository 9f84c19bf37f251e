// Loads of what no thread writes while the kernel runs: they may overtake stores, which could else go to the same memory.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

#if defined(__CUDACC__)

MVIT_DEVICE uint8_t read_only(const uint8_t* p) { return __ldg(p); }
MVIT_DEVICE uint32_t read_only(const uint32_t* p) { return __ldg(p); }

// 16 bytes.
template <class T>
MVIT_DEVICE T read_sixteen(const void* p) {
    static_assert(sizeof(T) == 16);
    const uint4 words = __ldg(static_cast<const uint4*>(p));
    T value;
    __builtin_memcpy(&value, &words, sizeof value);
    return value;
}

#else

inline uint8_t read_only(const uint8_t* p) { return *p; }
inline uint32_t read_only(const uint32_t* p) { return *p; }

template <class T>
T read_sixteen(const void* p) {
    static_assert(sizeof(T) == 16);
    return *static_cast<const T*>(p);
}

#endif

}  // namespace mvit::cuda
