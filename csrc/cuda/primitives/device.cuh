// What device code is written on, so that the same text is compiled by nvcc for GPUs and by any C++ compiler for the tests.
//
// Without nvcc, what belongs to a thread of a block is only declared here: tests/block.cpp defines it, a block whose threads take turns on
// the processor. So every line of a kernel, its addresses, predicates, pipelines and barriers, is tested on machines without a GPU.
//
// Integers and floats here are as exact as in cpu/: files of integer ops are compiled without contraction of multiply-adds (flags.txt).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MVIT_DEVICE __device__ __forceinline__
#define MVIT_BOTH __host__ __device__ __forceinline__
#define MVIT_UNROLL _Pragma("unroll")
#define MVIT_ROLLED _Pragma("unroll 1")
#else
#define MVIT_DEVICE inline
#define MVIT_BOTH inline
#define MVIT_UNROLL
#define MVIT_ROLLED
#endif

namespace mvit::cuda {

inline constexpr int warp_size = 32;

// 16 bytes, which are read and written at once.
struct alignas(16) Sixteen {
    uint32_t words[4];
};

inline constexpr int four = 4;
// Four values that may be read and written at once where they are aligned.
template <class T>
struct alignas(four * sizeof(T)) Quad {
    T v[four];
};

#if defined(__CUDACC__)

MVIT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MVIT_DEVICE int64_t block_x() { return blockIdx.x; }
MVIT_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
MVIT_DEVICE void block_barrier() { __syncthreads(); }
MVIT_DEVICE void warp_barrier() { __syncwarp(); }

// Of all threads of the blocks of a cluster (sm_90 and up); what they wrote before, to memory of the device too, all of them see behind it.
MVIT_DEVICE void cluster_barrier() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __trap();  // there are none
#endif
}

// x, of which the compiler knows nothing: what follows from it is computed here, and not kept in registers from before a loop on. Not
// negative, so that divisions by powers of two are shifts.
MVIT_DEVICE uint32_t anew(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

#else

int thread_index();
int64_t block_x();
int block_y();
void block_barrier();
void warp_barrier();
void cluster_barrier();
inline uint32_t anew(uint32_t x) { return x; }

#endif

MVIT_BOTH constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace mvit::cuda
