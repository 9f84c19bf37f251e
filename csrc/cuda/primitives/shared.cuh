// Addresses in shared memory of 32 bits, to which a kernel's own sums of 32 bits are added, modulo 2^32; and a store that may not happen.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

#if defined(__CUDACC__)

class SharedAddress {
  public:
    SharedAddress() = default;
    MVIT_DEVICE SharedAddress(const void* shared, uint32_t offset)
        : at_(static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + offset) {}

    // Of `at` bytes behind, which are part of the instruction. Not volatile: what is read here is written before a barrier that stands
    // before the address, and not again while it is used.
    template <int at = 0>
    MVIT_DEVICE uint32_t load_u8(uint32_t offset) const {
        uint32_t value;
        asm("ld.shared.u8 %0, [%1 + %2];" : "=r"(value) : "r"(at_ + offset), "n"(at));
        return value;
    }
    template <int at = 0>
    MVIT_DEVICE uint32_t load_u16(uint32_t offset) const {
        uint16_t value;
        asm("ld.shared.u16 %0, [%1 + %2];" : "=h"(value) : "r"(at_ + offset), "n"(at));
        return value;
    }
    template <int at = 0>
    MVIT_DEVICE uint32_t load_u32(uint32_t offset) const {
        uint32_t value;
        asm("ld.shared.u32 %0, [%1 + %2];" : "=r"(value) : "r"(at_ + offset), "n"(at));
        return value;
    }

  private:
    uint32_t at_;
};

// Where `where` is not 0; without a branch, around which the compiler would also take what the word is computed of.
MVIT_DEVICE void store_shared(uint32_t word, void* shared, uint32_t where) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %2, 0;\n\t@p st.shared.u32 [%0], %1;\n\t}" ::"r"(address), "r"(word), "r"(where)
                 : "memory");
}

#else

class SharedAddress {
  public:
    SharedAddress() = default;
    SharedAddress(const void* shared, uint32_t offset) : at_(static_cast<const uint8_t*>(shared)), offset_(offset) {}
    template <int at = 0>
    uint32_t load_u8(uint32_t offset) const {
        return load<uint8_t>(offset + at);
    }
    template <int at = 0>
    uint32_t load_u16(uint32_t offset) const {
        return load<uint16_t>(offset + at);
    }
    template <int at = 0>
    uint32_t load_u32(uint32_t offset) const {
        return load<uint32_t>(offset + at);
    }

  private:
    template <class T>
    uint32_t load(uint32_t offset) const {
        return *reinterpret_cast<const T*>(at_ + static_cast<int32_t>(offset_ + offset));
    }

    const uint8_t* at_ = nullptr;
    uint32_t offset_ = 0;
};

inline void store_shared(uint32_t word, void* shared, uint32_t where) {
    if (where) *static_cast<uint32_t*>(shared) = word;
}

#endif

}  // namespace mvit::cuda
