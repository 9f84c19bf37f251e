// Sums over the threads of a warp and of a block, always in the same order.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

#if defined(__CUDACC__)

// The value of lane ^ mask; every lane of the warp takes part.
MVIT_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
MVIT_DEVICE double shuffle_xor(double x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
MVIT_DEVICE int32_t shuffle_xor(int32_t x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
MVIT_DEVICE int64_t shuffle_xor(int64_t x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }

#else

float shuffle_xor(float x, int mask);
double shuffle_xor(double x, int mask);
int32_t shuffle_xor(int32_t x, int mask);
int64_t shuffle_xor(int64_t x, int mask);

#endif

struct Sum {
    template <class T>
    MVIT_BOTH T operator()(T a, T b) const {
        return a + b;
    }
};
struct Largest {
    template <class T>
    MVIT_BOTH T operator()(T a, T b) const {
        return a > b ? a : b;
    }
};

// The same in every lane.
template <class T, class Combine = Sum>
MVIT_DEVICE T of_warp(T x, Combine combine = {}) {
    MVIT_UNROLL
    for (int mask = warp_size / 2; mask > 0; mask /= 2) x = combine(x, shuffle_xor(x, mask));
    return x;
}

// The same in every four lanes, which have a row of what tensor cores give (mma_s8.cuh).
template <class T, class Combine = Sum>
MVIT_DEVICE T of_quad(T x, Combine combine = {}) {
    MVIT_UNROLL
    for (int mask = 2; mask > 0; mask /= 2) x = combine(x, shuffle_xor(x, mask));
    return x;
}

// The same in every thread of a block of `threads`; shared: one value a warp.
template <int threads, class T, class Combine = Sum>
MVIT_DEVICE T of_block(T x, T* shared, Combine combine = {}) {
    x = of_warp(x, combine);
    if (thread_index() % warp_size == 0) shared[thread_index() / warp_size] = x;
    block_barrier();
    x = shared[0];
    MVIT_UNROLL
    for (int warp = 1; warp < threads / warp_size; ++warp) x = combine(x, shared[warp]);
    block_barrier();  // before shared is written again
    return x;
}

}  // namespace mvit::cuda
