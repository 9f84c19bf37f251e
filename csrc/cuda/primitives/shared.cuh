// Addresses in shared memory of 32 bits, to which a kernel's own sums of 32 bits are added, modulo 2^32.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

#if defined(__CUDACC__)

class SharedAddress {
  public:
    SharedAddress() = default;
    MVIT_DEVICE SharedAddress(const void* shared, uint32_t offset)
        : at_(static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + offset) {}

    // Not volatile: what is read here is written before a barrier that stands before the address, and not again while it is used.
    MVIT_DEVICE uint32_t load_u16(uint32_t offset) const {
        uint16_t value;
        asm("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(at_ + offset));
        return value;
    }

  private:
    uint32_t at_;
};

#else

class SharedAddress {
  public:
    SharedAddress() = default;
    SharedAddress(const void* shared, uint32_t offset) : at_(static_cast<const uint8_t*>(shared)), offset_(offset) {}
    uint32_t load_u16(uint32_t offset) const { return *reinterpret_cast<const uint16_t*>(at_ + static_cast<int32_t>(offset_ + offset)); }

  private:
    const uint8_t* at_ = nullptr;
    uint32_t offset_ = 0;
};

#endif

}  // namespace mvit::cuda
