// Loads of what nothing writes while the kernel is there, which is before its turn to run (launch.cuh): of weights and not of maps. They
// may overtake stores, which could else go to the same memory.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

#if defined(__CUDACC__)

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

template <class T>
T read_sixteen(const void* p) {
    static_assert(sizeof(T) == 16);
    return *static_cast<const T*>(p);
}

#endif

}  // namespace mvit::cuda
