// Copies from global to shared memory that run beside the computation (sm_80 and up), in groups that a thread commits and waits for. A
// thread sees its own copies after the wait; others see them after the barrier that follows it.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

// Both addresses are multiples of 16 (4); `bytes` of them, 0 included, are read and zeros written up to 16 (4).
#if defined(__CUDACC__)

MVIT_DEVICE uint32_t shared_address(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

// Past the first cache: what a block reads, it reads once.
MVIT_DEVICE void cp_async16(void* shared, const void* global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
}
// Where `where` is true, the 16 bytes that begin `at` further; without a branch, and with `at` in the instruction.
template <int at>
MVIT_DEVICE void cp_async16_where(void* shared, const void* global, bool where) {
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %2, 0;\n\t@p cp.async.cg.shared.global [%0 + %3], [%1 + %3], 16;\n\t}" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(static_cast<uint32_t>(where)), "n"(at)
                 : "memory");
}
MVIT_DEVICE void cp_async4(void* shared, const void* global, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
}
MVIT_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `left` of the groups that this thread committed are under way.
template <int left>
MVIT_DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

#else

void cp_async16(void* shared, const void* global, int bytes);
template <int at>
void cp_async16_where(void* shared, const void* global, bool where) {
    if (where) cp_async16(static_cast<char*>(shared) + at, static_cast<const char*>(global) + at, 16);
}
void cp_async4(void* shared, const void* global, int bytes);
void cp_async_commit();
void cp_async_wait(int left);
template <int left>
void cp_async_wait() {
    cp_async_wait(left);
}

#endif

}  // namespace mvit::cuda
